from __future__ import annotations

import dataclasses
import itertools
import warnings

import numpy as np
import pytest
import torch

from simmst import Forecaster, TrafficDataset
from simmst.baselines import BASELINES
from simmst.data import chronological_split
from simmst.errors import ConfigError, DataError
from simmst.forecaster import fitting, scoring
from simmst.forecaster.config import ForecasterConfig
from simmst.models import STNet
from simmst.simulation import surrogate_city
from simmst.training import TrainingConfig

pd = pytest.importorskip("pandas")
pytest.importorskip("safetensors")

TRAINING = TrainingConfig(epochs=1, samples_per_epoch=64, batch_size=32, validation_samples=64, device="cpu")
CONFIG = ForecasterConfig(
    horizon=3,
    neighbourhood=3,
    start="scratch",
    cities=1,
    network={"width": 8, "encoder_layers": 1, "feedforward": 8},
    training=TRAINING,
)


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="module")
def city():
    return surrogate_city(0, height=3, width=3, days=9)


@pytest.fixture(scope="module")
def fitted(city):
    """A forecaster fitted to real and simulated traffic, which tests must not fit again."""
    return Forecaster(config=CONFIG).fit(city, 1)


def tiny(**changes):
    return dataclasses.replace(CONFIG, **changes)


def stages(model):
    return [history.stage for history in model.result.histories]


def test_settings_come_one_by_one_or_as_a_config():
    assert Forecaster(4).config == ForecasterConfig(horizon=4)
    assert Forecaster(horizon=4, recent=12).config.recent == 12
    assert Forecaster(config=CONFIG).config is CONFIG
    with pytest.raises(ConfigError, match=r"both \(config and 'horizon'\)"):
        Forecaster(4, config=CONFIG)
    with pytest.raises(ConfigError, match="unknown forecaster setting 'horizonn'; did you mean 'horizon'"):
        Forecaster(horizonn=4)


def test_real_traffic_alone(city):
    model = Forecaster(config=CONFIG).fit(city, simulated=None)
    assert stages(model) == ["real"]
    assert stages(Forecaster(config=CONFIG).fit(city, simulated=0)) == ["real"]


def test_simulated_cities_are_learned_from_first(city, fitted):
    assert stages(fitted) == ["pretrain", "finetune"]
    assert fitted.name == "Sim-MSTNet"


def test_default_takes_as_many_cities_as_the_config_says(city, monkeypatch):
    seen = []
    real = fitting.cities_like
    monkeypatch.setattr(fitting, "cities_like", lambda d, n, **o: seen.append((n, o["seed"])) or real(d, n, **o))
    Forecaster(config=tiny(cities=2)).fit(city)
    Forecaster(config=CONFIG).fit(city, 3)
    other = dataclasses.replace(TRAINING, seed=1)
    Forecaster(config=tiny(training=other)).fit(city)
    assert [number for number, _ in seen] == [2, 3, 1]
    assert seen[0][1] == seen[1][1] != seen[2][1], "the cities follow the seed"


def test_cities_of_ones_own(city, fitted):
    own = surrogate_city(5, height=3, width=3, days=6, services=["internet", "sms", "call"])
    model = Forecaster(config=CONFIG).fit(city, [own])
    assert stages(model) == ["pretrain", "finetune"]
    assert stages(Forecaster(config=CONFIG).fit(city, own)) == ["pretrain", "finetune"]
    assert not np.array_equal(model.predict().y_hat, fitted.predict().y_hat)


def test_a_solver_that_needs_no_cities_gets_none_simulated(city, monkeypatch):
    monkeypatch.setattr(fitting, "cities_like", None)
    assert stages(Forecaster(config=tiny(solver="real-only")).fit(city)) == ["real"]


def test_joint_solver(city):
    model = Forecaster(config=tiny(solver="joint")).fit(city, 1)
    assert stages(model) == ["joint"]
    with pytest.raises(ConfigError, match="solver 'joint' needs simulated cities and got none"):
        Forecaster(config=tiny(solver="joint")).fit(city, None)


@pytest.mark.parametrize("wrong", ["defaults", True, -1, ["a city"], 1.5])
def test_what_cannot_be_simulated_cities(city, wrong):
    with pytest.raises((ConfigError, TypeError), match=r"must be 'default', a number|not iterable"):
        Forecaster(config=CONFIG).fit(city, wrong)


