"""Errors of point forecasts and quantiles in raw units, with missing targets masked."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simmst.errors import DataError
from simmst.foundation.extras import import_extra

FloatArray = npt.NDArray[np.floating]
QUANTILE_LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Scores:
    """The errors of one predictor on one set of target points.

    Args:
        mae: (K,) mean absolute error of each service.
        rmse: (K,) root mean squared error of each service.
        mase: (K,) mean over the cells of MAE divided by the cell's in-sample seasonal naive MAE; NaN without a scale.
        mae_by_step: (T_out, K) MAE by step ahead.
        rmse_by_step: (T_out, K) RMSE by step ahead.
        overall_mae: MAE over the points of all services.
        overall_rmse: RMSE over the points of all services.
    """

    mae: FloatArray
    rmse: FloatArray
    mase: FloatArray
    mae_by_step: FloatArray
    rmse_by_step: FloatArray
    overall_mae: float
    overall_rmse: float


def score(forecast: FloatArray, truth: FloatArray, *, naive_error: FloatArray | None = None) -> Scores:
    r"""Compare a forecast with the truth where the truth is known.

    .. math:: MAE = \tfrac1n \sum |y - \hat y|, \qquad RMSE = \sqrt{\tfrac1n \sum (y - \hat y)^2}, \qquad
              MASE = \tfrac1C \sum_c MAE_c / s_c

    where :math:`s_c` is the in-sample error of the seasonal naive forecast (Hyndman & Koehler 2006).

    Args:
        forecast: (n, C, T_out, K) raw units, no NaN where the truth is known.
        truth: (n, C, T_out, K) raw units, NaN = missing; missing points are left out.
        naive_error: (C, K) from `seasonal_naive_error`; None leaves MASE NaN. MASE leaves out cells whose scale is 0 or
            NaN.

    Returns:
        The scores; NaN for a service or step without any known point.

    Raises:
        ValueError: the shapes differ.
        DataError: the forecast is NaN or infinite where the truth is known.

    Example:
        >>> truth = np.array([1.0, 2.0, np.nan]).reshape(3, 1, 1, 1)
        >>> scores = score(np.array([1.0, 4.0, 9.0]).reshape(3, 1, 1, 1), truth)
        >>> scores.mae.tolist(), round(scores.overall_rmse, 3)
        ([1.0], 1.414)
    """
    if forecast.shape != truth.shape or truth.ndim != 4:
        raise ValueError(f"forecast is {forecast.shape} and truth {truth.shape}; both must be (n, C, T_out, K)")
    known = ~np.isnan(truth)
    bad = known & ~np.isfinite(forecast)
    if bad.any():
        raise DataError(
            f"the forecast has {int(bad.sum())} NaN or infinite values where the truth is known, the first at "
            f"(origin, cell, step, service) = {tuple(int(i) for i in np.argwhere(bad)[0])}; leave these points out or "
            "check the model"
        )
    steps, services = truth.shape[2:]
    by_step = np.array(
        [[_errors(forecast[:, :, t, k], truth[:, :, t, k]) for k in range(services)] for t in range(steps)]
    )
    by_service = np.array([_errors(forecast[..., k], truth[..., k]) for k in range(services)])
    overall = _errors(forecast, truth)
    mase = np.full(services, np.nan)
    if naive_error is not None:
        mase = _mase(forecast, truth, naive_error)
    return Scores(
        mae=by_service[:, 0],
        rmse=by_service[:, 1],
        mase=mase,
        mae_by_step=by_step[..., 0],
        rmse_by_step=by_step[..., 1],
        overall_mae=overall[0],
        overall_rmse=overall[1],
    )


@dataclass(frozen=True)
class QuantileScores:
    """The scores of the quantiles of one predictor on one set of target points.

    Args:
        coverage: (K,) share of the targets inside the central 80 % interval.
        wql: (K,) weighted quantile loss.
        coverage_by_step: (T_out, K) coverage by step ahead.
        wql_by_step: (T_out, K) weighted quantile loss by step ahead.
    """

    coverage: FloatArray
    wql: FloatArray
    coverage_by_step: FloatArray
    wql_by_step: FloatArray


def score_quantiles(quantiles: FloatArray, truth: FloatArray) -> QuantileScores:
    r"""Compare quantiles with the truth where the truth is known.

    .. math:: WQL = \frac1{|Q|} \sum_{q \in Q}
              \frac{2 \sum \max(q (y - \hat y_q), (q - 1) (y - \hat y_q))}{\sum |y|}, \qquad Q = \{0.1, \dots, 0.9\}

    with the mean over the levels, so that quantiles that all equal a point forecast have its normalised MAE.

    Args:
        quantiles: (n, C, T_out, K, 9) raw units at `QUANTILE_LEVELS`.
        truth: (n, C, T_out, K) raw units, NaN = missing; missing points are left out.

    Returns:
        The scores; NaN for a service or step without any known point. The loss is also NaN where all traffic is zero.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> truth = np.array([2.0, 4.0]).reshape(2, 1, 1, 1)
        >>> scores = score_quantiles(np.full((2, 1, 1, 1, 9), 2.0), truth)
        >>> scores.coverage.tolist(), round(float(scores.wql[0]), 3)
        ([0.5], 0.333)
    """
    if quantiles.shape != (*truth.shape, len(QUANTILE_LEVELS)):
        raise ValueError(f"quantiles are {quantiles.shape}, wanted {(*truth.shape, len(QUANTILE_LEVELS))}")
    known = ~np.isnan(truth)
    count = known.sum(axis=(0, 1))  # (T_out, K)
    activity = np.where(known, np.abs(truth), 0.0).sum(axis=(0, 1), dtype=np.float64)
    inside = ((quantiles[..., 0] <= truth) & (truth <= quantiles[..., -1])).sum(axis=(0, 1))
    loss = np.zeros_like(activity)
    for place, level in enumerate(QUANTILE_LEVELS):
        error = np.where(known, truth - quantiles[..., place], 0.0)
        loss += 2 / len(QUANTILE_LEVELS) * np.maximum(level * error, (level - 1) * error).sum((0, 1), dtype=np.float64)
    return QuantileScores(
        coverage=_ratio(inside.sum(axis=0), count.sum(axis=0)),
        wql=_ratio(loss.sum(axis=0), activity.sum(axis=0)),
        coverage_by_step=_ratio(inside, count),
        wql_by_step=_ratio(loss, activity),
    )


def _ratio(part: npt.NDArray[np.generic], whole: npt.NDArray[np.generic]) -> FloatArray:
    above, below = part.astype(np.float64), whole.astype(np.float64)
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def skill(error: FloatArray | float, reference: FloatArray | float) -> FloatArray:
    r"""Return the skill over a reference, :math:`1 - e / e_{ref}`: 1 is perfect, 0 is as good, negative is worse.

    The skill is NaN where the reference makes no error.

    Example:
        >>> skill(np.array([1.0, 3.0]), np.array([2.0, 2.0])).tolist()
        [0.5, -0.5]
    """
    error, reference = np.asarray(error, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    return np.where(reference > 0, 1.0 - error / np.where(reference > 0, reference, 1.0), np.nan)


def seasonal_naive_error(activity: FloatArray, season: int) -> FloatArray:
    """Return the in-sample error of the seasonal naive forecast, the scale of MASE.

    Args:
        activity: (T, C, K) training part, raw units, NaN = missing.
        season: slots of a season, such as a day; a part that is not longer than a season uses one slot.

    Returns:
        (C, K) mean of ``|y_t - y_{t - season}|``; NaN where no pair is known.

    Example:
        >>> seasonal_naive_error(np.array([1.0, 2.0, 4.0]).reshape(3, 1, 1), season=1).tolist()
        [[1.5]]
    """
    lag = season if len(activity) > season else 1
    change = np.abs(activity[lag:].astype(np.float64) - activity[:-lag])
    known = ~np.isnan(change)
    count = known.sum(axis=0)
    total = np.where(known, change, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _errors(forecast: FloatArray, truth: FloatArray) -> tuple[float, float]:
    metrics = import_extra("sklearn.metrics", extra="forecast")
    known = ~np.isnan(truth)
    if not known.any():
        return math.nan, math.nan
    pair = truth[known].astype(np.float64), forecast[known].astype(np.float64)
    return float(metrics.mean_absolute_error(*pair)), float(metrics.root_mean_squared_error(*pair))


def _mase(forecast: FloatArray, truth: FloatArray, naive_error: FloatArray) -> FloatArray:
    if naive_error.shape != (truth.shape[1], truth.shape[3]):
        raise ValueError(f"naive_error is {naive_error.shape}; it must be (C, K) = {(truth.shape[1], truth.shape[3])}")
    known = ~np.isnan(truth)
    error = np.where(known, np.abs(forecast.astype(np.float64) - np.where(known, truth, 0.0)), 0.0)
    count = known.sum(axis=(0, 2))
    usable = (count > 0) & (naive_error > 0)
    ratio = error.sum(axis=(0, 2)) / np.maximum(count, 1) / np.where(usable, naive_error, 1.0)
    cells = usable.sum(axis=0)
    return np.where(cells > 0, np.where(usable, ratio, 0.0).sum(axis=0) / np.maximum(cells, 1), np.nan)
