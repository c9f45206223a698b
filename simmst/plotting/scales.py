"""Choices for pictures of many values: the limits of the colours, and the cell to show first."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def colour_limits(truth: npt.NDArray[np.floating], forecast: npt.NDArray[np.floating]) -> tuple[float, float]:
    """Return the upper limits of the colours of traffic and of errors; the highest 1 % share the last colour.

    Example:
        >>> colour_limits(np.array([1.0, 2.0, np.nan]), np.array([1.5, 2.5, 3.0]))
        (1.99, 0.5)
    """

    def highest(values: npt.NDArray[np.floating]) -> float:
        known = np.abs(values[~np.isnan(values)])
        found = float(np.quantile(known, 0.99)) if known.size else 0.0
        return float(f"{found:.3g}") or 1.0

    return highest(truth), highest(forecast - truth)


def busiest_cell(truth: npt.NDArray[np.floating]) -> int:
    """Return the cell of (K, C, ...) with the most traffic, as the sum over the services of its share of the city's.

    Example:
        >>> busiest_cell(np.array([[[1.0, 1.0], [5.0, np.nan]]]))
        1
    """
    by_cell = np.nansum(truth, axis=tuple(range(2, truth.ndim)), dtype=np.float64)  # (K, C)
    total = by_cell.sum(axis=1, keepdims=True)
    return int((by_cell / np.where(total > 0, total, 1.0)).sum(axis=0).argmax())
