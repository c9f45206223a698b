"""The memory of a series: its slots on the days before, and how far today is from a usual day."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

_FEW = 4  # up to this many origins, plain sums are quicker than a running sum
_AT_ONCE = 1 << 17  # numbers processed at a time, so that their copies stay in the cache


class _Usual(NamedTuple):
    """The usual values at the input slots that have the same number of previous days to compare with.

    Attributes:
        columns: int64 (c,), positions of these slots among the input slots.
        slots: int64 (s,), the slots of all origins, ascending.
        usual: float32 (s, K, H, W), mean of the days before; NaN where none is known.
        city: float32 (s, K), mean deviation of all cells from the usual; NaN where nothing is known.
    """

    columns: np.ndarray
    slots: np.ndarray
    usual: np.ndarray
    city: np.ndarray


class SeriesMemory:
    """The memory of one stretch of a city, ready to be gathered for any origin and cell.

    Args:
        values: float32 (t, K, H, W), or (t, K, W) for points; scaled, NaN = missing. H and W include the padding.
        marks: float32 (t, M), calendar features; columns 6 and 7 mark weekends and holidays.
        weekday: int64 (t,), local day of the week.
        origins: int64 (O,), ascending first target slots, counted from the start of the stretch.
        offsets: int64 (T_in,), input slots relative to an origin.
        horizon: number of target slots, T_out.
        days: L, number of days that a sample looks back.
        context_days: number of days of the series that a forecast may know, at most L.
        steps_per_day: number of slots in a day.
        padding: number of slots of the stretch that lie before the series.
    """

    def __init__(
        self,
        values: np.ndarray,
        marks: np.ndarray,
        weekday: np.ndarray,
        *,
        origins: np.ndarray,
        offsets: np.ndarray,
        horizon: int,
        days: int,
        context_days: int,
        steps_per_day: int,
        padding: int = 0,
    ) -> None:
        self.values, self.weekday, self.offsets, self.horizon = values, weekday, offsets, horizon
        self.rest = np.asarray(marks[:, 6:8].any(axis=1))
        self.days, self.context_days, self.steps_per_day = days, context_days, steps_per_day
        self.origins, self.padding = origins, padding
        self.level, self.spread = self._moments()  # (O, K, H, W)
        # The further back an input slot lies, the fewer days before it are still in the context.
        within = context_days + offsets // steps_per_day
        self.usual = [self._usual(np.flatnonzero(within == days), int(days)) for days in np.unique(within)]

    def gather(self, origin: np.ndarray, centre: tuple[Any, ...], patch: tuple[Any, ...]) -> tuple[np.ndarray, ...]:
        """Gather the arrays of `Memory` for samples.

        Args:
            origin: int64 (B,), first target slots, among the origins.
            centre: indices of the target cells on the last axes of the values, each (B,).
            patch: indices of their neighbourhoods, each broadcastable to (B, n, n).
        """
        slots = origin[:, None] + np.concatenate([self.offsets, np.arange(self.horizon)])  # (B, J)
        lags = slots[:, None] - np.arange(1, self.days + 1)[:, None] * self.steps_per_day  # (B, L, J)
        earliest = np.maximum(origin - self.context_days * self.steps_per_day, self.padding)
        known: np.ndarray = (lags >= earliest[:, None, None]) & (lags < origin[:, None, None])
        lags = np.where(known, lags, 0)
        every: Any = slice(None)
        days = self.values[(lags, every, *(axis[:, None, None] for axis in centre))]  # (B, L, J, K)
        days[~known] = np.nan
        ahead, before = slots[:, None, len(self.offsets) :], lags[:, :, len(self.offsets) :]
        same = np.stack([self.rest[ahead] == self.rest[before], self.weekday[ahead] == self.weekday[before]], axis=-1)
        same &= np.asarray(known)[:, :, len(self.offsets) :, None]
        usual, city = self._recall_usual(slots[:, : len(self.offsets)], patch)
        row = np.searchsorted(self.origins, origin)
        level = np.moveaxis(self.level[(row[:, None, None], every, *patch)], -1, 1)
        spread = np.moveaxis(self.spread[(row[:, None, None], every, *patch)], -1, 1)
        context = np.minimum((origin - self.padding) / self.steps_per_day, self.context_days).astype(np.float32)
        per_day = np.full(len(origin), self.steps_per_day, dtype=np.float32)
        return days, same.astype(np.float32), usual, city, level, spread, context, per_day

    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Return each origin's mean and deviation over its context, float32 (O, K, ...); NaN where nothing is known."""
        start = np.maximum(self.origins - self.context_days * self.steps_per_day, 0)
        level = np.empty((len(self.origins), *self.values.shape[1:]), dtype=np.float32)
        spread = np.empty_like(level)
        past = self.values[: self.origins[-1]].reshape(int(self.origins[-1]), -1)  # (t, K * H * W)
        flat_level, flat_spread = (moment.reshape(len(moment), past.shape[1]) for moment in (level, spread))
        for some in _blocks(past.shape[1], _AT_ONCE // max(len(past), 1)):
            values = past[:, some].astype(np.float64)
            seen = ~np.isnan(values)
            values[~seen] = 0.0
            terms = (seen.astype(np.float64), values, values**2)
            sums = [_sums(term, start, self.origins) for term in terms]
            with np.errstate(invalid="ignore", divide="ignore"):
                mean = sums[1] / sums[0]
                flat_level[:, some] = mean
                flat_spread[:, some] = np.sqrt(np.maximum(sums[2] / sums[0] - mean**2, 0.0))
        return level, spread

    def _recall_usual(self, slots: np.ndarray, patch: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Return the usual values of neighbourhoods at slots (B, T_in), (B, T_in, K, n, n); and `city` (B, T_in, K)."""
        services, sides = self.values.shape[1], np.broadcast_shapes(*(axis.shape for axis in patch))[1:]
        usual = np.empty((*slots.shape, services, *sides), dtype=np.float32)
        city = np.empty((*slots.shape, services), dtype=np.float32)
        every: Any = slice(None)
        for group in self.usual:
            at = np.searchsorted(group.slots, slots[:, group.columns])
            found = group.usual[(at[..., None, None], every, *(axis[:, None] for axis in patch))]
            usual[:, group.columns] = np.moveaxis(found, -1, 2)
            city[:, group.columns] = group.city[at]
        return usual, city

    def _usual(self, columns: np.ndarray, days: int) -> _Usual:
        """Compare some of the input slots of every origin with the same slots on the `days` days before."""
        slots = np.unique(self.origins[:, None] + self.offsets[columns])
        usual = np.empty((len(slots), *self.values.shape[1:]), dtype=np.float32)
        city = np.empty(usual.shape[:2], dtype=np.float32)
        for some in _blocks(len(slots), _AT_ONCE // max(self.values[0].size, 1)):
            usual[some], city[some] = self._compare(slots[some], days)
        return _Usual(columns, slots, usual, city)

    def _compare(self, slots: np.ndarray, days: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean of the days before some slots, (s, K, H, W), and the cells' mean deviation, (s, K)."""
        total = np.zeros((len(slots), *self.values.shape[1:]), dtype=np.float32)
        count = np.zeros_like(total)
        for day in range(1, days + 1):
            lagged = slots - day * self.steps_per_day
            rows = np.flatnonzero(lagged >= 0)
            if not len(rows):
                break
            values = self.values[lagged[rows]]
            seen = ~np.isnan(values)
            values[~seen] = 0.0
            total[rows] += values
            count[rows] += seen
        with np.errstate(invalid="ignore", divide="ignore"):
            usual: np.ndarray = total / count
            unusual = self.values[slots] - usual
            axes = tuple(range(2, unusual.ndim))
            seen = ~np.isnan(unusual)
            city: np.ndarray = np.where(seen, unusual, 0.0).sum(axis=axes) / seen.sum(axis=axes)
        return usual, city


def _blocks(total: int, size: int) -> Iterator[slice]:
    """Cut 0..total - 1 into stretches of at most `size` (at least 1) each."""
    size = max(size, 1)
    return (slice(start, start + size) for start in range(0, total, size))


def _sums(terms: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Return the sums over stretches of the first axis, (O, ...)."""
    if len(starts) <= _FEW:
        return np.stack([terms[start:stop].sum(axis=0) for start, stop in zip(starts, stops, strict=True)])
    running = np.concatenate([np.zeros_like(terms[:1]), np.cumsum(terms, axis=0)])
    sums: np.ndarray = running[stops] - running[starts]
    return sums
