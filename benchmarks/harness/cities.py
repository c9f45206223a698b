"""Traffic for forecasts, made by a few formulas instead of the simulator, which is not what these benchmarks time."""

from __future__ import annotations

import numpy as np

from simmst.data import TrafficDataset


def hourly_city(*, days: int, side: int, seed: int = 0) -> TrafficDataset:
    """Return a repeating day and week, in three services of a square of cells, with noise and a few gaps."""
    random = np.random.default_rng(seed)
    hours = np.arange(24 * days)
    day = 1.4 + np.sin(2 * np.pi * (hours % 24 - 9) / 24) - 0.3 * (hours // 24 % 7 >= 5)
    usual = (random.lognormal(4.0, 1.0, (3, side, side)) * day[:, None, None, None]).astype(np.float32)
    activity = random.standard_gamma(20.0, usual.shape, dtype=np.float32)
    activity *= usual / np.float32(20.0)
    activity[random.random(activity.shape, dtype=np.float32) < np.float32(0.002)] = np.nan
    start = np.datetime64("2024-01-01T00:00:00", "s").astype(np.int64)
    return TrafficDataset.from_arrays(
        activity, start + 3600 * hours, services=["call", "sms", "internet"], timezone="Europe/Rome", country="IT"
    )
