"""Statistics of traffic in space: pure functions on maps, for real and simulated traffic alike."""

from __future__ import annotations

import numpy as np

from simmst.realism.statistics import (
    MIN_CELLS,
    MIN_VALUES,
    NotComputable,
    cross_correlation,
    mean_present,
    present,
    standardise,
)

MIN_CELLS_SKEW = 20
MIN_PAIRS = 10


def log_mean_map(activity: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the log of the mean of each cell, float64 ``(H, W)``; NaN outside the city and where there is no activity.

    Args:
        activity: one service, ``(T, H, W)``.
        mask: bool ``(H, W)``, True inside the city.

    Example:
        >>> log_mean_map(np.ones((3, 1, 2)), np.array([[True, False]])).tolist()
        [[0.0, nan]]
    """
    mean = mean_present(np.asarray(activity, dtype=np.float64), 0)
    active = mask & (np.nan_to_num(mean) > 0)
    return np.log(np.where(active, mean, np.nan))


def map_std(field: np.ndarray) -> float:
    """Return the standard deviation over the cells of a map ``(H, W)``.

    Raises:
        NotComputable: fewer than 10 cells.
    """
    values = present(field, MIN_CELLS, "cells")
    return float(values.std())


def map_skew(field: np.ndarray) -> float:
    """Return the skew over the cells of a map ``(H, W)``.

    Raises:
        NotComputable: fewer than 20 cells, or all cells are equal.
    """
    values = present(field, MIN_CELLS_SKEW, "cells")
    return float((standardise(values) ** 3).mean())


def spatial_autocorrelation(field: np.ndarray, lag_cells: int) -> float:
    r"""Return the correlation of a map with itself, `lag_cells` north and `lag_cells` east, about the mean of the map.

    Args:
        field: ``(H, W)``, NaN outside.
        lag_cells: distance in cells.

    Raises:
        NotComputable: fewer than 10 pairs of cells lie that far apart, or the lag exceeds three quarters of the map.

    Example:
        >>> spatial_autocorrelation(np.indices((8, 8)).sum(axis=0) % 2, 1)
        -1.0
    """
    height, width = field.shape
    if lag_cells > 0.75 * max(field.shape):
        raise NotComputable(f"the map of {height} x {width} cells is too small for {lag_cells} cells")
    centred = np.asarray(field, dtype=np.float64) - mean_present(np.asarray(field, dtype=np.float64), None)
    north = centred[lag_cells:] * centred[:-lag_cells]
    east = centred[:, lag_cells:] * centred[:, :-lag_cells]
    products = np.concatenate([north.ravel(), east.ravel()])
    products = products[~np.isnan(products)]
    if len(products) < MIN_PAIRS:
        raise NotComputable(f"{len(products)} pairs of cells lie {lag_cells} cells apart; at least {MIN_PAIRS} needed")
    variance = mean_present(centred**2, None)
    if not variance > 0:
        raise NotComputable("all cells are alike")
    return float(products.mean() / variance)


def neighbour_correlation(activity: np.ndarray, mask: np.ndarray) -> float:
    """Return the median over pairs of adjacent cells of their correlation over time.

    Args:
        activity: one service, ``(T, H, W)``.
        mask: bool ``(H, W)``.

    Raises:
        NotComputable: fewer than 10 pairs, or fewer than 24 slots.
    """
    if len(activity) < MIN_VALUES:
        raise NotComputable(f"{len(activity)} slots are too few; at least {MIN_VALUES} needed")
    pairs = []
    for axis in (1, 2):
        low = [slice(None), slice(None), slice(None)]
        high = list(low)
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        both = mask[tuple(low[1:])] & mask[tuple(high[1:])]
        pairs.append(cross_correlation(activity[tuple(low)][:, both], activity[tuple(high)][:, both]))
    values = np.concatenate(pairs)
    values = values[~np.isnan(values)]
    if len(values) < MIN_PAIRS:
        raise NotComputable(f"{len(values)} pairs of adjacent cells; at least {MIN_PAIRS} needed")
    return float(np.median(values))
