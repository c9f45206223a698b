"""Windows over more cities than fit into memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from simmst.data.batch import Batch, Indices, WindowSource, as_index, check_sizes
from simmst.data.dataset import TrafficDataset
from simmst.data.scaler import Scaler
from simmst.data.windows import ConcatWindows, Windows, WindowSpec
from simmst.errors import ConfigError


class StreamedWindows(WindowSource):
    """A fixed number of samples of each of many cities, read when they are needed.

    Sample j is number ``j % per_city`` of those drawn from city ``j // per_city``; the draw depends on (seed, city)
    alone, so each sample can keep a weight of its own, or all samples of a city can share one. Each city has a scaler
    of its own, fitted to all its slots. At most one city more than `keep` is in memory.

    Args:
        cities: indexable collection of data sets, such as `CityShards`.
        spec: the window.
        per_city: number of samples drawn from each city.
        seed: seed of the draw.
        scaler_kind: kind of scaler, as in `Scaler.fit`.
        keep: number of cities kept in memory, and of cities whose samples `batches` shuffles together.
        context_days: context days of the cities' windows, assigned to the cities in rotation; None takes the spec's.
        origins_per_city: number of origins that the samples of a city share; None draws from all of them. With few
            origins a city's windows are quicker to prepare.
        redraw: whether each epoch of `batches` draws other samples of every city; `batch` gives those of the last
            epoch.

    Raises:
        ConfigError: a number is below 1, or a city has fewer windows than `per_city` (raised when it is read).

    Example:
        >>> hours = np.arange(48) * 3600
        >>> cities = [TrafficDataset.from_arrays(np.ones((48, 3, 3)), hours, country=None) for _ in range(3)]
        >>> spec = WindowSpec.recent(1, 6, steps_per_day=24, neighbourhood=3)
        >>> windows = StreamedWindows(cities, spec, per_city=8, keep=2)
        >>> len(windows), windows.city_of([0, 8, 23]).tolist()
        (24, [0, 1, 2])
        >>> sum(len(batch.index) for batch in windows.batches(5, seed=0, epoch=0))
        24
    """

    parts: tuple[Windows, ...] = ()  # no city stays in memory

    def __init__(
        self,
        cities: Sequence[TrafficDataset],
        spec: WindowSpec,
        *,
        per_city: int,
        seed: int = 0,
        scaler_kind: str | None = None,
        keep: int = 8,
        context_days: Sequence[int] | None = None,
        origins_per_city: int | None = None,
        redraw: bool = False,
    ) -> None:
        for name, value in (("per_city", per_city), ("keep", keep), ("the number of cities", len(cities))):
            if value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        self.cities, self.spec, self.per_city, self.seed = cities, spec, per_city, seed
        self.scaler_kind, self.keep, self.context_days = scaler_kind, keep, context_days
        self.origins_per_city, self.redraw, self._draw = origins_per_city, redraw, 0
        self.lengths = np.full(len(cities), per_city)
        self._kept: OrderedDict[int, tuple[Windows, np.ndarray]] = OrderedDict()

    def __len__(self) -> int:
        return len(self.cities) * self.per_city

    def city_of(self, indices: Indices) -> np.ndarray:
        """Return the number of the city that each sample is from, int64 (B,)."""
        return np.asarray(indices, dtype=np.int64).reshape(-1) // self.per_city

    def batch(self, indices: Indices) -> Batch:
        """Gather samples by number; every city among them is read once.

        Raises:
            IndexError: a number is outside 0..len-1.
        """
        index = as_index(indices, len(self))
        city = self.city_of(index)
        parts, numbers, starts = [], np.empty_like(index), 0
        for number in np.unique(city) if len(index) else (0,):
            windows, drawn = self._windows(int(number))
            rows = city == number
            numbers[rows] = starts + drawn[index[rows] % self.per_city]
            parts.append(windows)
            starts += len(windows)
        return ConcatWindows(parts).batch(numbers)._replace(index=torch.from_numpy(index))

    def share(self, numbers: np.ndarray, rank: int, world_size: int) -> np.ndarray:
        """Return the positions of the samples from cities rank, rank + world_size, ...: a process reads no others."""
        return np.flatnonzero(self.city_of(numbers) % world_size == rank)

    def order(self, batch_size: int, *, seed: int, epoch: int, limit: int | None = None) -> Iterator[np.ndarray]:
        """Yield the sample numbers of an epoch's batches, `keep` cities at a time.

        The order depends on (seed, epoch) alone. Cities come in shuffled order, and the samples of `keep` consecutive
        cities are shuffled together, so every city is read once an epoch.
        """
        check_sizes(batch_size, limit)
        if self.redraw and self._draw != epoch:
            self._draw = epoch
            self._kept.clear()
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(self.cities))
        left = len(self) if limit is None else min(limit, len(self))
        waiting = np.empty(0, dtype=np.int64)
        for start in range(0, len(order), self.keep):
            group = order[start : start + self.keep, None] * self.per_city + np.arange(self.per_city)
            waiting = np.concatenate([waiting, rng.permutation(group.reshape(-1))])
            while left and (len(waiting) >= batch_size or (start + self.keep >= len(order) and len(waiting))):
                size = min(batch_size, left, len(waiting))
                yield waiting[:size]
                waiting, left = waiting[size:], left - size

    def _windows(self, number: int) -> tuple[Windows, np.ndarray]:
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        city = self.cities[number]
        steps = range(city.num_steps)
        key = [self.seed, number, self._draw] if self._draw else [self.seed, number]
        windows = Windows(
            city,
            self.spec,
            Scaler.fit(city, steps, self.scaler_kind),
            steps=steps,
            context_days=None if self.context_days is None else self.context_days[number % len(self.context_days)],
            draw_origins=None
            if self.origins_per_city is None
            else (self.origins_per_city, [self.seed, number, self._draw]),
        )
        if len(windows) < self.per_city:
            raise ConfigError(
                f"{city.name} has {len(windows)} windows, fewer than per_city = {self.per_city}; "
                "lower per_city, or simulate larger or longer cities"
            )
        drawn = np.random.default_rng(key).choice(len(windows), size=self.per_city, replace=False)
        self._kept[number] = windows, np.sort(drawn)
        if len(self._kept) > self.keep + 1:  # a batch may touch the last city of the previous group
            self._kept.popitem(last=False)
        return self._kept[number]
