"""Trees that correct a network: what they learn, and where they keep still."""

from __future__ import annotations

import numpy as np
import pytest

from simmst.baselines.memory_features import Features
from simmst.forecaster.correction import Correction

STEPS = 2
PER_DAY = 24


def windows(count, *, seed=0):
    """Windows with ten features; the network misses what a threshold on the first one adds, at the second step."""
    rng = np.random.default_rng(seed)
    window = rng.normal(size=(count, 10)).astype(np.float32)
    ahead = rng.normal(size=(count, STEPS, 5)).astype(np.float32)
    usual = rng.normal(4, 0.2, (count, STEPS)).astype(np.float32)
    network = usual + rng.normal(0, 0.1, (count, STEPS)).astype(np.float32)
    missed = np.stack([np.zeros(count), 0.5 * (window[:, 0] > 0)], axis=1).astype(np.float32)
    truth = network + missed + rng.normal(0, 0.02, (count, STEPS)).astype(np.float32)
    days = np.full((count, STEPS), 3)
    features = Features(window, ahead, usual, usual, usual, days, days, truth - usual)
    return features, network, truth


def learned(features, network, *, days=12):
    origin = np.arange(len(network)) % (days * PER_DAY)
    return Correction.learn([features], network[..., None], origin, PER_DAY)


def test_what_the_network_misses_is_added_at_the_step_that_misses_it():
    features, network, _ = windows(4000)
    new, forecast, truth = windows(500, seed=1)
    corrected = learned(features, network).forecast(0, new, forecast)
    assert corrected.dtype == np.float32
    before, after = (np.abs(one - truth).mean(axis=0) for one in (forecast, corrected))
    assert after[1] < 0.4 * before[1]  # twelve days of fifteen are believed
    assert after[0] < before[0] + 0.02


def test_few_days_are_believed_less():
    features, network, _ = windows(4000)
    many, few = (learned(features, network, days=days).forecast(0, features, network) for days in (12, 1))
    np.testing.assert_allclose((few - network) / (1 / 4), (many - network) / (12 / 15), rtol=0.01, atol=1e-5)


def test_corrections_stay_within_the_errors_seen():
    features, network, truth = windows(2000)
    new, forecast, _ = windows(300, seed=2)
    wild = new._replace(window=new.window * 1e6, ahead=new.ahead * 1e6)
    correction = learned(features, network).forecast(0, wild, forecast) - forecast
    errors = truth - network
    assert (correction >= errors.min() - 1e-5).all()
    assert (correction <= errors.max() + 1e-5).all()


def test_two_runs_are_equal_to_the_bit():
    features, network, _ = windows(2000)
    one, two = (learned(features, network).forecast(0, features, network) for _ in range(2))
    assert np.array_equal(one, two)


@pytest.mark.parametrize("count", [0, 49])
def test_fewer_than_a_hundred_samples_correct_nothing(count):
    features, network, _ = windows(count)
    new, forecast, _ = windows(20, seed=3)
    found = learned(features, network).forecast(0, new, forecast)
    assert np.array_equal(found, forecast)
    assert found is not forecast


def test_samples_without_a_target_are_not_learned_from():
    features, network, _ = windows(4000)
    spoiled = features.target.copy()
    spoiled[::2] = np.nan
    changed = features.window.copy()
    changed[::2] = 1e3
    gaps = learned(features._replace(target=spoiled), network)
    others = learned(features._replace(target=spoiled, window=changed), network)
    new, forecast, _ = windows(100, seed=4)
    assert np.array_equal(gaps.forecast(0, new, forecast), others.forecast(0, new, forecast))


def test_each_service_has_trees_of_its_own():
    features, network, _ = windows(3000)
    right = features._replace(target=network - features.usual)  # the network errs nowhere
    both = Correction.learn([features, right], np.stack([network, network], -1), np.arange(3000) % 288, PER_DAY)
    assert np.abs(both.forecast(0, features, network) - network).mean() > 0.05
    np.testing.assert_allclose(both.forecast(1, right, network), network, atol=1e-6)