def test_cities_with_other_slots_are_refused(city):
    fine = surrogate_city(5, height=3, width=3, days=2, step_minutes=10)
    with pytest.raises(DataError, match=r"slots of 10 minutes, wanted 60; call resample\(60\)"):
        Forecaster(config=CONFIG).fit(city, [fine])


def test_the_same_seed_gives_the_same_forecast(city, fitted):
    again = Forecaster(config=CONFIG).fit(city, 1)
    pd.testing.assert_frame_equal(again.predict(levels=(80,)), fitted.predict(levels=(80,)))
    other = Forecaster(config=tiny(training=dataclasses.replace(TRAINING, seed=1))).fit(city, 1)
    assert not np.array_equal(other.predict().y_hat, fitted.predict().y_hat)


def test_a_file_by_path_and_one_service(city, tmp_path):
    path = city.select_services(["sms"]).save(tmp_path / "city.npz")
    model = Forecaster(config=CONFIG).fit(path, None)
    assert model.name == "STNet"
    assert isinstance(model.network, STNet)
    assert set(model.predict().service) == {"sms"}


def test_a_naive_baseline_is_a_forecaster_too(city):
    model = Forecaster(config=tiny(model="seasonal-naive-day")).fit(city)
    assert model.name == "seasonal-naive-day"
    assert model.network is None
    y_hat = model.predict().y_hat.to_numpy().reshape(9, 3, 3)
    np.testing.assert_array_equal(y_hat, city.series()[-24:-21].transpose(2, 0, 1))


def test_validation_slots_are_never_trained_on(city):
    cut = city.num_steps - 48
    activity = city.activity.copy()
    activity[cut:] *= 7.0
    changed = city.with_(activity=activity)
    training = dataclasses.replace(TRAINING, fit_highway=False)  # its penalty is chosen on the validation slots
    for model in ("sim-mstnet", "ridge"):
        one, two = (
            Forecaster(config=tiny(model=model, training=training)).fit(data, None, validation_steps=48)
            for data in (city, changed)
        )
        if model == "sim-mstnet":
            for name, tensor in one.network.state_dict().items():
                assert torch.equal(tensor, two.network.state_dict()[name]), name
            assert one.predictor.stretch != two.predictor.stretch
        else:
            assert not np.array_equal(one.fitted().errors.values, two.fitted().errors.values)


def test_a_failed_fit_leaves_the_forecaster_as_it_was(city):
    model = Forecaster(config=tiny(model="persistence")).fit(city)
    before = model.predict()
    with pytest.raises(DataError):
        model.fit(city.slice_steps(0, 3))
    pd.testing.assert_frame_equal(model.predict(), before)


