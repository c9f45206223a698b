from __future__ import annotations

import numpy as np
import pytest

from simmst.data import Scaler, TrafficDataset, Windows, WindowSpec
from simmst.errors import ConfigError, DataError
from simmst.evaluation import ErrorQuantiles
from simmst.evaluation.intervals import checked_level

SPEC = WindowSpec.recent(2, 3, steps_per_day=24, neighbourhood=1)
LEVEL = np.array([20.0, 300.0])


class Median:
    """Forecasts every cell and slot with its service's median, and counts the forecasts."""

    def __init__(self):
        self.origins = []

    def predict(self, dataset, origins):
        self.origins.append(np.asarray(origins))
        shape = (len(origins), dataset.num_cells, SPEC.horizon, 2)
        return np.broadcast_to(LEVEL, shape).astype(np.float32)


def noise(slots, *, seed=0, side=4, spread=(0.2, 0.6)):
    """Independent log-normal noise around the median, wider for the second service."""
    random = np.random.default_rng(seed)
    normal = random.normal(size=(slots, 2, side, side)) * np.array(spread)[:, None, None]
    activity = LEVEL[:, None, None] * np.exp(normal)
    return TrafficDataset.from_arrays(activity, np.arange(slots) * 3600, services=["call", "net"], timezone="UTC")


def windows(dataset, start=100, **attributes):
    scaler = Scaler.fit(dataset, range(start), **attributes)
    return Windows(dataset, SPEC, scaler, steps=range(start, dataset.num_steps))


@pytest.mark.parametrize("limit", [None, 4096, 1600])
@pytest.mark.parametrize("kind", ["log", "linear"])
def test_coverage(limit, kind):
    """For each service and step ahead, the nominal share of fresh values is inside the interval."""
    predictor = Median()
    errors = ErrorQuantiles.measure(predictor, windows(noise(900), kind=kind), limit=limit)
    fresh = noise(2000, seed=1).activity.transpose(0, 2, 3, 1).reshape(-1, 1, 2)  # (N, 1, K)
    forecast = np.broadcast_to(LEVEL, (1, 2, 2)).astype(np.float32)
    for level in (50, 80, 95):
        low, high = errors.interval(forecast, level)
        inside = ((fresh >= low) & (fresh <= high)).mean(axis=0)  # (T_out, K)
        # the share among n calibration errors has a standard deviation of sqrt(p (1 - p) / n), with n at least 1,600
        np.testing.assert_allclose(inside, level / 100, atol=0.04)


def test_finite_sample_quantile():
    """With 9 errors the 80 % quantile is the 8th smallest: ceil((9 + 1) 0.8)."""
    data = noise(111, side=1)
    made = windows(data)
    assert len(made) == 10
    errors = ErrorQuantiles.measure(Median(), made)
    scaler = made.scaler
    target = scaler.transform(made.raw_target(np.arange(10)), -1)
    expected = np.sort(np.abs(target - scaler.transform(LEVEL[None, None], -1)), axis=0)
    np.testing.assert_allclose(errors.values[79], expected[8], rtol=1e-5)
    np.testing.assert_allclose(errors.values[9], expected[1], rtol=1e-5)
    np.testing.assert_allclose(errors.values[98], expected[9], rtol=1e-5)


def test_at_most_that_many_windows_are_forecast_evenly_spaced():
    predictor = Median()
    made = windows(noise(600))
    assert len(made) > 4096
    ErrorQuantiles.measure(predictor, made)
    (origins,) = predictor.origins
    assert len(origins) == 4096 // 16
    gaps = np.diff(origins)
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1
    assert origins[0] - made.origins[0] < gaps.max()
    assert made.origins[-1] - origins[-1] < gaps.max()


def test_the_limit_and_its_ends():
    made = windows(noise(200))
    for limit, expected in ((None, 99), (99 * 16, 99), (1, 1), (16, 1), (47, 2)):
        predictor = Median()
        ErrorQuantiles.measure(predictor, made, limit=limit)
        assert len(predictor.origins[0]) == expected
    with pytest.raises(ConfigError, match="limit is 0"):
        ErrorQuantiles.measure(Median(), made, limit=0)


def test_targets_are_those_of_the_origins_forecast():
    """A predictor that knows the truth makes no error, for any windows that are drawn."""
    data = noise(300)

    class Oracle:
        def predict(self, dataset, origins):
            cells = dataset.activity[:, :, dataset.mask]  # (T, K, C)
            ahead = cells[np.asarray(origins)[:, None] + np.arange(SPEC.horizon)]
            return ahead.transpose(0, 3, 1, 2)

    assert ErrorQuantiles.measure(Oracle(), windows(data), limit=100).values.max() == 0.0


def test_wider_with_the_level_and_around_the_forecast():
    errors = ErrorQuantiles.measure(Median(), windows(noise(300)))
    forecast = np.random.default_rng(3).uniform(0, 500, (40, 2, 2)).astype(np.float32)
    low, high = zip(*(errors.interval(forecast, level) for level in (1, 50, 99)), strict=True)
    for narrow, wide in ((0, 1), (1, 2)):
        assert (low[wide] <= low[narrow]).all()
        assert (high[wide] >= high[narrow]).all()
    assert (low[0] <= forecast).all()
    assert (high[0] >= forecast).all()
    assert (low[2] >= 0).all()


def test_the_forecast_is_inside_even_where_rounding_moves_it():
    scaler = Scaler("log", np.array([5.0]), np.array([2.0]))
    errors = ErrorQuantiles(np.zeros((99, 1, 1), np.float32), scaler)
    forecast = np.geomspace(1e-3, 1e6, 5000, dtype=np.float32).reshape(-1, 1, 1)
    low, high = errors.interval(forecast, 80)
    assert (low <= forecast).all()
    assert (high >= forecast).all()
    np.testing.assert_allclose(low, high, rtol=1e-4, atol=1e-5)


def test_missing_targets_are_left_out():
    data = noise(300)
    holed = data.activity.copy()
    holed[::2, 0] = np.nan
    made, whole = windows(data.with_(activity=holed)), windows(data)
    holes = ErrorQuantiles.measure(Median(), made)
    assert np.isfinite(holes.values).all()
    np.testing.assert_allclose(holes.values[:95], ErrorQuantiles.measure(Median(), whole).values[:95], atol=0.6)
    holed[100:, 0] = np.nan
    values = ErrorQuantiles.measure(Median(), windows(data.with_(activity=holed))).values
    assert np.isnan(values[..., 0]).all(), "nothing was observed"
    assert np.isfinite(values[..., 1]).all()


def test_no_windows():
    class Empty:
        def __len__(self):
            return 0

    with pytest.raises(DataError, match="no window to measure errors on"):
        ErrorQuantiles.measure(Median(), Empty())


@pytest.mark.parametrize("level", [0, 100, 0.5, 80.5, "80", True, None])
def test_levels_that_are_none(level):
    with pytest.raises(ConfigError, match="must be an integer between 1 and 99, in percent"):
        checked_level(level)


def test_levels():
    assert [checked_level(level) for level in (1, 80.0, np.int64(99))] == [1, 80, 99]
