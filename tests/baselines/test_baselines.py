from __future__ import annotations

import numpy as np
import pytest

from simmst.baselines import BASELINES, GradientBoosting, MovingAverage, RidgeOnLags
from simmst.baselines.memory_features import memory_features, memory_windows
from simmst.data import Scaler, TrafficDataset, WindowSpec, chronological_split, load
from simmst.errors import DataError

pytest.importorskip("sklearn")
pytest.importorskip("holidays")

NAMES = list(BASELINES)
LEARNERS = ["ridge", "gradient-boosting"]
SPEC = WindowSpec.recent(6, 12, daily=2, steps_per_day=24, neighbourhood=1)


def city(days=28, seed=0, **kwargs):
    generator = np.random.default_rng(seed)
    steps = days * 24
    daily = 60 + 50 * np.sin(np.arange(steps) * 2 * np.pi / 24)[:, None, None, None]
    values = daily * generator.uniform(0.5, 2, (1, 2, 3, 4)) * generator.gamma(50, 0.02, (steps, 2, 3, 4))
    mask = np.ones((3, 4), dtype=bool)
    mask[1, 2] = False
    options = {"mask": mask, "timezone": "Europe/Rome", "services": ["call", "sms"]} | kwargs
    return TrafficDataset.from_arrays(values, 1_383_260_400 + np.arange(steps) * 3600, **options)


