"""Forecasts further ahead than a forecaster was fitted for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from simmst.data import TrafficDataset

Floats = npt.NDArray[np.float32]
Bounds = tuple[Floats, Floats]
Block = Callable[[TrafficDataset], tuple[Floats, Mapping[int, Bounds]]]


def forecast_further(block: Block, dataset: TrafficDataset, horizon: int) -> tuple[Floats, dict[int, Bounds]]:
    """Forecast any number of slots after the end of a series with a forecaster of a fixed number of slots.

    The series is forecast block by block, each from the series and the forecasts before it, as if they had come true.
    The distance of a bound from the forecast combines two distances, that of the block itself and that of the last slot
    of the block before: it is the root of the sum of their squares, as for independent errors. If the horizon is
    shorter than a block, the forecast is the start of the first block.

    Args:
        block: function that returns the forecast (C, n, K) of the n slots after a series, and bounds of that shape by
            level.
        dataset: the series.
        horizon: number of slots to forecast.

    Returns:
        The forecast, float32 (C, horizon, K), and its bounds by level.

    Example:
        >>> city = TrafficDataset.from_arrays(np.ones(24), np.arange(24) * 3600)
        >>> one = np.ones((1, 1, 1), dtype=np.float32)
        >>> forecast, bounds = forecast_further(lambda known: (one, {80: (0 * one, 2 * one)}), city, 4)
        >>> forecast.ravel().tolist(), bounds[80][1].astype(float).round(2).ravel().tolist()
        ([1.0, 1.0, 1.0, 1.0], [2.0, 2.41, 2.73, 3.0])
    """
    parts: list[Floats] = []
    found: dict[int, list[Bounds]] = {}
    carried: dict[int, Floats] = {}  # (2, C, 1, K), distances of the last slot of the block before
    least = -np.inf if dataset.unit == "z-score" else 0.0
    known, done = dataset, 0
    while done < horizon:
        forecast, bounds = block(known)
        for level, (low, high) in bounds.items():
            distance = np.stack([forecast - low, high - forecast])  # (2, C, n, K)
            if level in carried:
                distance = np.sqrt(distance**2 + carried[level] ** 2)
                low = np.maximum(forecast - distance[0], np.minimum(forecast, least))
                high = forecast + distance[1]
            carried[level] = distance[:, :, -1:]
            found.setdefault(level, []).append((low, high))
        parts.append(forecast)
        done += forecast.shape[1]
        if done < horizon:
            known = _as_if_true(known, forecast)
    joined = {
        level: tuple(_first(side, horizon) for side in zip(*sides, strict=True)) for level, sides in found.items()
    }
    return _first(parts, horizon), {level: (low, high) for level, (low, high) in joined.items()}


def _first(parts: Sequence[Floats], horizon: int) -> Floats:
    """Join blocks (C, n, K), and return their first slots."""
    together: Floats = np.concatenate(parts, axis=1)[:, :horizon].astype(np.float32, copy=False)
    return together


def _as_if_true(dataset: TrafficDataset, forecast: Floats) -> TrafficDataset:
    """Return a series with a forecast (C, n, K) appended."""
    steps = forecast.shape[1]
    activity = np.full((steps, *dataset.activity.shape[1:]), np.nan, dtype=np.float32)
    activity[:, :, dataset.mask] = forecast.transpose(1, 2, 0)
    ahead = dataset.time[-1] + np.timedelta64(dataset.step_minutes * 60, "s") * np.arange(1, steps + 1)
    return dataset.with_(
        activity=np.concatenate([dataset.activity, activity]), time=np.concatenate([dataset.time, ahead])
    )
