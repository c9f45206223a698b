"""The contract of all baselines, and the functions they share."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from typing_extensions import Self

from simmst.data import TrafficDataset, WindowSpec
from simmst.errors import DataError


class Baseline(Protocol):
    """A forecaster without a neural network, which is fitted on training slots and forecasts from origins.

    `predict` never reads a slot at or after the origin. A forecast is NaN only where nothing is known of a cell and
    service before the origin.
    """

    def fit(self, dataset: TrafficDataset, spec: WindowSpec, train: range) -> Self:
        """Fit to the training slots.

        Args:
            dataset: the traffic.
            spec: horizon and input slots.
            train: consecutive slots that may be learned from.
        """
        ...

    def predict(self, dataset: TrafficDataset, origins: np.ndarray) -> np.ndarray:
        """Forecast from each origin.

        Args:
            dataset: the traffic, with the cells and services of `fit`.
            origins: int64 (n,), index of the first slot to forecast, 1..T.

        Returns:
            float32 (n, C, T_out, K), raw units, cells in the order of ``dataset.cells``.
        """
        ...


def checked_origins(dataset: TrafficDataset, origins: np.ndarray) -> np.ndarray:
    """Return origins as int64 (n,).

    Raises:
        DataError: an origin has nothing before it, or lies beyond the slot after the end.
    """
    origins = np.asarray(origins, dtype=np.int64).reshape(-1)
    wrong = (origins < 1) | (origins > dataset.num_steps)
    if wrong.any():
        raise DataError(
            f"origin {int(origins[wrong][0])} is outside 1..{dataset.num_steps} of {dataset.name}: an origin is the "
            "first slot to forecast and needs at least one slot before it"
        )
    return origins


def checked_train(dataset: TrafficDataset, train: range) -> slice:
    """Return training slots as a slice.

    Raises:
        DataError: there are no slots, or slots lie outside the series.
    """
    if len(train) == 0 or train.step != 1 or train.start < 0 or train.stop > dataset.num_steps:
        raise DataError(
            f"cannot fit a baseline to slots {train} of {dataset.name}, which has {dataset.num_steps} slots"
        )
    return slice(train.start, train.stop)


def check_same_cells(dataset: TrafficDataset, num_services: int, num_cells: int) -> None:
    """Raise a DataError for a data set whose services or cells are not those of the fit."""
    if (dataset.num_services, dataset.num_cells) != (num_services, num_cells):
        raise DataError(
            f"the baseline was fitted to {num_services} services and {num_cells} cells, {dataset.name} has "
            f"{dataset.num_services} and {dataset.num_cells}; fit it to this data set"
        )


def last_known(series: np.ndarray, origins: np.ndarray) -> np.ndarray:
    """Return the newest value before each origin that is not missing, (n, K, C); NaN where there is none.

    Args:
        series: float32 (T, K, C).
        origins: int64 (n,).
    """
    last: np.ndarray = series[origins - 1]
    for place in np.argwhere(np.isnan(last).any(axis=0)):  # (service, cell) pairs with a gap at some origin
        k, c = (int(i) for i in place)
        column = series[:, k, c]
        newest = np.maximum.accumulate(np.where(np.isnan(column), -1, np.arange(len(column))))[origins - 1]
        last[:, k, c] = np.where(newest >= 0, column[newest], np.float32(np.nan))
    return last


def fill_with_last_known(forecast: np.ndarray, series: np.ndarray, origins: np.ndarray) -> np.ndarray:
    """Replace NaN in forecasts (n, C, T_out, K), in place, by the newest known value before the origin."""
    if np.isnan(forecast).any():
        last = last_known(series, origins).transpose(0, 2, 1)[:, :, None]  # (n, C, 1, K)
        np.copyto(forecast, last, where=np.isnan(forecast))
    return forecast
