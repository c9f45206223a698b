"""Windows over a data set: the history of a cell and its neighbours, and the slots to forecast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from simmst.data.batch import Batch, Indices, WindowSource, as_index, gather_from
from simmst.data.calendar import calendar_features, weekday
from simmst.data.dataset import TrafficDataset
from simmst.data.memory import SeriesMemory
from simmst.data.scaler import Scaler
from simmst.errors import ConfigError, DataError
from simmst.foundation.bounds import at_most
from simmst.foundation.memory import MAX_CONTEXT_DAYS
from simmst.foundation.scalars import python_scalars

_MOST_SLOTS = 1_000_000  # of a window, backward or forward: a year of one-minute slots has about half as many

_CHUNK = 512  # slots scaled at a time, so that the copies stay small


@dataclass(frozen=True)
class WindowSpec:
    """The slots and cells that a sample sees, and the number of slots to forecast.

    Attributes:
        horizon: T_out, number of target slots.
        offsets: input slots relative to the first target slot, ascending, all negative; T_in of them.
        neighbourhood: n, odd; inputs are the n x n cells around the target cell.
        memory_days: L, days before the origin whose slots are in a sample's `Memory`, masked where the series does not
            reach back that far; 0 leaves the memory out.

    Raises:
        ConfigError: a value is out of range.

    Example:
        >>> WindowSpec.recent(2, 3, daily=1, steps_per_day=24).offsets
        (-24, -23, -3, -2, -1)
    """

    horizon: int
    offsets: tuple[int, ...]
    neighbourhood: int = 5
    memory_days: int = 0

    def __post_init__(self) -> None:
        python_scalars(self)
        if not 0 <= self.memory_days <= MAX_CONTEXT_DAYS:
            raise ConfigError(f"memory_days must lie between 0 and {MAX_CONTEXT_DAYS}, got {self.memory_days}")
        if self.horizon < 1:
            raise ConfigError(f"horizon must be at least 1, got {self.horizon}")
        if (
            not self.offsets
            or self.offsets[-1] >= 0
            or any(b <= a for a, b in zip(self.offsets, self.offsets[1:], strict=False))
        ):
            raise ConfigError(f"offsets must be ascending and all below 0, got {self.offsets}")
        if self.neighbourhood < 1 or self.neighbourhood % 2 == 0:
            raise ConfigError(f"neighbourhood must be odd (1, 3, 5, ...), got {self.neighbourhood}")
        at_most("horizon", self.horizon, _MOST_SLOTS)
        at_most("neighbourhood", self.neighbourhood, _MOST_SLOTS)
        at_most("the slots that a window reaches back", -self.offsets[0], _MOST_SLOTS)

    @classmethod
    def recent(
        cls,
        horizon: int,
        recent: int,
        *,
        daily: int = 0,
        weekly: int = 0,
        steps_per_day: int,
        neighbourhood: int = 5,
        memory_days: int = 0,
    ) -> WindowSpec:
        """Build a window from the last `recent` slots and the target's slots on previous days and weeks.

        The window has the target's slots of `daily` previous days and `weekly` previous weeks. Slots that would lie in
        the target itself (a day back at a horizon beyond a day) are left out.
        """
        if recent < 0 or daily < 0 or weekly < 0 or steps_per_day < 1:
            raise ConfigError(
                f"recent, daily and weekly must not be negative and steps_per_day at least 1, got {recent}, {daily}, "
                f"{weekly} and {steps_per_day}"
            )
        offsets = set(range(-recent, 0))
        lags = [d * steps_per_day for d in range(1, daily + 1)] + [w * 7 * steps_per_day for w in range(1, weekly + 1)]
        for lag in lags:
            offsets.update(step - lag for step in range(horizon) if step < lag)
        return cls(horizon, tuple(sorted(offsets)), neighbourhood, memory_days)

    @property
    def input_length(self) -> int:
        """Number of input slots, T_in."""
        return len(self.offsets)

    @property
    def reach(self) -> int:
        """Number of slots from the first input slot to the first target slot."""
        return -self.offsets[0]

    @property
    def least_past(self) -> int:
        """Number of slots that the series needs before the first target slot; 1 with a memory, which masks the rest."""
        return 1 if self.memory_days else self.reach


class Windows(WindowSource):
    """Samples of one data set: every origin with every cell inside the city.

    An origin is the index of the first target slot. It is used if its whole target lies in `steps` and its inputs lie
    in the series; the inputs may begin before ``steps.start``. Windows with a memory use every origin that has a slot
    before it, with NaN for inputs before the series. `steps` may run past the end of the series (a forecast): targets
    there are NaN, and the calendar continues. Sample i is ``(origins[i // num_cells], cells[i % num_cells])``.

    Args:
        dataset: the traffic.
        spec: the window.
        scaler: scaler fitted on training slots.
        steps: consecutive slots that may be targets.
        context_days: days of the series before an origin that its samples may know, in inputs and memory alike; at
            least 1 if there is a memory; None takes ``spec.memory_days``.
        draw_origins: (number, seed) of a draw of origins without repeats; None takes every origin.

    Attributes:
        origins: int64 (O,).
        cells: int64 (C, 2), (row, column).

    Raises:
        DataError: no window fits; the message names both lengths and what to change.

    Example:
        >>> import numpy as np
        >>> from simmst.data import Scaler, TrafficDataset
        >>> city = TrafficDataset.from_arrays(np.ones((48, 3, 3)), np.arange(48) * 3600, country=None)
        >>> spec = WindowSpec.recent(2, 6, steps_per_day=24, neighbourhood=3)
        >>> windows = Windows(city, spec, Scaler.fit(city, range(48)), steps=range(48))
        >>> len(windows), windows.batch([0, 1]).values.shape
        (369, torch.Size([2, 6, 1, 3, 3]))
    """

    def __init__(
        self,
        dataset: TrafficDataset,
        spec: WindowSpec,
        scaler: Scaler,
        *,
        steps: range,
        context_days: int | None = None,
        draw_origins: tuple[int, Sequence[int]] | None = None,
    ) -> None:
        if steps.step != 1 or steps.start < 0:
            raise DataError(f"steps must be consecutive slots from 0 on, got {steps}")
        self.dataset = dataset
        self.spec = spec
        self.scaler = scaler
        self.origins = _origins(dataset, spec, steps)
        if draw_origins is not None and draw_origins[0] < len(self.origins):
            drawn = np.random.default_rng(draw_origins[1]).choice(len(self.origins), draw_origins[0], replace=False)
            self.origins = self.origins[np.sort(drawn)]
        self.cells = dataset.cells
        self.num_origins = len(self.origins)
        self.num_cells = len(self.cells)
        self.lengths = np.array([len(self)])
        self._offsets = np.array(spec.offsets, dtype=np.int64)
        self._ahead = np.arange(spec.horizon, dtype=np.int64)
        # Only the slots that some window touches are scaled and kept.
        context = spec.memory_days if context_days is None else context_days
        if context > spec.memory_days or context < min(spec.memory_days, 1):
            raise ConfigError(f"context_days is {context}; the windows have a memory of {spec.memory_days} days")
        self._context = context * dataset.steps_per_day
        reach = max(spec.reach, self._context)
        # Windows with a memory may begin before the series, where nothing is known.
        self._first = min(max(int(self.origins[0]) - reach, 0), int(self.origins[0]) - spec.reach)
        self._last = int(self.origins[-1]) + spec.horizon
        start = dataset.time[0].astype(np.int64) + self._first * dataset.step_minutes * 60
        seconds = start + np.arange(self._last - self._first) * dataset.step_minutes * 60
        self._marks = calendar_features(
            *dataset.clock(seconds.astype("datetime64[s]")), dataset.country, dataset.events
        )
        self._values = self._scaled()  # (t, K, H + 2p, W + 2p) on grids, (t, K, W) for points
        self._patches, self._masks = self._views()
        self._memory = None
        if spec.memory_days:
            self._memory = SeriesMemory(
                self._values,
                self._marks,
                weekday(*dataset.clock(seconds.astype("datetime64[s]"))),
                origins=self.origins - self._first,
                offsets=self._offsets,
                horizon=spec.horizon,
                days=spec.memory_days,
                context_days=context,
                steps_per_day=dataset.steps_per_day,
                padding=max(-self._first, 0),
            )

    def __len__(self) -> int:
        return self.num_origins * self.num_cells

    @property
    def parts(self) -> tuple[Windows]:
        """The windows of each city, here of one city: only `self`."""
        return (self,)

    def batch(self, indices: Indices) -> Batch:
        """Gather samples by number.

        Raises:
            IndexError: a number is outside 0..len-1.
        """
        index = as_index(indices, len(self))
        origin, row, col = self._locate(index)
        past = origin[:, None] + self._offsets - self._first  # (B, T_in)
        ahead = origin[:, None] + self._ahead - self._first  # (B, T_out)
        n, p = self.spec.neighbourhood, self.spec.neighbourhood // 2
        if self._patches is None:
            services = self.dataset.num_services
            values = np.full((len(index), self.spec.input_length, services, n, n), np.nan, dtype=np.float32)
            values[..., p, p] = self._values[past, :, col[:, None]]
            mask = np.zeros((len(index), n, n), dtype=bool)
            mask[:, p, p] = True
            target = self._values[ahead, :, col[:, None]]
        else:
            values = self._patches[past, :, row[:, None], col[:, None]]
            mask = self._masks[row, col]
            target = self._values[ahead, :, row[:, None] + p, col[:, None] + p]
        if self._memory is not None:
            values[past < (origin - self._first - self._context)[:, None]] = np.nan
        marks = self._marks[np.concatenate([past, ahead], axis=1)]
        arrays = (values, marks, mask, target, index, *self._recall(origin, row, col))
        return Batch(*map(torch.from_numpy, map(np.ascontiguousarray, arrays)))

    def _recall(self, origin: np.ndarray, row: np.ndarray, col: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return the memory of samples; an empty tuple where the windows have none."""
        if self._memory is None:
            return ()
        n, p = self.spec.neighbourhood, self.spec.neighbourhood // 2
        if self._patches is not None:
            around = np.arange(n)
            patch = (row[:, None, None] + around[:, None], col[:, None, None] + around)
            return self._memory.gather(origin - self._first, (row + p, col + p), patch)
        recalled = list(self._memory.gather(origin - self._first, (col,), (col[:, None, None],)))
        for place in (2, 4, 5):  # usual, level and spread: no values for the neighbours
            alone = np.full((*recalled[place].shape[:-2], n, n), np.nan, dtype=np.float32)
            alone[..., p, p] = recalled[place][..., 0, 0]
            recalled[place] = alone
        return tuple(recalled)

    def raw_target(self, indices: Indices) -> np.ndarray:
        """Return targets in raw units, float32 (B, T_out, K); NaN = missing or beyond the end of the series."""
        origin, row, col = self._locate(as_index(indices, len(self)))
        ahead = origin[:, None] + self._ahead
        inside = ahead < self.dataset.num_steps
        target = self.dataset.activity[np.where(inside, ahead, 0), :, row[:, None], col[:, None]]
        return np.where(inside[..., None], target, np.float32(np.nan))

    def _locate(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        cell = self.cells[index % self.num_cells]
        return self.origins[index // self.num_cells], cell[:, 0], cell[:, 1]

    def _scaled(self) -> np.ndarray:
        data, points = self.dataset, self.dataset.geometry == "points"
        p = 0 if points else self.spec.neighbourhood // 2
        _, services, height, width = data.activity.shape
        shape = (self._last - self._first, services, height + 2 * p, width + 2 * p)
        padded = np.full(shape, np.nan, dtype=np.float32)
        outside = ~data.mask
        for start in range(max(self._first, 0), min(self._last, data.num_steps), _CHUNK):
            stop = min(start + _CHUNK, self._last, data.num_steps)
            block = self.scaler.transform(data.activity[start:stop], axis=1)
            block[:, :, outside] = np.nan
            padded[start - self._first : stop - self._first, :, p : p + height, p : p + width] = block
        return padded[:, :, 0] if points else padded

    def _views(self) -> tuple[np.ndarray | None, np.ndarray]:
        """Return neighbourhoods as strided views: values (t, K, H, W, n, n) and mask (H, W, n, n)."""
        if self.dataset.geometry == "points":
            return None, self.dataset.mask
        n, p = self.spec.neighbourhood, self.spec.neighbourhood // 2
        mask = np.pad(self.dataset.mask, p)
        view = np.lib.stride_tricks.sliding_window_view
        return view(self._values, (n, n), axis=(2, 3)), view(mask, (n, n))


class CityWindows(WindowSource, Protocol):
    """Windows of one city or of many, numbered city after city."""

    @property
    def parts(self) -> Sequence[Windows]:
        """The windows of each city in memory; empty where the cities are streamed."""

    @property
    def lengths(self) -> np.ndarray:
        """Number of samples of each city, int64 (C,)."""


class ConcatWindows(WindowSource):
    """Windows of several data sets as one; samples are numbered part after part.

    Args:
        parts: windows with the same spec and the same services.

    Raises:
        DataError: no parts, or parts whose samples have different shapes.
    """

    def __init__(self, parts: Sequence[Windows]) -> None:
        self.parts = tuple(parts)
        if not self.parts:
            raise DataError("there are no windows to put together; give at least one part")
        self.spec = self.parts[0].spec
        services = self.parts[0].dataset.services
        for part in self.parts[1:]:
            if part.spec != self.spec or part.dataset.services != services:
                raise DataError(
                    f"windows can only be put together with one spec and one set of services: "
                    f"{self.parts[0].dataset.name} has "
                    f"{self.spec} of {', '.join(services)}, {part.dataset.name} has {part.spec} of "
                    f"{', '.join(part.dataset.services)}"
                )
        self.lengths = np.array([len(part) for part in self.parts])
        self._starts = np.cumsum([0, *self.lengths])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def part_of(self, indices: Indices) -> np.ndarray:
        """Return the part that each sample belongs to, int64 (B,)."""
        index = as_index(indices, len(self))
        return np.searchsorted(self._starts, index, side="right").astype(np.int64) - 1

    def batch(self, indices: Indices) -> Batch:
        """Gather samples by number; they may come from different parts."""
        return gather_from(self.parts, as_index(indices, len(self)))

    def raw_target(self, indices: Indices) -> np.ndarray:
        """Return targets in raw units, float32 (B, T_out, K)."""
        index = as_index(indices, len(self))
        which = self.part_of(index)
        target = np.empty((len(index), self.spec.horizon, self.parts[0].dataset.num_services), dtype=np.float32)
        for part in np.unique(which):
            rows = np.flatnonzero(which == part)
            target[rows] = self.parts[part].raw_target(index[rows] - self._starts[part])
        return target


def _origins(dataset: TrafficDataset, spec: WindowSpec, steps: range) -> np.ndarray:
    first = max(steps.start, spec.least_past)
    last = min(steps.stop - spec.horizon, dataset.num_steps)
    if first > last:
        raise DataError(
            f"no window fits: inputs {spec.reach} slots back and {spec.horizon} slots ahead take "
            f"{spec.reach + spec.horizon} slots, {dataset.name} has {dataset.num_steps}, and targets may lie in "
            f"{steps.start}..{steps.stop}; use fewer input slots, a shorter horizon or a longer series"
        )
    return np.arange(first, last + 1, dtype=np.int64)
