"""The mean of the latest slots."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from simmst.baselines.base import checked_origins, checked_train, fill_with_last_known
from simmst.data import TrafficDataset, WindowSpec
from simmst.errors import DataError


class MovingAverage:
    """Forecast y[o + h] = mean(y[o - n .. o - 1]) for every h; see Hyndman & Athanasopoulos, Forecasting, section 3.3.

    n is 2, 3, 6, 12 or the slots of a day. It is the n whose forecasts of the last step have the least error over the
    training slots: the sum of absolute errors over the sum of the traffic, averaged over the services. Missing values
    are left out of the mean; where all are missing, the forecast is the newest known value.

    Args:
        slots: number of slots, n; None chooses it on the training slots.

    Example:
        >>> import numpy as np
        >>> from simmst.data import TrafficDataset, WindowSpec
        >>> city = TrafficDataset.from_arrays(np.arange(48.0), np.arange(48) * 3600)
        >>> model = MovingAverage().fit(city, WindowSpec(2, (-1,)), range(40))
        >>> model.slots, model.predict(city, np.array([40]))[0, 0, :, 0].tolist()
        (2, [38.5, 38.5])
    """

    def __init__(self, slots: int | None = None) -> None:
        if slots is not None and slots < 1:
            raise DataError(f"slots is {slots}; a mean needs at least 1")
        self.slots = slots
        self.horizon = 0

    def fit(self, dataset: TrafficDataset, spec: WindowSpec, train: range) -> Self:
        """Choose n if none was given."""
        rows = checked_train(dataset, train)
        self.horizon = spec.horizon
        if self.slots is None:
            series = dataset.series()[rows]  # (t, K, C)
            choices = [2, 3, 6, 12, dataset.steps_per_day]
            fitting = [n for n in choices if n + spec.horizon <= len(series)] or choices[:1]
            self.slots = min(fitting, key=lambda n: _relative_error(series, n, spec.horizon))
        return self

    def predict(self, dataset: TrafficDataset, origins: np.ndarray) -> np.ndarray:
        """Forecast float32 (n, C, T_out, K); see `Baseline.predict`."""
        origins = checked_origins(dataset, origins)
        series = dataset.series()  # (T, K, C)
        mean = _means(series, origins, self.slots or 1).transpose(0, 2, 1)  # (n, C, K)
        forecast = np.repeat(mean[:, :, None], self.horizon, axis=2)
        return fill_with_last_known(forecast, series, origins)


def _means(series: npt.NDArray[np.float32], origins: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.float32]:
    """Return the mean of known values in the n slots before each origin, (len(origins), K, C); NaN if none is known."""
    known = ~np.isnan(series)
    total, count = (_differences(values, origins, n) for values in (np.where(known, series, 0), known))
    mean: npt.NDArray[np.float64] = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return mean.astype(np.float32)


def _differences(values: np.ndarray, origins: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.float64]:
    """Return the sum of the n values before each origin, by running sums."""
    sums = np.concatenate([np.zeros((1, *values.shape[1:])), values.cumsum(axis=0, dtype=np.float64)])
    found: npt.NDArray[np.float64] = sums[origins] - sums[np.maximum(origins - n, 0)]
    return found


def _relative_error(series: npt.NDArray[np.float32], n: int, horizon: int) -> float:
    """Return summed absolute error over summed traffic, averaged over the services; infinite where nothing is known."""
    origins = np.arange(n, len(series) - horizon + 1)
    if len(origins) == 0:
        return float("inf")
    truth = series[origins + horizon - 1]
    apart = np.abs(_means(series, origins, n) - truth).astype(np.float64)
    error: npt.NDArray[np.float64] = np.nansum(apart, axis=(0, 2))  # (K,)
    traffic: npt.NDArray[np.float64] = np.nansum(np.abs(truth), axis=(0, 2), dtype=np.float64)
    known = traffic > 0
    return float(np.mean(error[known] / traffic[known])) if known.any() else float("inf")
