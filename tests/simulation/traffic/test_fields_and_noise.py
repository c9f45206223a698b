from __future__ import annotations

import numpy as np
import pytest

from simmst.simulation import CityConfig
from simmst.simulation.fields import fast_length, gaussian_fields
from simmst.simulation.traffic.noise import bursts, slot_averages


def test_fields_have_unit_variance_and_fall_off_exponentially():
    fields = gaussian_fields(np.random.default_rng(0), 24, 32, 4.0, count=400).astype(np.float64)
    assert fields.mean() == pytest.approx(0.0, abs=0.05)
    assert (fields**2).mean() == pytest.approx(1.0, abs=0.06)
    for lag in (1, 4, 8):
        expected = np.exp(-lag / 4.0)
        assert (fields[:, lag:] * fields[:, :-lag]).mean() == pytest.approx(expected, abs=0.08)
        assert (fields[:, :, lag:] * fields[:, :, :-lag]).mean() == pytest.approx(expected, abs=0.08)


def test_fields_are_independent_and_their_edges_unrelated():
    fields = gaussian_fields(np.random.default_rng(0), 16, 16, 3.0, count=600)
    assert abs(float((fields[::2] * fields[1::2]).mean())) < 0.05
    assert abs(float((fields[:, 0] * fields[:, -1]).mean())) < 0.08


def test_periodic_fields_close_on_themselves():
    fields = gaussian_fields(np.random.default_rng(0), 16, 20, 3.0, count=600, periodic=True)
    assert float((fields[:, 0] * fields[:, -1]).mean()) > 0.6


@pytest.mark.parametrize("minimum", [1, 7, 11, 97, 101])
def test_fast_lengths_have_small_factors(minimum):
    length = fast_length(minimum)
    assert length >= minimum
    for prime in (2, 3, 5):
        while length % prime == 0:
            length //= prime
    assert length == 1


def correlation(series, lag):
    return float((series[:-lag] * series[lag:]).mean() / (series**2).mean())


def test_ten_minute_noise_summed_to_hours_is_the_hourly_noise():
    hours = 4.0
    fine = slot_averages(np.random.default_rng(0), 6 * 400, 300, (1 / 6) / hours).astype(np.float64)
    coarse = slot_averages(np.random.default_rng(1), 400, 300, 1 / hours).astype(np.float64)
    summed = fine.reshape(400, 6, 300).mean(axis=1)
    assert summed.std() == pytest.approx(coarse.std(), rel=0.02)
    for lag in (1, 2, 6):
        assert correlation(summed, lag) == pytest.approx(correlation(coarse, lag), abs=0.02)
    # The correlation time is the configured one at either slot length.
    assert correlation(fine, 24) == pytest.approx(np.exp(-1), abs=0.02)
    assert correlation(coarse, 5) / correlation(coarse, 1) == pytest.approx(np.exp(-1), abs=0.03)


@pytest.mark.parametrize("ratio", [1e-4, 0.02, 1.0, 20.0])
def test_noise_is_stationary_with_the_variance_of_an_average(ratio):
    series = slot_averages(np.random.default_rng(0), 40, 20000, ratio).astype(np.float64)
    expected = 2 * (ratio - 1 + np.exp(-ratio)) / ratio**2
    assert series[0].var() == pytest.approx(expected, rel=0.05)
    assert series[-1].var() == pytest.approx(expected, rel=0.05)


def test_bursts_conserve_their_load_whatever_the_step():
    load = {}
    for step in (10, 60):
        config = CityConfig(
            days=30, step_minutes=step, burst_rate_per_sector_hour=0.02, burst_pareto_alpha=5.0, burst_duration_h=0.7
        )
        factors = bursts(config, np.random.default_rng(0), 200)
        assert len(factors) == 3
        assert all(factor.shape == (200, config.num_steps) and factor.min() >= 1 for factor in factors)
        load[step] = np.mean([(factor - 1).sum() for factor in factors]) * config.step_h
    assert load[10] == pytest.approx(load[60], rel=0.1)
    # Half of the bursts reach a given service of three: its own bursts and those that affect all services.
    assert load[60] == pytest.approx(0.02 * 200 * 720 / 2 * 0.7 * 0.8 * 1.25, rel=0.1)
