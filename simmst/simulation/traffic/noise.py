"""Randomness in time: correlated noise whose law does not depend on the slot length, and bursts."""

from __future__ import annotations

import itertools

import numpy as np

from simmst.simulation.config import CityConfig

MAX_BURST_GAIN = 30.0
HOURS_PER_WEEK = 168.0
DRIFT_CORRELATION_H = 240.0


def slot_averages(rng: np.random.Generator, num_steps: int, count: int, step_over_correlation: float) -> np.ndarray:
    r"""Draw slot averages of independent Ornstein-Uhlenbeck processes of unit variance.

    A process with correlation :math:`e^{-|t| / \tau}`, averaged over slots of length :math:`x \tau`, has the
    covariances :math:`\gamma_0 = 2 (x - 1 + e^{-x}) / x^2` and :math:`\gamma_k = (1 - e^{-x})^2 e^{-(k - 1) x} / x^2`.
    An ARMA(1, 1) process with :math:`\rho = e^{-x}` has the same covariances, and is drawn here. So the mean of six
    ten-minute averages has the law of an hourly average, and the correlation time is the same at either slot length.

    Args:
        rng: source of randomness.
        num_steps: number of slots T.
        count: number of processes C.
        step_over_correlation: :math:`x`, the slot's length over the correlation time.

    Returns:
        float32 ``(T, C)``, stationary from the first slot on.

    Example:
        >>> slot_averages(np.random.default_rng(0), 24, 5, 0.25).shape
        (24, 5)
    """
    x = step_over_correlation
    decay = float(np.exp(-x))
    fall = -float(np.expm1(-x))
    variance = 2 * (x - fall) / x**2
    neighbour = (fall / x) ** 2
    # Moving-average part: its variance and lag-one covariance determine the innovation.
    residual = variance * (1 + decay**2) - 2 * decay * neighbour
    lagged = neighbour - decay * variance
    ratio = residual / (2 * lagged)
    theta = float(ratio - np.sqrt(ratio**2 - 1))
    innovation = lagged / theta
    noise = rng.standard_normal((num_steps, count), dtype=np.float32) * np.float32(np.sqrt(innovation))
    start = rng.standard_normal(count, dtype=np.float32) * np.float32(np.sqrt(max(variance - innovation, 0.0)))
    series = noise.copy()
    series[1:] += np.float32(theta) * noise[:-1]
    series[0] += start
    factor = np.float32(decay)
    for before, now in itertools.pairwise(series):
        now += factor * before
    return series


def slow_changes(config: CityConfig, rng: np.random.Generator, num_sectors: int) -> np.ndarray | None:
    """Draw changes of the sectors' levels over weeks: growth, drift, and sudden lasting changes.

    Args:
        config: the city.
        rng: source of randomness.
        num_sectors: number of sectors.

    Returns:
        Log levels, float32 ``(T, sectors)`` or ``(T, 1)``; the growth is zero in the middle of the series. None where
        there are no changes.

    Example:
        >>> slow_changes(CityConfig(days=1), np.random.default_rng(0), 4) is None
        True
    """
    habits, steps = config.habits, config.num_steps
    weeks = ((np.arange(steps) + 0.5) * config.step_h / HOURS_PER_WEEK).astype(np.float32)
    parts = []
    if habits.trend_per_week:
        parts.append(np.float32(habits.trend_per_week) * (weeks - weeks.mean())[:, None])
    if habits.drift_log_std:
        step = config.step_h / DRIFT_CORRELATION_H
        own, city = slot_averages(rng, steps, num_sectors, step), slot_averages(rng, steps, 1, step)
        parts.append(np.float32(habits.drift_log_std * np.sqrt(0.5)) * (own + city))
    if habits.level_changes_per_week:
        length = steps * config.step_h / HOURS_PER_WEEK
        count = int(rng.poisson(habits.level_changes_per_week * num_sectors * length))
        change = np.zeros((steps, num_sectors), np.float32)
        size = habits.level_change_log_std * rng.standard_normal(count)
        np.add.at(change, (rng.integers(steps, size=count), rng.integers(num_sectors, size=count)), size)
        parts.append(np.cumsum(change, axis=0))
    return sum(parts[1:], parts[0]) if parts else None


def bursts(config: CityConfig, rng: np.random.Generator, num_sectors: int) -> list[np.ndarray]:
    """Draw short surges of the load of single sectors, with Pareto heights.

    A burst affects one service or all of them; each of these cases is equally likely. It lasts for an exponential time
    and counts in each slot in proportion to the part of the slot that it covers.

    Args:
        config: the city.
        rng: source of randomness.
        num_sectors: number of sectors.

    Returns:
        For each service, the factor on the load, float32 ``(sectors, T)``, at least one.

    Example:
        >>> calm = CityConfig(days=1, burst_rate_per_sector_hour=0.0)
        >>> float(bursts(calm, np.random.default_rng(0), 4)[0].max())
        1.0
    """
    steps, kinds = config.num_steps, len(config.services)
    count = int(
        rng.poisson(config.habits.unrest * config.burst_rate_per_sector_hour * num_sectors * steps * config.step_h)
    )
    sector = rng.integers(num_sectors, size=count)
    kind = rng.integers(kinds + 1, size=count)
    start = rng.uniform(0, steps, count)
    longest = 6 * config.burst_duration_h
    end = start + np.minimum(rng.exponential(config.burst_duration_h, count), longest) / config.step_h
    gain = np.minimum(config.burst_gain * (1 + rng.pareto(config.burst_pareto_alpha, count)), MAX_BURST_GAIN)
    factors = [np.ones((num_sectors, steps), np.float32) for _ in range(kinds)]
    first = start.astype(np.int64)
    for later in range(int(longest / config.step_h) + 2):
        slot = first + later
        covered = np.minimum(end, slot + 1) - np.maximum(start, slot)
        alive = (covered > 0) & (slot < steps)
        for service, factor in enumerate(factors):
            mine = alive & ((kind == service) | (kind == kinds))
            np.add.at(factor, (sector[mine], slot[mine]), (gain * covered)[mine].astype(np.float32))
    return factors
