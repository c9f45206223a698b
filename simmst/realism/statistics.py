"""Statistics of traffic in time, between services and of tails: pure functions for real and simulated traffic alike.

Each takes arrays and returns one number; where a number would mean nothing, it raises `NotComputable` with the reason.
Missing values (NaN) are left out everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np

LOG_FLOOR = 1e-3  # fraction of the mean: log traffic is log(x + floor * mean), which is finite in empty slots
MIN_CELLS = 10
MIN_VALUES = 24


class NotComputable(Exception):  # noqa: N818 -- an answer, not an error: caught by `simmst.realism.measurements`
    """Raised if a statistic has no meaning for the traffic; the text says why."""


def log_traffic(series: np.ndarray) -> np.ndarray:
    r"""Return :math:`\log(x + 0.001 \bar x)` with the mean over all slots and cells, float64 of the same shape.

    Args:
        series: activity, any shape, not negative, NaN where missing.

    Raises:
        NotComputable: everything is zero or missing.

    Example:
        >>> log_traffic(np.array([0.0, 2.0])).round(3).tolist()
        [-6.908, 0.694]
    """
    values = np.asarray(series, dtype=np.float64)
    mean = mean_present(values, None)
    if not mean > 0:
        raise NotComputable("there is no activity at all")
    logged: np.ndarray = np.log(values + LOG_FLOOR * mean)
    return logged


def autocorrelation(series: np.ndarray, lag: int) -> float:
    """Return the median over cells of the correlation of a series with itself `lag` slots later.

    Args:
        series: ``(T, C)``.
        lag: lag in slots.

    Raises:
        NotComputable: the series is not longer than the lag, or is constant.

    Example:
        >>> round(autocorrelation(np.sin(np.arange(480) / 24 * 2 * np.pi)[:, None], 24), 2)
        1.0
    """
    if len(series) <= lag:
        raise NotComputable(f"the {len(series)} slots are no longer than the lag of {lag}")
    centred, valid = _centred(series)
    together = (valid[:-lag] & valid[lag:]).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        covariance = (centred[:-lag] * centred[lag:]).sum(axis=0) / together
        variance = (centred**2).sum(axis=0) / valid.sum(axis=0)
        return _median(covariance / variance)


def cross_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the correlation over time of two series in each cell, float64 ``(C,)``; NaN where one is constant.

    Args:
        first: ``(T, C)``.
        second: ``(T, C)``.
    """
    valid = ~(np.isnan(first) | np.isnan(second))
    one, _ = _centred(np.where(valid, first, np.nan))
    two, _ = _centred(np.where(valid, second, np.nan))
    with np.errstate(invalid="ignore", divide="ignore"):
        both: np.ndarray = (one * two).sum(axis=0) / np.sqrt((one**2).sum(axis=0) * (two**2).sum(axis=0))
    return both


def synchrony(series: np.ndarray) -> float:
    """Return the median over cells of the correlation over time of a cell with the mean of all standardised cells.

    Args:
        series: ``(T, C)``.

    Raises:
        NotComputable: fewer than 10 cells.
    """
    if series.shape[1] < MIN_CELLS:
        raise NotComputable(f"{series.shape[1]} cells; at least {MIN_CELLS} needed")
    standard = standardised(series)
    mean = mean_present(standard, 1)
    return _median(cross_correlation(standard, np.broadcast_to(mean[:, None], standard.shape)))


def standardised(series: np.ndarray) -> np.ndarray:
    """Return each cell's series ``(T, C)`` with mean zero and variance one over time; NaN where constant.

    Example:
        >>> standardised(np.array([[1.0, 5.0], [3.0, 5.0]])).tolist()
        [[-1.0, nan], [1.0, nan]]
    """
    centred, valid = _centred(series)
    with np.errstate(invalid="ignore", divide="ignore"):
        std = np.sqrt((centred**2).sum(axis=0) / valid.sum(axis=0))
        scaled: np.ndarray = np.where(valid, centred, np.nan) / np.where(std > 0, std, np.nan)
    return scaled


def temporal_std(series: np.ndarray) -> float:
    """Return the median over cells of the standard deviation over time of log traffic.

    Args:
        series: one service, ``(T, C)``, not negative.

    Raises:
        NotComputable: fewer than 24 slots.
    """
    if len(series) < MIN_VALUES:
        raise NotComputable(f"{len(series)} slots are too few; at least {MIN_VALUES} needed")
    mean = mean_present(np.asarray(series, dtype=np.float64), 0)
    active = np.nan_to_num(mean) > 0
    if not active.any():
        raise NotComputable("there is no activity at all")
    logged = np.log(series[:, active] + LOG_FLOOR * mean[active])
    centred, valid = _centred(logged)
    return _median(np.sqrt((centred**2).sum(axis=0) / valid.sum(axis=0)))


