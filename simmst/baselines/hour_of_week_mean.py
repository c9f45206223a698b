"""The training mean of the same slot of the week."""

from __future__ import annotations

import warnings

import numpy as np
from typing_extensions import Self

from simmst.baselines.base import check_same_cells, checked_origins, checked_train, fill_with_last_known
from simmst.data import TrafficDataset, WindowSpec
from simmst.data.calendar import slot_of_day, weekday


class HourOfWeekMean:
    """Forecast the mean of the training values in the same slot of the local week, per cell and service.

    Slots are those of the series: 168 a week at one hour, 1008 at ten minutes. A slot of the week without a training
    value takes the mean of its slot of the day, then of the whole training part, then the newest known value.

    Example:
        >>> import numpy as np
        >>> from simmst.data import TrafficDataset, WindowSpec
        >>> city = TrafficDataset.from_arrays(np.tile(np.arange(24.0), 21), np.arange(21 * 24) * 3600, timezone="UTC")
        >>> model = HourOfWeekMean().fit(city, WindowSpec(2, (-1,)), range(14 * 24))
        >>> model.predict(city, np.array([14 * 24 + 5]))[0, 0, :, 0].tolist()
        [5.0, 6.0]
    """

    def __init__(self) -> None:
        self.horizon = 0
        self._table = np.empty((0, 0, 0), dtype=np.float32)  # float32 (slots of the week, K, C)

    def fit(self, dataset: TrafficDataset, spec: WindowSpec, train: range) -> Self:
        """Average the training slots."""
        rows = checked_train(dataset, train)
        self.horizon = spec.horizon
        series = dataset.series()[rows]  # (t, K, C)
        per_day = dataset.steps_per_day
        day_slot, week_slot = _slots(dataset, dataset.time[rows])
        by_week = _means(series, week_slot, 7 * per_day)
        by_day = np.tile(_means(series, day_slot, per_day), (7, 1, 1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=RuntimeWarning)  # a cell without any value has no mean
            overall = np.nanmean(series, axis=0, dtype=np.float64)
        table = np.where(np.isnan(by_week), by_day, by_week)
        self._table = np.where(np.isnan(table), overall, table).astype(np.float32)
        return self

    def predict(self, dataset: TrafficDataset, origins: np.ndarray) -> np.ndarray:
        """Forecast float32 (n, C, T_out, K); see `Baseline.predict`."""
        check_same_cells(dataset, self._table.shape[1], self._table.shape[2])
        origins = checked_origins(dataset, origins)
        target = origins[:, None] + np.arange(self.horizon)  # (n, T_out), may lie beyond the end
        seconds = dataset.time[0].astype(np.int64) + target.reshape(-1) * dataset.step_minutes * 60
        week_slot = _slots(dataset, seconds.astype("datetime64[s]"))[1].reshape(target.shape)
        forecast = np.ascontiguousarray(self._table[week_slot].transpose(0, 3, 1, 2))
        return fill_with_last_known(forecast, dataset.series(), origins)


def _slots(dataset: TrafficDataset, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the slot of the local day and the slot of the local week of each time."""
    day_slot = slot_of_day(*dataset.clock(time), dataset.step_minutes)
    return day_slot, weekday(*dataset.clock(time)) * dataset.steps_per_day + day_slot


def _means(series: np.ndarray, slot: np.ndarray, num_slots: int) -> np.ndarray:
    """Return the mean of the known values for each slot, float64 (num_slots, K, C); NaN where there are none."""
    total = np.zeros((num_slots, *series.shape[1:]))
    count = np.zeros_like(total)
    for row, s in zip(series, slot, strict=True):
        there = ~np.isnan(row)
        total[s] += np.where(there, row, 0.0)
        count[s] += there
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
