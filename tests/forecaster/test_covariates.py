"""A planted effect of the weather is learned; weather without an effect leaves the forecast unchanged."""

from __future__ import annotations

import io

import numpy as np
import pytest

from simmst.commands.main import main
from simmst.data import TrafficDataset, chronological_split
from simmst.errors import DataError
from simmst.forecaster import Forecaster

pd = pytest.importorskip("pandas")
pytest.importorskip("safetensors")

DAYS, AHEAD = 14, 24


@pytest.fixture(scope="module")
def weather() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    total = DAYS * 24 + AHEAD
    rain = np.zeros(total)
    for hour in range(1, total):
        rain[hour] = 0.8 * rain[hour - 1] + rng.normal()
    hours = pd.date_range("2013-11-01", periods=total, freq="h", tz="Europe/Rome")
    return pd.DataFrame({"time": hours, "rain": rain, "dice": rng.normal(size=total)})


@pytest.fixture(scope="module")
def whole(weather) -> TrafficDataset:
    """Two cells that lose a quarter of their traffic for each unit of rain, and the slots after them."""
    rng, hour = np.random.default_rng(1), np.arange(len(weather))
    usual = (100 + 60 * np.sin(2 * np.pi * (hour - 8) / 24)) * np.exp(-0.3 * weather.rain)
    noise = np.exp(0.05 * rng.normal(size=(2, len(hour))))
    return TrafficDataset.from_dataframe(
        pd.DataFrame({"ds": weather.time, "a": usual * noise[0], "b": usual * noise[1]})
    )


@pytest.fixture(scope="module")
def city(whole) -> TrafficDataset:
    return whole.slice_steps(0, DAYS * 24)


@pytest.fixture(scope="module")
def plain(city) -> pd.DataFrame:
    return Forecaster.pretrained(horizon=6).predict(city, levels=(80,))


def test_a_planted_effect_is_learned(city, weather):
    split = chronological_split(city.num_steps, 24, test_days=2, validation_days=3)
    forecaster = Forecaster.pretrained(horizon=6)
    known = {"none": city} | {name: city.with_covariates(weather[["time", name]]) for name in ("rain", "dice")}
    errors = {name: forecaster.evaluate(one, split, stride=3).rows[0].mae[0] for name, one in known.items()}
    assert errors["rain"] < 0.7 * errors["none"]
    assert errors["dice"] < 1.03 * errors["none"]


def test_the_rain_to_come_moves_the_forecast_and_its_interval(city, weather, plain):
    forecaster = Forecaster.pretrained(horizon=6)
    dry, wet = weather.copy(), weather.copy()
    dry.loc[DAYS * 24 :, "rain"], wet.loc[DAYS * 24 :, "rain"] = -1, 3
    found = [
        forecaster.predict(city.with_covariates(one[["time", "rain"]]), levels=(80,)).iloc[:, 3:] for one in (dry, wet)
    ]
    assert (found[1] < 0.7 * found[0]).all(axis=None)
    nothing = city.with_covariates(weather[["time", "dice"]])
    pd.testing.assert_frame_equal(forecaster.predict(nothing, levels=(80,)), plain, rtol=0.02)


def test_what_lacks_for_the_slots_to_forecast_is_one_error(city, weather):
    short = city.with_covariates(weather[["time", "rain"]].iloc[: DAYS * 24 + 4])
    forecaster = Forecaster.pretrained(horizon=4)
    assert len(forecaster.predict(short)) == 8
    with pytest.raises(
        DataError, match=r"covariate 'rain' has no value from 2013-11-15T03:00:00Z to .*T04:00:00Z \(2 "
    ):
        forecaster.predict(short, horizon=6)


def test_fitting_saving_and_loading(city, weather, whole, tmp_path):
    short = city.slice_steps(city.num_steps - 90, city.num_steps).with_covariates(weather[["time", "rain"]])
    fitted = Forecaster(horizon=3).fit(short)  # too few days to train on
    fitted.save(tmp_path)
    loaded = Forecaster.load(tmp_path)
    expected = fitted.predict()
    pd.testing.assert_frame_equal(loaded.predict(), expected)
    bare = Forecaster(horizon=3).fit(short.with_(covariates=None)).predict()
    assert (bare.y_hat - expected.y_hat).abs().max() > 1
    # Traffic without its own covariates is forecast with those of the fitted series.
    later = whole.slice_steps(city.num_steps - 90, city.num_steps + 2)
    moved = loaded.predict(later)
    loaded.update(later.slice_steps(80, 92))
    pd.testing.assert_frame_equal(loaded.predict(), moved)


@pytest.mark.parametrize("settings", [{"model": "ridge"}, {"combine": False}])
def test_what_does_not_look_at_them_says_so(city, weather, settings):
    short = city.slice_steps(0, 90).with_covariates(weather[["time", "rain"]])
    assert any("rain: covariates, which" in note for note in Forecaster(horizon=2, **settings).fit(short).notes)


def test_at_the_command_line(city, weather, tmp_path, capsys):
    pytest.importorskip("jsonargparse")
    city.slice_steps(city.num_steps - 120, city.num_steps).save(tmp_path / "city.npz")
    weather[["time", "rain"]].to_csv(tmp_path / "weather.csv", index=False)
    words = ["forecast", "--data", str(tmp_path / "city.npz"), "--levels", "80"]
    shown = []
    for flags in ([], ["--table.covariates", str(tmp_path / "weather.csv")]):
        assert main([*words, *flags]) == 0
        shown.append(pd.read_csv(io.StringIO(capsys.readouterr().out)))
    assert (shown[0].y_hat - shown[1].y_hat).abs().max() > 1
    weather[["time", "rain"]].iloc[:100].to_csv(tmp_path / "weather.csv", index=False)
    assert main([*words, *flags]) == 2
    assert "covariate 'rain' has no value from" in capsys.readouterr().err
    train = ["train", *words[1:3], *flags, "--test_days", "1", "--simulated", "0", "--out", str(tmp_path / "run")]
    assert main(train) == 2  # refused before anything is trained or written
    assert "it has values from 2013-10-31T23:00:00Z to 2013-11-05T02:00:00Z" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