def fitted(name, data, spec=SPEC, train=None):
    return BASELINES[name]().fit(data, spec, train or range(data.num_steps * 2 // 3))


def test_registry():
    assert NAMES == [
        "persistence",
        "seasonal-naive-day",
        "seasonal-naive-week",
        "hour-of-week-mean",
        "moving-average",
        "ridge",
        "ridge-lags",
        "gradient-boosting",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_shape_type_and_order_of_cells(name):
    data = city()
    forecast = fitted(name, data).predict(data, np.array([500, 600, data.num_steps]))
    assert forecast.shape == (3, 11, 6, 2)
    assert forecast.dtype == np.float32
    assert np.isfinite(forecast).all()
    # Cells differ in level by up to four times, so a wrong order shows.
    assert np.corrcoef(forecast.mean(axis=(0, 2))[:, 0], data.series()[:, 0].mean(axis=0))[0, 1] > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_nothing_at_or_after_the_origin_is_read(name):
    data = city()
    model = fitted(name, data, train=range(400))
    changed = data.activity.copy()
    changed[500:] = 1e5
    expected = model.predict(data, np.array([450, 500]))
    np.testing.assert_array_equal(model.predict(data.with_(activity=changed), np.array([450, 500])), expected)
    # ... and nothing outside training while fitting.
    changed = data.activity.copy()
    changed[400:] = 1e5
    late = fitted(name, data.with_(activity=changed), train=range(400))
    np.testing.assert_array_equal(late.predict(data, np.array([450, 500])), expected)


@pytest.mark.parametrize("name", NAMES)
def test_missing_values(name):
    data = city()
    activity = data.activity.copy()
    activity[np.random.default_rng(1).random(activity.shape) < 0.3] = np.nan
    activity[:, 1, 0, 0] = np.nan  # nothing is known about this cell and service
    activity[470:500, 0, 2, 3] = np.nan  # the whole window of one origin
    holes = data.with_(activity=activity)
    forecast = fitted(name, holes).predict(holes, np.array([500, 600]))
    assert np.isnan(forecast[:, 0, :, 1]).all()
    assert np.isnan(forecast).sum() == 2 * 6


def test_persistence_repeats_the_last_known_value():
    data = city()
    activity = data.activity.copy()
    activity[498:500, 0, 0, 1] = np.nan
    forecast = fitted("persistence", data).predict(data.with_(activity=activity), np.array([500]))
    np.testing.assert_array_equal(forecast[0, 1, :, 0], np.full(6, activity[497, 0, 0, 1]))
    np.testing.assert_array_equal(forecast[0, 1, :, 1], np.full(6, activity[499, 1, 0, 1]))


def test_seasonal_naive_takes_the_newest_same_slot_before_the_origin():
    data = TrafficDataset.from_arrays(np.arange(28 * 24.0), np.arange(28 * 24) * 3600)
    spec = WindowSpec(30, (-1,))
    day = fitted("seasonal-naive-day", data, spec).predict(data, np.array([500]))[0, 0, :, 0]
    assert day.tolist() == [476 + h for h in range(24)] + [476 + h for h in range(6)]
    week = fitted("seasonal-naive-week", data, spec).predict(data, np.array([500]))[0, 0, :, 0]
    assert week.tolist() == [332 + h for h in range(30)]
    early = fitted("seasonal-naive-week", data, spec).predict(data, np.array([10]))[0, 0, :, 0]
    assert early.tolist() == [9] * 30  # no week before: the last value


def test_seasonal_naive_goes_another_period_back_over_a_gap():
    values = np.arange(28 * 24.0)
    values[476] = np.nan
    data = TrafficDataset.from_arrays(values, np.arange(28 * 24) * 3600)
    day = fitted("seasonal-naive-day", data, WindowSpec(2, (-1,))).predict(data, np.array([500]))[0, 0, :, 0]
    assert day.tolist() == [452, 477]


def test_moving_average_is_the_mean_of_as_many_slots_as_training_chooses():
    noisy = np.random.default_rng(0).normal(100, 10, 14 * 24)  # no slot predicts the next, so the longest mean is best
    wandering = 1000 + np.cumsum(noisy - 100)  # the next slot is like the last
    data = TrafficDataset.from_arrays(np.stack([noisy, wandering], axis=1)[:, None], np.arange(14 * 24) * 3600)
    for cell, slots in ((0, 24), (1, 2)):
        alone = TrafficDataset.from_arrays(data.series()[:, 0, cell], np.arange(14 * 24) * 3600)
        model = fitted("moving-average", alone, WindowSpec(3, (-1,)))
        assert model.slots == slots
        expected = alone.series()[300 - slots : 300].mean()
        np.testing.assert_allclose(model.predict(alone, np.array([300]))[0, 0, :, 0], [expected] * 3, rtol=1e-5)


def test_moving_average_leaves_out_what_is_missing():
    values = np.arange(28 * 24.0)
    values[499] = np.nan
    data = TrafficDataset.from_arrays(values, np.arange(28 * 24) * 3600)
    model = MovingAverage(slots=3).fit(data, WindowSpec(1, (-1,)), range(400))
    assert model.predict(data, np.array([500, 1]))[:, 0, 0, 0].tolist() == [497.5, 0.0]
    with pytest.raises(DataError, match="slots is 0"):
        MovingAverage(slots=0)


def test_hour_of_week_mean_is_local_and_of_training_alone():
    data = city()
    forecast = fitted("hour-of-week-mean", data, train=range(14 * 24)).predict(data, np.array([500]))
    slots = [500 - 3 * 168, 500 - 2 * 168, 500 - 168]
    slots = [s for s in slots if 0 <= s < 14 * 24]
    np.testing.assert_allclose(forecast[0, :, 0], data.series()[slots].mean(axis=0).T, rtol=1e-5)


def test_hour_of_week_mean_follows_the_clock_change():
    # Activity by the local hour; clocks go back on 27 October 2013.
    start = int(np.datetime64("2013-10-01T22:00:00", "s").astype(np.int64))  # 00:00 local in summer
    steps = 40 * 24
    hour = (np.arange(steps) - (np.arange(steps) >= 25 * 24 + 3)) % 24
    data = TrafficDataset.from_arrays(hour.astype(float), start + np.arange(steps) * 3600)
    model = fitted("hour-of-week-mean", data, train=range(21 * 24))
    origin = 30 * 24
    np.testing.assert_allclose(model.predict(data, np.array([origin]))[0, 0, :, 0], hour[origin : origin + 6])


def test_hour_of_week_mean_falls_back_to_the_hour_of_day_then_to_all():
    data = city()
    model = fitted("hour-of-week-mean", data, train=range(3 * 24))
    forecast = model.predict(data, np.array([5 * 24]))
    np.testing.assert_allclose(forecast[0, :, 0], data.series()[[0, 24, 48]].mean(axis=0).T, rtol=1e-5)
    model = fitted("hour-of-week-mean", data, train=range(6))
    forecast = model.predict(data, np.array([5 * 24 + 12]))
    np.testing.assert_allclose(forecast[0, :, 0], data.series()[:6].mean(axis=0).T, rtol=1e-5)


@pytest.mark.parametrize("name", LEARNERS)
def test_learners_find_what_there_is_to_find(name):
    data = city()
    truth = data.series()
    origins = np.arange(460, data.num_steps - 6)
    learner = fitted(name, data, train=range(448)).predict(data, origins)
    naive = fitted("seasonal-naive-day", data, train=range(448)).predict(data, origins)
    target = np.stack([truth[origins + h] for h in range(6)], axis=1).transpose(0, 3, 1, 2)
    assert np.abs(learner - target).mean() < 0.85 * np.abs(naive - target).mean()


@pytest.mark.parametrize("kind", [RidgeOnLags, GradientBoosting])
def test_learners_draw_their_rows_from_the_seed(kind):
    data = city()
    runs = [
        kind(max_rows=500, seed=seed).fit(data, SPEC, range(400)).predict(data, np.array([500])) for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


@pytest.mark.parametrize("name", LEARNERS)
def test_learners_take_z_scores(name):
    data = city()
    z = TrafficDataset.from_arrays(
        data.activity - 80, data.time, services=data.services, unit="z-score", mask=data.mask
    )
    forecast = fitted(name, z).predict(z, np.array([500]))
    assert (forecast < 0).any()


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("slots", [1, 2, 30])
def test_learners_with_too_little_to_learn_from_forecast_the_mean_of_the_slot(name, slots):
    data = city()
    forecast = fitted(name, data, train=range(slots)).predict(data, np.array([500]))
    days = data.series()[500 - 24 * np.arange(1, 15), 0]  # (14, C)
    unit = 0.01 * float(data.series()[:slots, 0].mean())
    expected = np.expm1(np.log1p(days / unit).mean(axis=0)) * unit
    np.testing.assert_allclose(forecast[0, :, 0, 0], expected, rtol=1e-3)


@pytest.mark.parametrize("name", LEARNERS)
def test_without_a_day_before_learners_forecast_the_newest_value(name):
    data = city()
    forecast = fitted(name, data, train=range(400)).predict(data, np.array([5]))
    np.testing.assert_array_equal(forecast[0, :, 3], data.series()[4].T)


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("latest", [0.0, 1e7])
def test_learners_cannot_run_away(name, latest):
    """A dip to zero or a burst in every latest slot moves a forecast no further than values that training has seen."""
    data = city()
    model = fitted(name, data, train=range(400))
    plain = model.predict(data, np.array([500]))
    activity = data.activity.copy()
    activity[488:500] = latest
    shaken = model.predict(data.with_(activity=activity), np.array([500]))
    assert (shaken < 5 * plain).all()
    assert (shaken > plain / 5).all()


@pytest.mark.parametrize("name", LEARNERS)
def test_learners_with_two_days_are_not_worse_than_the_mean_of_the_slot(name, block):
    data = block.resample(60)
    origins = np.arange(data.num_steps - 168, data.num_steps - 23)
    truth = data.series()[:, 0]

    def error(model, step):
        forecast = model.fit(data, WindowSpec(24, (-1,)), range(48)).predict(data, origins)
        return float(np.abs(forecast[:, :, step - 1, 0] - truth[origins + step - 1]).mean())

    for step in (1, 6, 24):
        assert error(BASELINES[name](), step) < 1.1 * error(RidgeOnLags(np.inf), step)


@pytest.mark.parametrize("name", LEARNERS)
def test_slots_of_a_day_and_long_horizons(name):
    random = np.random.default_rng(0)
    daily = TrafficDataset.from_arrays(random.gamma(20, 1, (60, 1, 3, 1)), np.arange(60) * 86400, services=["net"])
    assert np.isfinite(fitted(name, daily, WindowSpec(2, (-1,))).predict(daily, np.array([60]))).all()
    hourly = TrafficDataset.from_arrays(random.gamma(20, 1, (240, 1, 2, 1)), np.arange(240) * 3600, services=["net"])
    assert np.isfinite(fitted(name, hourly, WindowSpec(30, (-1,))).predict(hourly, np.array([240]))).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("origin", [0, -1, 673])
def test_origins_outside_the_series(name, origin):
    data = city()
    with pytest.raises(DataError, match=f"origin {origin} is outside 1..672"):
        fitted(name, data).predict(data, np.array([500, origin]))


@pytest.mark.parametrize("name", ["hour-of-week-mean", "ridge", "gradient-boosting"])
def test_bad_training_and_other_cells(name):
    data = city()
    with pytest.raises(DataError, match=r"range\(0, 700\) of traffic, which has 672"):
        fitted(name, data, train=range(700))
    other = data.with_(mask=np.ones((3, 4), dtype=bool))
    with pytest.raises(DataError, match="fitted to 2 services and 11 cells, traffic has 2 and 12"):
        fitted(name, data).predict(other, np.array([500]))


def errors(name, data, spec, horizons):
    test = chronological_split(data.num_steps, data.steps_per_day).test
    origins = np.arange(test.start, test.stop - spec.horizon + 1)
    forecast = BASELINES[name]().fit(data, spec, range(test.start)).predict(data, origins)
    truth = data.series()[:, 0]
    return [float(np.abs(forecast[:, :, h - 1, 0] - truth[origins + h - 1]).mean()) for h in horizons]


@pytest.fixture
def block(real_file):
    return load(real_file("milan_block5x5_internet_10min.npz"))


def test_figures_on_the_milan_block_hourly(block):
    """MAE in CDR units over the last 7 days, one, six and 24 hours ahead."""
    data = block.resample(60)
    spec = WindowSpec.recent(24, 24, daily=3, weekly=1, steps_per_day=24)
    assert errors("persistence", data, spec, (1, 6, 24)) == pytest.approx([161.2, 507.5, 231.6], abs=0.1)
    assert errors("seasonal-naive-week", data, spec, (1, 6, 24)) == pytest.approx([222.9, 221.5, 213.9], abs=0.1)
    assert errors("ridge", data, spec, (1, 6, 24)) == pytest.approx([117.4, 158.0, 173.3], abs=2)
    # The validation days may choose 20 trees or 120 for a difference of rounding, as between AVX2 and AVX-512.
    assert errors("gradient-boosting", data, spec, (1, 6, 24)) == pytest.approx([131, 156, 179], abs=5)


def test_figures_on_the_milan_block_at_ten_minutes(block):
    spec = WindowSpec.recent(6, 12, daily=3, weekly=1, steps_per_day=144)
    assert errors("persistence", block, spec, (1, 3, 6)) == pytest.approx([25.9, 31.4, 37.3], abs=0.1)
    assert errors("ridge", block, spec, (1, 3, 6)) == pytest.approx([22.3, 25.8, 28.0], abs=0.5)


def test_features_are_bounded():
    data = city(days=9)
    activity = data.activity.copy()
    activity[150:153] = 3e4
    activity[170] = 0
    data = data.with_(activity=activity)
    windows = memory_windows(data, Scaler.fit(data, range(data.num_steps), "relative"), 2, range(160, 200))
    features = memory_features(windows.batch(np.arange(len(windows))), 0)
    assert np.abs(features.window).max() == 5
    assert np.abs(features.ahead).max() == 5


def test_a_forecast_stays_within_the_differences_seen():
    class Runaway(RidgeOnLags):
        def _differences(self, service, features):
            return np.full_like(features.usual, 1e6 * (1 - 2 * service))

    data = city(days=9)
    windows = memory_windows(data, Scaler.fit(data, range(data.num_steps), "relative"), 2, range(48, 200))
    index = np.arange(len(windows))
    features = [memory_features(windows.batch(index), service) for service in range(2)]
    model = Runaway().learn(features, windows.origins[index // windows.num_cells], 24)
    for service, pick in enumerate((np.nanmax, np.nanmin)):
        off = model.forecast(service, features[service]) - features[service].usual
        bound = pick(features[service].target, axis=0)
        assert (np.abs(off) <= np.abs(bound) + 1e-4).all()
        assert np.abs(off).max() > 0
