"""New slots without fitting again, horizons beyond the fitted one, and missing services."""

from __future__ import annotations

import numpy as np
import pytest

from simmst.data import TrafficDataset
from simmst.errors import ConfigError, DataError
from simmst.forecaster import Forecaster
from simmst.forecaster.further import forecast_further
from simmst.simulation import surrogate_city

pd = pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def city() -> TrafficDataset:
    return surrogate_city(0, height=2, width=2, days=10, services=("call", "internet"))


@pytest.mark.parametrize("model", ["ridge", "seasonal-naive-day"])
def test_update_forecasts_from_the_new_end(city, model):
    past, new = city.slice_steps(0, 236), city.slice_steps(230, 240)
    fitted = Forecaster(horizon=3, model=model).fit(past)
    expected = fitted.predict(city)
    assert not fitted.predict().y_hat.equals(expected.y_hat)
    pd.testing.assert_frame_equal(fitted.update(new).predict(), expected)
    assert fitted.dataset.num_steps == 240
    frames = Forecaster(horizon=3, model=model).fit(past)
    for step in range(236, 240):  # a frame of one slot at a time
        frames.update(city.slice_steps(step - 1, step + 1).to_dataframe().groupby(["unique_id", "service"]).tail(1))
    pd.testing.assert_frame_equal(frames.predict(), expected)


def test_update_of_a_frame_with_names_of_its_own():
    times = pd.date_range("2013-10-26", periods=60, freq="h", tz="Europe/Rome").tz_localize(None)
    frame = pd.DataFrame({"cell": "0042", "time": times, "load": np.arange(60.0)})
    fitted = Forecaster(horizon=2, model="persistence").fit(frame[:50]).update(frame[50:])
    out = fitted.predict()
    assert out.columns.tolist() == ["cell", "time", "service", "y_hat"]
    assert out.cell.tolist() == ["0042", "0042"]
    assert out.time.tolist() == [times[-1] + pd.Timedelta(hours=ahead) for ahead in (1, 2)]
    assert out.y_hat.tolist() == [59, 59]


def test_update_refuses_what_it_does_not_know(city):
    with pytest.raises(DataError, match="not fitted"):
        Forecaster(model="ridge").update(city)
    fitted = Forecaster(horizon=3, model="persistence").fit(city)
    with pytest.raises(DataError, match=r"cells has no .* for unique_id 77"):
        fitted.update(city.slice_steps(0, 9).to_dataframe().assign(unique_id=77)[:5])
    assert fitted.dataset is city  # unchanged


def test_a_longer_horizon_is_blocks_as_if_they_had_come_true(city):
    fitted = Forecaster(horizon=6, model="seasonal-naive-day").fit(city)
    longer = fitted.predict(horizon=60)
    counts = longer.groupby(["unique_id", "service"]).size()
    assert (counts == 60).all()
    values = longer.y_hat.to_numpy().reshape(4, 60, 2)  # cells, slots, services
    last_day = city.series()[-24:].transpose(2, 0, 1)
    np.testing.assert_array_equal(values, np.concatenate([last_day] * 3, axis=1)[:, :60])
    pd.testing.assert_frame_equal(fitted.predict(horizon=6), fitted.predict())
    first_four = fitted.predict().groupby(["unique_id", "service"]).head(4).reset_index(drop=True)
    pd.testing.assert_frame_equal(fitted.predict(horizon=np.int64(4)), first_four)
    steps = longer.ds.drop_duplicates().diff().dropna()
    assert (steps == pd.Timedelta(hours=1)).all()


def test_intervals_widen_from_block_to_block(city):
    fitted = Forecaster(horizon=4, model="persistence").fit(city)
    own, longer = fitted.predict(levels=(80,)), fitted.predict(levels=(80,), horizon=12)
    for (_, near), (_, far) in zip(
        own.groupby(["unique_id", "service"]), longer.groupby(["unique_id", "service"]), strict=True
    ):
        np.testing.assert_array_equal(far["y_hat-lo-80"][:4], near["y_hat-lo-80"])
        above = (far["y_hat-hi-80"] - far.y_hat).to_numpy()
        np.testing.assert_allclose(above[4:8], np.hypot(above[:4], above[3]), rtol=1e-4)
        np.testing.assert_allclose(above[8:], np.hypot(above[:4], above[7]), rtol=1e-4)
        assert (far["y_hat-lo-80"] >= 0).all()


def test_a_block_sees_the_forecasts_before_it(city):
    seen = []

    def block(known):
        seen.append(known)
        return np.full((4, 5, 2), float(len(seen)), dtype=np.float32), {}

    forecast, bounds = forecast_further(block, city, 12)
    assert forecast[0, :, 0].tolist() == [1.0] * 5 + [2.0] * 5 + [3.0] * 2
    assert bounds == {}
    assert [known.num_steps - city.num_steps for known in seen] == [0, 5, 10]
    assert seen[2].activity[-6:, 1, 0, 0].tolist() == [1] + [2] * 5


@pytest.mark.parametrize("horizon", [0, -1, 2.5, True, "6"])
def test_a_horizon_is_a_whole_number(city, horizon):
    with pytest.raises(ConfigError, match=r"horizon is .*; it must be an integer of at least 1"):
        Forecaster(model="persistence").fit(city).predict(horizon=horizon)


def test_a_service_that_lacks_is_nan_and_the_others_are_forecast(city):
    fitted = Forecaster(horizon=3, model="seasonal-naive-day").fit(city)
    out = fitted.predict(city.select_services(["internet"]), levels=(80,))
    assert out[out.service == "call"].y_hat.isna().all()
    expected = fitted.predict(levels=(80,))
    pd.testing.assert_frame_equal(out[out.service == "internet"], expected[expected.service == "internet"])
    with pytest.raises(DataError, match="has none of the services call, internet; it has video"):
        fitted.predict(city.select_services(["call"]).with_(services=("video",)))


def test_the_shipped_weights_keep_the_traffic_and_go_further(city):
    place = city.select_services(["internet"]).slice_steps(0, 30)
    place = place.with_(activity=place.activity[:, :, :1, :1], mask=place.mask[:1, :1], cell_id=place.cell_id[:1, :1])
    network = Forecaster.pretrained(horizon=2).update(place)
    assert network.dataset.num_steps == 30
    out = network.predict(horizon=26)  # 24 of them at once, the horizon that they have learned
    assert len(out) == 26
    assert out.y_hat.notna().all()
