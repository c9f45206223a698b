"""The forecasts behind a report, and one forecast of each tested slot, which a run keeps for its page."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from simmst.data import TrafficDataset
from simmst.data.readers.archive import read_archive
from simmst.errors import DataError
from simmst.evaluation.metrics import QUANTILE_LEVELS
from simmst.foundation.files import write_atomically

if TYPE_CHECKING:
    import pandas

Floats = npt.NDArray[np.float32]
Interval = tuple[Floats, Floats]

LEVEL = 80  # percent, level of the intervals that are kept
TRAFFIC_FILE, FORECASTS_FILE = "tested.npz", "forecasts.npz"


@dataclass(frozen=True, eq=False)
class Forecasts:
    """The forecasts behind a report.

    Args:
        origins: int64 (n,), indices of the first target slots.
        truth: float32 (n, C, T_out, K) raw units, NaN = missing.
        by_name: float32 (n, C, T_out, K) forecasts of each predictor.
        intervals: lower and upper bounds of the central 80 % intervals of predictors with quantiles, of the same shape.
        dataset: series that was forecast; None where it is unknown.
    """

    origins: npt.NDArray[np.int64]
    truth: Floats
    by_name: Mapping[str, Floats]
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    dataset: TrafficDataset | None = None

    def to_frame(self) -> pandas.DataFrame:
        """Return a frame of the library that the series came in, with one row per cell, origin, slot and service.

        Returns:
            unique_id, ds (slot start), service, cutoff (the last slot that was known), y, and one column per predictor.
            A predictor with an 80 % interval has columns such as Sim-MSTNet-lo-80 and Sim-MSTNet-hi-80.

        Raises:
            DataError: the series is unknown.
            MissingExtraError: pandas is not installed.

        Example:
            >>> city = TrafficDataset.from_arrays(np.arange(24.0), np.arange(24) * 3600, services=["sms"])
            >>> one = np.ones((1, 1, 2, 1), dtype=np.float32)
            >>> frame = Forecasts(np.array([20]), one, {"ridge": 2 * one}, dataset=city).to_frame()
            >>> frame.columns.tolist(), (frame.ds - frame.cutoff).dt.seconds.tolist(), frame.ridge.tolist()
            (['unique_id', 'ds', 'service', 'cutoff', 'y', 'ridge'], [3600, 7200], [2.0, 2.0])
        """
        dataset = self.dataset
        if dataset is None:
            raise DataError("the series of these forecasts is unknown; use those of evaluate or cross_validation")
        shape = self.truth.shape  # (n, C, T_out, K)
        times = dataset.layout.times_of(dataset.time, dataset.timezone)
        places: npt.NDArray[np.int64] = np.indices(shape)
        origin, cell, step, service = (_by_cell(place) for place in places)
        columns: dict[str, Any] = {
            "unique_id": dataset.unique_ids()[cell],
            "ds": times[self.origins[origin] + step],
            "service": np.asarray(dataset.services, dtype=object)[service],
            "cutoff": times[self.origins[origin] - 1],
            "y": _by_cell(self.truth),
        }
        for name, forecast in self.by_name.items():
            columns[name] = _by_cell(forecast)
            for side, bound in zip(("lo", "hi"), self.intervals.get(name, ()), strict=False):
                columns[f"{name}-{side}-{LEVEL}"] = _by_cell(bound)
        frame: pandas.DataFrame = dataset.layout.frame(columns)
        return frame


def _by_cell(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Flatten values (n, C, T_out, K) cell by cell."""
    return values.swapaxes(0, 1).reshape(-1)


def central_intervals(quantiles: Mapping[str, Floats]) -> dict[str, Interval]:
    """Return the central 80 % intervals from quantiles (n, C, T_out, K, 9) at `QUANTILE_LEVELS`."""
    low, high = (QUANTILE_LEVELS.index(level) for level in (0.1, 0.9))
    return {
        name: (np.ascontiguousarray(one[..., low]), np.ascontiguousarray(one[..., high]))
        for name, one in quantiles.items()
    }


