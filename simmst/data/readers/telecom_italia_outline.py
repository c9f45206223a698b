"""The slots and cells that a set of official days makes, and its activity a few slots at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simmst.data.grids import Grid
from simmst.data.readers.arrays import read_arrays
from simmst.data.readers.telecom_italia_day import LONGEST_SPAN, SERVICES, Day, when
from simmst.data.readers.telecom_italia_lines import SLOT_MS
from simmst.errors import DataError

_SLAB = 144  # slots of a day


def check_overlap(days: Sequence[Day], new: Day) -> None:
    """Refuse a day with a slot that an earlier day has.

    Raises:
        DataError: two files have rows of one slot; the message names both files and the slot.
    """
    for old in days:
        low, high = max(old.first, new.first), min(old.first + len(old.covered), new.first + len(new.covered))
        if low >= high:
            continue
        both = old.covered[low - old.first : high - old.first] & new.covered[low - new.first : high - new.first]
        if both.any():
            raise DataError(
                f"{new.path} and {old.path} both have rows of the slot {when(low + int(both.argmax()))} UTC; "
                "give each day once"
            )


@dataclass(frozen=True, eq=False)
class Outline:
    """The frame of a data set.

    Attributes:
        spans: first slot and covered slots of each day.
        first: first slot, counted in slots of 10 minutes since 1970.
        shape: (T, 3, H, W) of the activity.
        low: row and column of the grid where the frame starts.
        mask: bool (H, W).
        grid: grid of the cells.
    """

    spans: tuple[tuple[int, np.ndarray], ...]
    first: int
    shape: tuple[int, int, int, int]
    low: np.ndarray
    mask: np.ndarray
    grid: Grid

    @classmethod
    def of(cls, days: Sequence[Day], grid: Grid, cells: str) -> Outline:
        """Build the frame of some days, with the cells of the grid, or cropped to the ``"observed"`` ones.

        Raises:
            DataError: the days lie years apart.
        """
        first = min(day.first for day in days)
        count = max(day.first + len(day.covered) for day in days) - first
        if count > LONGEST_SPAN:
            raise DataError(
                f"the {len(days)} files reach from {when(first)} to {when(first + count - 1)} UTC, "
                "too far for one series; leave out those of another time"
            )
        seen = np.logical_or.reduce([day.seen for day in days])
        mask = grid.mask if cells == "grid" and grid.official else seen.reshape(grid.mask.shape)
        low, high = np.zeros(2, dtype=np.int64), np.array(grid.mask.shape)
        if cells == "observed":
            places = np.argwhere(mask)
            low, high = places.min(axis=0), places.max(axis=0) + 1
        height, width = (high - low).tolist()
        mask = np.ascontiguousarray(mask[low[0] : high[0], low[1] : high[1]])
        spans = tuple((day.first, day.covered) for day in days)
        return cls(spans, first, (count, len(SERVICES), height, width), low, mask, grid)

    def slabs(
        self, activity: Callable[[int], np.ndarray], done: Callable[[int], None] = lambda day: None
    ) -> Iterator[np.ndarray]:
        """Yield the activity, float32 (slots, 3, H, W), a day's slots at a time, NaN where missing or outside.

        Args:
            activity: function that returns a day's activity by its number, (slots, 3, cells of the grid).
            done: function that is called with the number of a day that is not needed again.
        """
        height, width = self.shape[2:]
        rows, columns = slice(self.low[0], self.low[0] + height), slice(self.low[1], self.low[1] + width)
        at_hand: dict[int, np.ndarray] = {}
        for start in range(self.first, self.first + self.shape[0], _SLAB):
            stop = min(start + _SLAB, self.first + self.shape[0])
            slab = np.full((stop - start, *self.shape[1:]), np.nan, dtype=np.float32)
            for number, (first, covered) in enumerate(self.spans):
                last = first + len(covered)
                low, high = max(start, first), min(stop, last)
                if low >= high:
                    continue
                if number not in at_hand:
                    at_hand[number] = activity(number).reshape(-1, len(SERVICES), *self.grid.mask.shape)
                has = covered[low - first : high - first]
                piece = at_hand[number][low - first : high - first, :, rows, columns]
                slab[low - start : high - start][has] = piece[has]
                if last <= stop:
                    del at_hand[number]
                    done(number)
            slab[:, :, ~self.mask] = np.nan
            yield slab

    def attributes(self, activity: np.ndarray) -> dict[str, Any]:
        """Return the attributes of the data set with this activity."""
        height, width = self.shape[2:]
        cell_id, lonlat = self.grid.crop(self.low, self.low + np.array([height, width]))
        seconds = (self.first + np.arange(self.shape[0], dtype=np.int64)) * (SLOT_MS // 1000)
        return read_arrays(
            activity,
            seconds.astype("datetime64[s]"),
            services=SERVICES,
            mask=self.mask,
            cell_id=cell_id,
            cell_size_m=self.grid.cell_size_m,
            lonlat=lonlat,
            name=self.grid.name,
        )
