"""Errors of forecasts in raw units: MAE, RMSE, MASE and skill over persistence, with missing targets masked."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simmst.errors import DataError
from simmst.foundation.extras import import_extra

FloatArray = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Scores:
    """The errors of one predictor on one set of target points.

    Args:
        mae: (K,) mean absolute error of each service.
        rmse: (K,) root mean squared error of each service.
        mase: (K,) mean over the cells of MAE over the cell's in-sample seasonal naive MAE; NaN without a scale.
        mae_by_step: (T_out, K).
        rmse_by_step: (T_out, K).
        overall_mae: over all services' points together.
        overall_rmse: over all services' points together.
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

    with :math:`s_c` the in-sample error of the seasonal naive forecast (Hyndman & Koehler 2006).

    Args:
        forecast: (n, C, T_out, K) raw units, no NaN where the truth is known.
        truth: (n, C, T_out, K) raw units, NaN = missing: those points are left out.
        naive_error: (C, K) from `seasonal_naive_error`; None leaves MASE NaN. Cells whose scale is 0 or NaN are left
            out of it.

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
            "look into the model"
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


def skill(error: FloatArray | float, reference: FloatArray | float) -> FloatArray:
    r"""Return the skill over a reference, :math:`1 - e / e_{ref}`: 1 is perfect, 0 as good, negative worse.

    NaN where the reference makes no error at all.

    Example:
        >>> skill(np.array([1.0, 3.0]), np.array([2.0, 2.0])).tolist()
        [0.5, -0.5]
    """
    error, reference = np.asarray(error, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    return np.where(reference > 0, 1.0 - error / np.where(reference > 0, reference, 1.0), np.nan)


def seasonal_naive_error(activity: FloatArray, season: int) -> FloatArray:
    """Return the in-sample error of the seasonal naive forecast, the scale of MASE.

    Args:
        activity: (T, C, K) the training part, raw units, NaN = missing.
        season: steps of a season, such as a day; when the part is not longer than that, one step is taken.

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