@dataclass(frozen=True, eq=False)
class TestedSlots:
    """One forecast of each tested slot, from origins a horizon apart, as a user who forecasts once per horizon gets.

    Args:
        dataset: measured traffic of the T tested slots.
        name: name of the predictor.
        ahead: int64 (T,), number of steps ahead of each forecast, from 1; 0 without a forecast.
        forecast: float32 (T, K, C), raw units, cells in the order of `dataset.cells`; NaN without a forecast.
        interval: lower and upper bounds of the central 80 % interval, of the same shape; None without an interval.

    Raises:
        DataError: a shape does not fit.
    """

    __test__ = False  # not a test class for pytest

    dataset: TrafficDataset
    name: str
    ahead: npt.NDArray[np.int64]
    forecast: Floats
    interval: Interval | None = None

    def __post_init__(self) -> None:
        dataset = self.dataset
        shape = dataset.num_steps, dataset.num_services, dataset.num_cells
        given = [("ahead", self.ahead.shape, shape[:1]), ("forecast", self.forecast.shape, shape)]
        given += [("interval", bound.shape, shape) for bound in self.interval or ()]
        for what, found, wanted in given:
            if found != wanted:
                raise DataError(f"{what} has shape {found}, wanted {wanted}: slots, services and cells")

    @classmethod
    def of(cls, forecasts: Forecasts, dataset: TrafficDataset, name: str, interval: Interval | None) -> TestedSlots:
        """Choose one forecast for each slot.

        Args:
            forecasts: forecasts that `evaluate` kept.
            dataset: series that was forecast.
            name: name of the predictor.
            interval: bounds (n, C, T_out, K) of its forecasts; None without an interval.

        Example:
            >>> city = TrafficDataset.from_arrays(np.arange(24.0), np.arange(24) * 3600)
            >>> ahead = np.arange(20, 23)[:, None] + np.arange(2)  # slots forecast from 20, 21 and 22
            >>> one = ahead[:, None, :, None].astype(np.float32)
            >>> slots = TestedSlots.of(Forecasts(ahead[:, 0], one, {"a": one + 0.5}), city, "a", None)
            >>> slots.ahead.tolist(), slots.forecast.ravel().tolist()
            ([1, 2, 1, 2], [20.5, 21.5, 22.5, 23.5])
        """
        origins, horizon = forecasts.origins, forecasts.truth.shape[2]
        first, last = int(origins[0]), int(origins[-1]) + horizon
        first = min(first, last - 2)  # a series has at least two slots
        chosen = np.full(last - first, -1)
        for number, origin in enumerate(origins - first):
            # slots move to a new origin once the one before lies a horizon back, and at the end to the last one
            if chosen[origin] < 0 or number == len(origins) - 1:
                span = chosen[origin : origin + horizon]
                span[span < 0] = number
        known = np.flatnonzero(chosen >= 0)
        ahead = np.zeros(len(chosen), dtype=np.int64)
        ahead[known] = known - (origins[chosen[known]] - first) + 1

        def by_slot(array: Floats) -> Floats:
            found = np.full((len(chosen), array.shape[3], array.shape[1]), np.nan, dtype=np.float32)
            found[known] = array[chosen[known], :, ahead[known] - 1].transpose(0, 2, 1)
            return found

        bounds = None if interval is None else (by_slot(interval[0]), by_slot(interval[1]))
        return cls(dataset.slice_steps(first, last), name, ahead, by_slot(forecasts.by_name[name]), bounds)

    def last(self, steps: int) -> TestedSlots:
        """Return only the last slots."""
        cut = max(self.dataset.num_steps - steps, 0)
        bounds = None if self.interval is None else (self.interval[0][cut:], self.interval[1][cut:])
        dataset = self.dataset.slice_steps(cut, self.dataset.num_steps)
        return TestedSlots(dataset, self.name, self.ahead[cut:], self.forecast[cut:], bounds)

    def save(self, folder: str | Path) -> Path:
        """Write ``tested.npz`` and ``forecasts.npz`` into a folder, each atomically."""
        traffic = self.dataset.save(Path(folder) / TRAFFIC_FILE)
        arrays: dict[str, Any] = {
            "ahead": self.ahead,
            "forecast": self.forecast,
            "name": np.array(self.name),
            "of": np.array(_digest(traffic)),
        }
        if self.interval is not None:
            arrays |= {"low": self.interval[0], "high": self.interval[1]}
        return write_atomically(
            Path(folder) / FORECASTS_FILE, lambda temporary: np.savez_compressed(temporary, **arrays)
        )

    @classmethod
    def read(cls, folder: str | Path) -> TestedSlots:
        """Read the files that `save` wrote; no code is executed.

        Raises:
            DataError: a file is missing or damaged, or the two files do not belong together.
        """
        traffic, path = Path(folder) / TRAFFIC_FILE, Path(folder) / FORECASTS_FILE
        arrays = read_archive(path)
        lacking = sorted({"ahead", "forecast", "name", "of"} - arrays.keys())
        if lacking:
            raise DataError(f"{path} has no array {lacking[0]!r}; it holds no forecasts of a run's tested slots")
        dataset = TrafficDataset.from_npz(traffic)
        if str(arrays["of"]) != _digest(traffic):
            raise DataError(
                f"{traffic} is not the file that was saved with {path.name}: it was changed, or saving was cut off; "
                "copy the whole folder again, or test the run again"
            )
        interval = (arrays["low"], arrays["high"]) if {"low", "high"} <= arrays.keys() else None
        try:
            return cls(dataset, str(arrays["name"]), arrays["ahead"], arrays["forecast"], interval)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
