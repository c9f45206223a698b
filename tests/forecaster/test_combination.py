"""The companions of a network: learned only from before the origin, and weighted by how much they would have helped."""

from __future__ import annotations

import numpy as np
import pytest

from simmst.data import TrafficDataset
from simmst.evaluation import ModelPredictor
from simmst.forecaster.combination import CombinedPredictor, InContextPredictor
from simmst.forecaster.companions import DaysBefore
from simmst.forecaster.fitting import gained
from simmst.forecaster.zero_shot import ZeroShotPredictor
from simmst.pretrained import load_pretrained

HORIZON = 3
MONDAY = np.datetime64("2024-01-01T00:00:00")


def series(days, *, seed=0, weekly=True):
    """Two places with a value for each hour of the week, or of the day, that is the same every time."""
    table = np.random.default_rng(seed).uniform(10, 500, (168 if weekly else 24, 2))
    noise = np.random.default_rng(seed + 1).uniform(0.98, 1.02, (24 * days, 2))
    values = np.tile(table, (days * 24 // len(table) + 1, 1))[: 24 * days] * noise
    time = MONDAY + np.arange(24 * days) * np.timedelta64(3600, "s")
    return TrafficDataset.from_arrays(
        values[:, None, None], time, services=["internet"], timezone="UTC", country=None, geometry="points"
    )


@pytest.fixture(scope="module")
def shipped():
    return ZeroShotPredictor(load_pretrained(), HORIZON)


@pytest.fixture(scope="module")
def alone():
    return ZeroShotPredictor(load_pretrained(), HORIZON, combine=False)


def error(predictor, city, origins):
    truth = np.stack([city.series()[origins + step, 0] for step in range(HORIZON)], axis=2)
    return float(np.abs(predictor.predict(city, origins)[..., 0] - truth).mean())


def test_a_week_that_repeats_is_learned_where_the_network_cannot_know_it(shipped, alone):
    city = series(29)
    origins = np.arange(28 * 24, 28 * 24 + 20)
    assert error(shipped, city, origins) < 0.6 * error(alone, city, origins)
    weights = shipped.on(city, origins).companions.weights
    assert weights.shape == (HORIZON, 1, 4)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert (weights[..., 0] < 0.5).all()


@pytest.mark.parametrize(("horizon", "windows"), [(1, 16_384), (6, 8_192), (24, 4_096)])
def test_a_short_horizon_learns_from_more_windows(monkeypatch, horizon, windows):
    class EnoughError(Exception):
        pass

    def learn(features, network, origin, per_day):
        assert len(network) == len(origin) == len(features[0].target) == windows
        assert network.shape[1] == horizon
        raise EnoughError

    monkeypatch.setattr(DaysBefore, "learn", learn)
    hours = MONDAY + np.arange(4 * 24) * np.timedelta64(3600, "s")
    values = np.random.default_rng(0).uniform(10, 500, (len(hours), 1, 18, 18))
    city = TrafficDataset.from_arrays(values, hours, services=["internet"], timezone="UTC", country=None)
    with pytest.raises(EnoughError):
        ZeroShotPredictor(load_pretrained(), horizon).on(city, np.array([len(hours)]))


def test_nothing_at_or_after_the_first_origin_is_learned_from(shipped):
    city, first = series(16), 14 * 24
    changed = city.activity.copy()
    changed[first:] *= 50
    origins = np.array([first, first + 5])
    one, two = shipped.on(city, origins), shipped.on(city.with_(activity=changed), origins)
    assert np.array_equal(one.companions.weights, two.companions.weights)
    assert one.stretch == two.stretch
    np.testing.assert_array_equal(
        one.predict(city, origins[:1]), two.predict(city.with_(activity=changed), origins[:1])
    )


def test_noise_leaves_the_network_its_say(shipped):
    rng = np.random.default_rng(0)
    time = MONDAY + np.arange(24 * 6) * np.timedelta64(3600, "s")
    values = rng.uniform(10, 500, (24 * 6, 1, 1, 2))
    city = TrafficDataset.from_arrays(values, time, services=["internet"], geometry="points", timezone="UTC")
    weights = shipped.on(city, np.array([city.num_steps])).companions.weights
    assert (weights[..., 0] > 0.4).all()


def test_a_kind_of_day_never_seen_is_the_networks(shipped, alone):
    """Saturday follows Monday to Friday; what was learned from working days does not apply to it."""
    city = series(5, weekly=False)
    saturday = np.array([city.num_steps])
    found = shipped.on(city, saturday)
    assert isinstance(found, CombinedPredictor)
    assert (found.companions.weights[..., 0] < 1).all()
    np.testing.assert_allclose(found.predict(city, saturday), alone.predict(city, saturday), rtol=1e-5)


@pytest.mark.parametrize("hours", [2, 5, 26])
def test_too_few_hours_leave_the_network_alone(shipped, hours):
    city = series(2).slice_steps(0, hours)
    assert type(shipped.on(city, np.array([hours]))) is ModelPredictor
    assert np.isfinite(shipped.predict(city, np.array([hours]))).all()


def test_quantiles_are_moved_with_the_median(shipped):
    city = series(21)
    origins = np.array([20 * 24])
    quantiles = shipped.quantiles(city, origins, (0.1, 0.5, 0.9))
    assert (np.diff(quantiles, axis=-1) >= 0).all()
    np.testing.assert_allclose(quantiles[..., 1], shipped.predict(city, origins), rtol=1e-4)


def test_a_fitted_network_is_combined_at_each_call(shipped):
    city, origins = series(22), np.arange(21 * 24, 21 * 24 + 5)
    plain = shipped.alone(city, range(14 * 24))
    combined = InContextPredictor(plain.model, plain.scaler, plain.spec, stretch=1.3)
    assert error(combined, city, origins) < error(plain, city, origins)
    assert combined.on(city, origins).stretch == 1.3
    low, high = np.moveaxis(combined.quantiles(city, origins, (0.1, 0.9)), -1, 0)
    assert (low < high).all()


def ten_minutes(slots, *, seed=0):
    """Two places that swing in two hours, which no day before tells and the latest slots do, with a little noise."""
    t = np.arange(slots)[:, None]
    swing = 300 + 200 * np.sin(2 * np.pi * t / 12 + np.array([0.0, 2.0]))
    values = swing * np.random.default_rng(seed).uniform(0.98, 1.02, (slots, 2))
    time = MONDAY + np.arange(slots) * np.timedelta64(600, "s")
    return TrafficDataset.from_arrays(
        values[:, None, None], time, services=["internet"], timezone="UTC", country=None, geometry="points"
    )


def test_one_day_of_fine_slots_brings_an_autoregression(shipped, alone):
    city, origins = ten_minutes(170), np.arange(144, 160)
    found = shipped.on(city, origins)
    weights = found.companions.weights
    assert weights.shape == (HORIZON, 1, 2)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert (weights[..., 1] > 0.5).all()
    assert error(shipped, city, origins) < 0.4 * error(alone, city, origins)


def test_the_autoregression_knows_nothing_from_the_first_origin_on(shipped):
    city, first = ten_minutes(170), 144
    changed = city.activity.copy()
    changed[first:] *= 50
    one, two = (shipped.on(of, np.array([first, first + 5])) for of in (city, city.with_(activity=changed)))
    assert np.array_equal(one.companions.weights, two.companions.weights)
    assert np.array_equal(one.companions.learned.line.coefficients, two.companions.learned.line.coefficients)


def test_without_its_last_value_a_window_is_the_networks(shipped, alone):
    city = ten_minutes(170)
    gap = city.activity.copy()
    gap[149, ..., 0] = np.nan
    city, origins = city.with_(activity=gap), np.array([150])
    assert isinstance(shipped.on(city, np.array([144])), CombinedPredictor)
    found = shipped.on(city, np.array([144])).predict(city, origins)
    network = alone.on(city, np.array([144])).predict(city, origins)
    np.testing.assert_allclose(found[:, 0], network[:, 0], rtol=1e-5)
    assert (np.abs(found[:, 1] / network[:, 1] - 1) > 1e-3).any()


@pytest.mark.parametrize(("slots", "kind"), [(75, ModelPredictor), (76, CombinedPredictor)])
def test_an_autoregression_takes_24_slots_to_learn_from(shipped, slots, kind):
    """A half of 38 slots: 12 go before, and a window of three steps ends with the half."""
    assert type(shipped.on(ten_minutes(100), np.array([slots]))) is kind


@pytest.mark.parametrize(
    ("score", "days", "better"),
    [(0.94, 7, True), (0.96, 7, False), (0.94, 1, False), (0.85, 1, True), (0.6, 1 / 24, False), (0.49, 1 / 24, True)],
)
def test_weights_must_beat_the_shipped_ones_by_more_on_a_shorter_validation(score, days, better):
    assert gained(score, 1.0, days) is better