def test_an_unfitted_forecaster_says_so(tmp_path):
    model = Forecaster(horizon=2)
    for call in (model.predict, model.cross_validation, lambda: model.save(tmp_path), lambda: model.predictor):
        with pytest.raises(DataError, match=r"not fitted; call fit\(real\) or Forecaster\.load\(folder\) first"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_series_too_short(city):
    with pytest.raises(
        DataError, match=r"3 slots, 3 of them to validate on .*too few for a horizon of 3; give a longer"
    ):
        Forecaster(config=CONFIG).fit(city.slice_steps(0, 3), None)
    with pytest.raises(DataError, match=r"3 slots ahead take 27 slots, .* has 4.*longer series"):
        Forecaster(config=CONFIG).fit(city.slice_steps(0, 4), None)
    with pytest.raises(DataError, match="20 of them to validate on"):
        Forecaster(config=tiny(horizon=30)).fit(city, None, validation_steps=20)


def test_an_empty_end_is_refused(city):
    activity = city.activity.copy()
    activity[-72:] = np.nan
    with pytest.raises(DataError, match=r"no value in its last 72 slots.*slice_steps"):
        Forecaster(config=CONFIG).fit(city.with_(activity=activity), None)


def test_frame(city, fitted):
    frame = fitted.predict()
    assert frame.columns.tolist() == ["unique_id", "ds", "service", "y_hat"]
    assert len(frame) == 9 * 3 * 3
    assert frame.unique_id.tolist() == np.repeat(city.unique_ids(), 9).tolist()
    assert frame.service.tolist() == ["call", "sms", "internet"] * 27
    first = pd.Timestamp(city.time[-1], tz="UTC").tz_convert("Europe/Rome") + pd.Timedelta(hours=1)
    assert frame.ds.iloc[0] == first
    assert frame.ds.iloc[[0, 3, 6]].diff().dropna().unique().tolist() == [pd.Timedelta(hours=1)]
    assert str(frame.ds.dt.tz) == "Europe/Rome"
    assert np.isfinite(frame.y_hat).all()
    assert (frame.y_hat >= 0).all()


def test_values_stand_beside_the_right_cell_service_and_slot(city):
    """Every value of the forecast by the same hour yesterday is known."""
    frame = Forecaster(config=tiny(model="seasonal-naive-day")).fit(city).predict()
    past = city.to_dataframe()
    past["ds"] += pd.Timedelta(hours=24)
    joined = frame.merge(past, on=["unique_id", "ds", "service"])
    assert len(joined) == len(frame)
    np.testing.assert_array_equal(joined.y_hat, joined.y)


def test_intervals_are_ordered_and_hold_the_forecast(fitted):
    frame = fitted.predict(levels=(80, 95, 1))
    lows, highs = ([frame[f"y_hat-{side}-{level}"] for level in (95, 80, 1)] for side in ("lo", "hi"))
    ordered = [*lows, frame.y_hat, *reversed(highs)]
    assert np.isfinite(np.asarray(ordered)).all()
    for lower, upper in itertools.pairwise(ordered):
        assert (lower <= upper).all()
    assert (lows[0] >= 0).all()
    assert (highs[0] > highs[1]).any()
    pd.testing.assert_series_equal(frame.y_hat, fitted.predict().y_hat)


@pytest.mark.parametrize("level", [0, 100, 0.8, "80", True])
def test_levels_that_are_none(fitted, level):
    with pytest.raises(ConfigError, match="must be an integer between 1 and 99, in percent"):
        fitted.predict(levels=[level])


def test_newer_traffic(city, fitted):
    part = city.slice_steps(0, city.num_steps - 12)
    frame = fitted.predict(part)
    assert frame.ds.iloc[0] == pd.Timestamp(city.time[-12], tz="UTC")
    expected = fitted.predictor.predict(city, np.array([city.num_steps - 12]))[0]
    np.testing.assert_allclose(frame.y_hat, expected.reshape(-1), rtol=1e-5)
    turned = city.select_services(["internet", "sms", "call"])
    pd.testing.assert_frame_equal(fitted.predict(turned), fitted.predict())


def test_another_city(fitted):
    other = surrogate_city(3, height=4, width=5, days=4)
    assert len(fitted.predict(other)) == 20 * 9


def test_traffic_that_does_not_fit(city, fitted):
    with pytest.raises(DataError, match="has none of the services call, sms, internet; it has video"):
        fitted.predict(city.select_services(["sms"]).with_(services=("video",)))
    with pytest.raises(DataError, match=r"slots of 120 minutes, wanted 60"):
        fitted.predict(city.resample(120))


def test_a_short_end_of_the_series_is_enough_to_forecast_from(city, fitted):
    frame = fitted.predict(city.slice_steps(0, 5), levels=(80,))
    assert np.isfinite(frame[["y_hat", "y_hat-lo-80", "y_hat-hi-80"]]).all(axis=None)


def test_gaps_make_no_gap_in_the_forecast(city):
    activity = city.activity.copy()
    activity[:, 1, 0, 0] = np.nan  # a service that one cell never had
    activity[-40:, 0] = np.nan  # a service that went silent
    activity[-30:, :, 2, 2] = np.nan  # a cell that went silent
    mask = city.mask.copy()
    mask[0, 2] = False
    holes = city.with_(activity=activity, mask=mask, cell_id=np.where(mask, city.cell_id, -1))
    frame = Forecaster(config=CONFIG).fit(holes, 1).predict(levels=(80,))
    assert len(frame) == 8 * 9
    never = (frame.unique_id == city.unique_ids()[0]) & (frame.service == city.services[1])
    values = frame[["y_hat", "y_hat-lo-80", "y_hat-hi-80"]]
    assert values[never].isna().all(axis=None)
    assert np.isfinite(values[~never]).all(axis=None)


def test_cross_validation(city, fitted, monkeypatch):
    fits = []
    fit = scoring.fit_forecaster

    def spy(config, real, *arguments, **options):
        fits.append(real.num_steps)
        return fit(config, real, *arguments, **options)

    monkeypatch.setattr(scoring, "fit_forecaster", spy)
    before = fitted.predict()
    report = fitted.cross_validation(n_windows=4)
    assert {row.name for row in report.rows} == {"Sim-MSTNet", *BASELINES}
    assert report.num_origins == 4
    assert report.forecasts.origins.tolist() == [city.num_steps - 3 * i for i in (4, 3, 2, 1)]
    assert fits == [city.num_steps - 12], "fitted again, without the slots that are scored"
    assert all(np.isfinite(row.mae).all() for row in report.rows)
    pd.testing.assert_frame_equal(fitted.predict(), before)
    assert fitted.cross_validation(n_windows=2, step=1).forecasts.origins.tolist() == [
        city.num_steps - 4,
        city.num_steps - 3,
    ]


def test_cross_validation_refuses(fitted):
    with pytest.raises(ConfigError, match="n_windows and step must be at least 1, got 0 and 3"):
        fitted.cross_validation(0)
    with pytest.raises(ConfigError, match="got 4 and 0"):
        fitted.cross_validation(step=0)
    with pytest.raises(DataError, match="use fewer windows"):
        fitted.cross_validation(70)


def test_report_frame_has_every_model(fitted):
    report = fitted.cross_validation(n_windows=2)
    frame, made = report.to_frame(), report.forecasts.to_frame()
    assert set(frame.model) == {"Sim-MSTNet", *BASELINES}
    assert {"Sim-MSTNet-lo-80", "Sim-MSTNet-hi-80", *BASELINES} <= set(made.columns)
    assert (made["Sim-MSTNet-lo-80"] <= made["Sim-MSTNet"]).all()
    assert (made["Sim-MSTNet"] <= made["Sim-MSTNet-hi-80"]).all()
    assert not frame[frame.step == 0][["mae", "rmse", "skill"]].isna().any(axis=None)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_cross_validation_gives_frames_as_they_came_in(library):
    """Column names, text identifiers, time zone and library are those of the input; the values are the report's."""
    hours = pd.date_range("2013-11-04", periods=9 * 24, freq="h", tz="Asia/Tokyo")
    series = {"0042": 50 + 40 * np.sin(np.arange(len(hours)) / 24 * 2 * np.pi), "007": np.arange(len(hours)) % 7 + 1.0}
    frame = pd.concat(pd.DataFrame({"Site": name, "Start": hours, "Load": y}) for name, y in series.items())
    if library == "polars":
        frame = pytest.importorskip("polars").from_pandas(frame)
    real = TrafficDataset.from_dataframe(frame, id_col="Site", time_col="Start", target_col="Load")
    report = Forecaster(horizon=2, model="persistence").fit(real).cross_validation(n_windows=3)
    table, made = report.to_frame(), report.forecasts.to_frame()
    assert {type(one).__module__.partition(".")[0] for one in (table, made)} == {library}
    if library == "polars":
        made = made.to_pandas()
    assert made.columns.tolist()[:5] == ["Site", "Start", "service", "cutoff", "Load"]
    assert set(made.Site) == {"0042", "007"}
    assert made.Start.dt.tz is not None
    assert len(made) == 2 * 3 * 2
    at_sites = {(site, start): y for site, ys in series.items() for start, y in zip(hours, ys, strict=True)}
    for row in made.itertuples():
        assert row.Load == pytest.approx(at_sites[row.Site, row.Start])
        assert row.persistence == pytest.approx(at_sites[row.Site, row.cutoff])
    mae = (made.Load - made.persistence).abs().mean()
    assert report.row("persistence").mae[0] == pytest.approx(mae)


def test_the_example_of_the_readme(city, tmp_path):
    """Own services under their own names, from a wide data frame; every line is as in the README."""
    hours = pd.date_range("2013-11-04", periods=9 * 24, freq="h")
    day = 50 + 40 * np.sin(np.arange(len(hours)) / 24 * 2 * np.pi)
    wide = pd.DataFrame({"ds": hours, "north": day, "south": 3 * day})
    real = TrafficDataset.from_dataframe(wide)
    small = {"cities": 1, "training": TRAINING, "network": CONFIG.network}
    model = Forecaster(horizon=6, **small)
    model.fit(real, simulated="default")
    frame = model.predict(levels=(80,))
    report = model.cross_validation(n_windows=4)
    model.save(tmp_path / "run")
    loaded = Forecaster.load(tmp_path / "run")

    assert set(frame.unique_id) == {"north", "south"}
    assert set(frame.service) == {"traffic"}
    assert report.num_origins == 4
    assert any("service 'traffic' is unknown to the simulator" in note for note in report.notes)
    pd.testing.assert_frame_equal(loaded.predict(levels=(80,)), frame)
    long = TrafficDataset.from_dataframe(real.to_dataframe())
    pd.testing.assert_frame_equal(model.predict(long).drop(columns="service"), model.predict().drop(columns="service"))


def test_the_doors_are_imported_on_first_use():
    import simmst
    from simmst.data import TrafficDataset as Real

    assert simmst.Forecaster is Forecaster
    assert simmst.TrafficDataset is Real


@pytest.mark.parametrize("simulated", [None, 1])
def test_milan_three_services(simulated, real_file):
    """Seven days of three cells that are not neighbours: a short series, with masked cells all around."""
    real = TrafficDataset.from_npz(real_file("milan_three_services_3cells_hourly.npz"))
    assert real.num_cells < real.mask.size
    model = Forecaster(config=tiny(neighbourhood=5)).fit(real, simulated)
    frame = model.predict(levels=(80,))
    assert frame.groupby("service").size().to_dict() == {"call": 9, "sms": 9, "internet": 9}
    assert set(frame.unique_id) == {4259, 4456, 4703}
    assert np.isfinite(frame[["y_hat", "y_hat-lo-80", "y_hat-hi-80"]]).all(axis=None)
    report = model.cross_validation(n_windows=2)
    assert not report.surrogate
    assert report.unit == "CDR units"
    assert {row.name for row in report.rows} == {"Sim-MSTNet", *BASELINES} - {"seasonal-naive-week"}
    assert all(np.isfinite(row.mae).all() for row in report.rows)


def test_milan_block_at_ten_minutes(real_file):
    real = TrafficDataset.from_npz(real_file("milan_block5x5_internet_10min.npz"))
    real = real.slice_steps(real.num_steps - 6 * 144, real.num_steps)
    model = Forecaster(config=tiny(horizon=6)).fit(real, 1)
    assert model.name == "STNet"
    assert model.spec.offsets == tuple(range(-24, 0))
    frame = model.predict()
    assert len(frame) == 25 * 6
    assert frame.ds.iloc[1] - frame.ds.iloc[0] == pd.Timedelta(minutes=10)
    assert np.isfinite(frame.y_hat).all()
    # in the units of the data: within a factor of ten of the last day's level
    level = float(np.nanmean(real.activity[-144:]))
    assert level / 10 < frame.y_hat.mean() < level * 10
    report = model.cross_validation(n_windows=2)
    assert all(np.isfinite(row.mae).all() for row in report.rows)


def test_z_scores_keep_their_sign(real_file):
    real = TrafficDataset.from_npz(real_file("trento_223_communes_internet_10min_zscored.npz"))
    model = Forecaster(config=tiny(horizon=1)).fit(real.slice_steps(0, 432), 1)
    frame = model.predict(levels=(80,))
    assert (frame["y_hat-lo-80"] < 0).any()
    assert np.isfinite(frame[["y_hat", "y_hat-lo-80", "y_hat-hi-80"]]).all(axis=None)


def test_a_baseline_whose_period_is_longer_than_the_series_is_left_out_with_a_note():
    city = surrogate_city(0, height=3, width=3, days=9, services=("internet",))
    split = chronological_split(city.num_steps, city.steps_per_day)
    past = city.slice_steps(0, split.test.start)
    report = Forecaster(horizon=2, model="persistence").fit(past).evaluate(city, split)
    assert "seasonal-naive-week" not in [row.name for row in report.rows]
    assert any("seasonal-naive-week is left out: it looks back 168 slots and 144 precede" in n for n in report.notes)
