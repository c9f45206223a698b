"""The frame of a prediction, with one row per cell, slot and service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from simmst.data import TrafficDataset

if TYPE_CHECKING:
    import pandas

Bounds = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


def prediction_frame(
    dataset: TrafficDataset, forecast: npt.NDArray[np.float32], intervals: Mapping[int, Bounds]
) -> pandas.DataFrame:
    """Return a forecast of the slots after a series as a frame of the library that the series came in.

    Args:
        dataset: the series.
        forecast: float32 (C, T_out, K), raw units, cells in the order of `dataset.cells`.
        intervals: lower and upper bounds by level in percent, with the shape of the forecast.

    Returns:
        unique_id, ds (slot start with the time zone), service, y_hat, and y_hat-lo-80, y_hat-hi-80, ... for the levels.

    Raises:
        MissingExtraError: pandas is not installed.
    """
    cells, horizon, services = forecast.shape
    step = np.timedelta64(dataset.step_minutes, "m")
    ds = dataset.layout.times_of(dataset.time[-1] + step * np.arange(1, horizon + 1), dataset.timezone)
    columns: dict[str, Any] = {
        "unique_id": np.repeat(dataset.unique_ids(), horizon * services),
        "ds": ds.repeat(services)[np.tile(np.arange(horizon * services), cells)],
        "service": np.tile(np.asarray(dataset.services, dtype=object), cells * horizon),
        "y_hat": forecast.reshape(-1),
    }
    for level, (low, high) in intervals.items():
        columns[f"y_hat-lo-{level}"] = low.reshape(-1)
        columns[f"y_hat-hi-{level}"] = high.reshape(-1)
    return dataset.layout.frame(columns)