def ratio_of_days(series: np.ndarray, these: np.ndarray, those: np.ndarray) -> float:
    """Return the mean over some slots of all cells together, relative to the mean over other slots.

    Args:
        series: one service, ``(T, C)``.
        these: slots of the numerator, bool ``(T,)``.
        those: slots of the denominator, bool ``(T,)``.

    Raises:
        NotComputable: there are no such slots, or no activity in ``those``.
    """
    total = mean_present(np.asarray(series, dtype=np.float64), 1)
    if not these.any() or not those.any():
        raise NotComputable("the file has no such day" if not these.any() else "the file has no ordinary working day")
    level, base = mean_present(total[these], None), mean_present(total[those], None)
    if not base > 0:
        raise NotComputable("there is no activity on ordinary working days")
    return float(level / base)


def shift_of_days(series: np.ndarray, these: np.ndarray, those: np.ndarray) -> float:
    """Return the median over cells of the mean of some slots minus that of other slots, in standard deviations.

    The shift needs no level, so it exists for z-scored series too.

    Args:
        series: ``(T, C)``.
        these: slots of the first mean, bool ``(T,)``.
        those: slots of the second mean, bool ``(T,)``.

    Raises:
        NotComputable: there are no such slots.
    """
    if not these.any() or not those.any():
        raise NotComputable("the file has no such day" if not these.any() else "the file has no ordinary working day")
    standard = standardised(series)
    return _median(mean_present(standard[these], 0) - mean_present(standard[those], 0))


def mean_day(series: np.ndarray, hour: np.ndarray) -> np.ndarray:
    """Return the hours of the mean day relative to the busiest hour, for all cells together, float64 ``(24,)``.

    Args:
        series: one service, ``(T, C)``.
        hour: local hour of each slot, 0 to 24, ``(T,)``.

    Raises:
        NotComputable: an hour of the day is not in the file, or there is no activity.
    """
    total = mean_present(np.asarray(series, dtype=np.float64), 1)
    number = hour.astype(np.int64)
    missing = 24 - len(np.unique(number))
    if missing:
        raise NotComputable(f"the file has no slot in {missing} of the 24 hours of the day")
    day = np.array([mean_present(total[number == h], None) for h in range(24)])
    if not day.max() > 0:
        raise NotComputable("there is no activity at all")
    relative: np.ndarray = day / day.max()
    return relative


def night_trough(series: np.ndarray, hour: np.ndarray) -> float:
    """Return the quietest hour of the mean day relative to the busiest hour, for all cells together.

    Args:
        series: one service, ``(T, C)``.
        hour: local hour of each slot, 0 to 24, ``(T,)``.

    Raises:
        NotComputable: as in `mean_day`.
    """
    return float(mean_day(series, hour).min())


def upper_ratio(series: np.ndarray, quantile: float) -> float:
    """Return the median over cells of the log ratio of a high quantile over time to the median over time.

    Args:
        series: one service, ``(T, C)``, not negative.
        quantile: the high quantile, such as 0.99.

    Raises:
        NotComputable: too few slots lie beyond the quantile, or the median is zero in most cells.
    """
    if len(series) * (1 - quantile) < 1:
        raise NotComputable(f"{len(series)} slots are too few for the quantile {quantile:g}")
    high, middle = np.nanquantile(series, [quantile, 0.5], axis=0)
    active = middle > 0
    if active.sum() * 2 < series.shape[1]:
        raise NotComputable("the median slot of most cells is empty")
    return float(np.median(np.log(high[active] / middle[active])))


def largest_ratio(series: np.ndarray) -> float:
    """Return the log of the largest ratio of a value to its cell's mean, which is the height of the greatest burst.

    Args:
        series: one service, ``(T, C)``, not negative.

    Raises:
        NotComputable: fewer than 24 slots, or no activity.
    """
    if len(series) < MIN_VALUES:
        raise NotComputable(f"{len(series)} slots are too few; at least {MIN_VALUES} needed")
    mean = mean_present(np.asarray(series, dtype=np.float64), 0)
    active = np.nan_to_num(mean) > 0
    if not active.any():
        raise NotComputable("there is no activity at all")
    return float(np.log(np.nanmax(series[:, active] / mean[active])))


def burst_kurtosis(series: np.ndarray) -> float:
    """Return the median over cells of the log kurtosis of the changes from slot to slot (a normal law has log 3).

    The kurtosis does not depend on the scale of a series, so it exists for z-scored series too.

    Args:
        series: ``(T, C)``.

    Raises:
        NotComputable: fewer than 24 slots, or constant series.
    """
    if len(series) < MIN_VALUES:
        raise NotComputable(f"{len(series)} slots are too few; at least {MIN_VALUES} needed")
    centred, valid = _centred(np.diff(np.asarray(series, dtype=np.float64), axis=0))
    number = valid.sum(axis=0)
    square = centred * centred
    with np.errstate(invalid="ignore", divide="ignore"):
        kurtosis = number * (square * square).sum(axis=0) / square.sum(axis=0) ** 2
        return _median(np.log(kurtosis))


def lag_roughness(series: np.ndarray) -> float:
    """Return the log of the typical size of slot-to-slot changes of log traffic: the median over time, then over cells.

    Args:
        series: one service, ``(T, C)``, not negative.

    Raises:
        NotComputable: fewer than 24 slots, or no activity.
    """
    if len(series) < MIN_VALUES:
        raise NotComputable(f"{len(series)} slots are too few; at least {MIN_VALUES} needed")
    mean = mean_present(np.asarray(series, dtype=np.float64), 0)
    active = np.nan_to_num(mean) > 0
    if not active.any():
        raise NotComputable("there is no activity at all")
    change = np.abs(np.diff(np.log(series[:, active] + LOG_FLOOR * mean[active]), axis=0))
    typical = np.nanmedian(change, axis=0)
    if not np.median(typical) > 0:
        raise NotComputable("most slots equal the one before")
    return float(np.log(np.median(typical)))


def quantile_function(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return the quantiles of standardised values (mean zero, variance one), ``(levels,)``.

    Args:
        values: any shape, NaN where missing.
        levels: levels of the quantiles, between 0 and 1.

    Raises:
        NotComputable: the values are all equal.

    Example:
        >>> quantile_function(np.array([1.0, 3.0]), np.array([0.5])).tolist()
        [0.0]
    """
    quantiles: np.ndarray = np.quantile(standardise(present(values, 2, "values")), levels)
    return quantiles


def kolmogorov_smirnov(first: np.ndarray, second: np.ndarray) -> float:
    """Return the largest difference between two distribution functions, given by quantiles at the same even levels.

    Args:
        first: ascending, ``(levels,)``.
        second: ascending, ``(levels,)``.

    Example:
        >>> kolmogorov_smirnov(np.arange(4.0), np.arange(4.0) + 2)
        0.5
    """
    points = np.concatenate([first, second])
    below = [np.searchsorted(quantiles, points, side="right") / len(quantiles) for quantiles in (first, second)]
    return float(np.abs(below[0] - below[1]).max())


def wasserstein(first: np.ndarray, second: np.ndarray) -> float:
    """Return the mean distance between two distributions, given by quantiles at the same even levels.

    Example:
        >>> wasserstein(np.arange(4.0), np.arange(4.0) + 2)
        2.0
    """
    return float(np.abs(first - second).mean())


def mean_present(values: np.ndarray, axis: int | None) -> Any:
    """Return the mean without NaN; NaN (and no warning) where nothing is left."""
    valid = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(valid, values, 0.0).sum(axis=axis) / valid.sum(axis=axis)


def _centred(series: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return series minus their mean over time, zero where missing, and a mask of the values that are not missing."""
    values = np.asarray(series, dtype=np.float64)
    valid = ~np.isnan(values)
    return np.where(valid, values - mean_present(values, 0), 0.0), valid


def _median(values: np.ndarray) -> float:
    """Return the median of the values that are not NaN.

    Raises:
        NotComputable: nothing is left.
    """
    kept = values[~np.isnan(values)]
    if len(kept) == 0:
        raise NotComputable("the series do not change over time")
    return float(np.median(kept))


def present(values: np.ndarray, least: int, what: str) -> np.ndarray:
    """Return the values that are not NaN, float64.

    Raises:
        NotComputable: fewer than `least` values are left.
    """
    kept = np.asarray(values, dtype=np.float64)
    kept = kept[~np.isnan(kept)]
    if len(kept) < least:
        raise NotComputable(f"{len(kept)} {what}; at least {least} needed")
    return kept


def standardise(values: np.ndarray) -> np.ndarray:
    """Return values with mean zero and variance one.

    Raises:
        NotComputable: the values are all equal.
    """
    std = values.std()
    if not std > 0:
        raise NotComputable("all values are alike")
    standard: np.ndarray = (values - values.mean()) / std
    return standard
