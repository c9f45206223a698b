"""A fixed choice of windows, so that each can have a weight."""

from __future__ import annotations

import numpy as np
import torch

from simmst.data import Batch, CityWindows, WindowSource, concat_batches, index_batch
from simmst.data.batch import Indices
from simmst.errors import DataError
from simmst.training.seeds import derive_seed

_SCAN = 2048  # windows gathered at a time


class ChosenWindows(WindowSource):
    """Some windows of a source, numbered from 0.

    Args:
        source: source that they are gathered from.
        numbers: int64 (n,), their numbers in the source.
        cities: int64 (n,), city of each; zeros where the source is one city.
        keep: whether to hold the gathered windows in memory.

    Example:
        >>> from simmst.data import Scaler, TrafficDataset, Windows, WindowSpec
        >>> city = TrafficDataset.from_arrays(np.ones((48, 3, 3)), np.arange(48) * 3600, country=None)
        >>> spec = WindowSpec.recent(2, 6, steps_per_day=24, neighbourhood=3)
        >>> windows = Windows(city, spec, Scaler.fit(city, range(48)), steps=range(48))
        >>> chosen = choose_windows(windows, per_city=5, seed=0)
        >>> len(chosen), chosen.batch([4]).index.tolist()
        (5, [4])
    """

    def __init__(self, source: WindowSource, numbers: np.ndarray, cities: np.ndarray, *, keep: bool = False) -> None:
        self.source, self.numbers, self.cities = source, numbers, cities
        starts = range(0, len(numbers), _SCAN) if keep else ()
        pieces = [source.batch(numbers[start : start + _SCAN]) for start in starts]
        self._kept = concat_batches(pieces) if pieces else None

    def __len__(self) -> int:
        return len(self.numbers)

    def batch(self, indices: Indices) -> Batch:
        """Gather windows by their number in the choice."""
        index = torch.as_tensor(np.asarray(indices), dtype=torch.int64)
        kept = self._kept
        batch = self.source.batch(self.numbers[index.numpy()]) if kept is None else index_batch(kept, index)
        return batch._replace(index=index)


def choose_windows(
    source: CityWindows, *, per_city: int | None, seed: int, limit: int | None = None, keep: bool = False
) -> ChosenWindows:
    """Choose windows that have an observed target; the choice depends on (source, seed) alone.

    Args:
        source: windows of one city or of many.
        per_city: number of windows of each city, drawn without repeats; None takes all.
        seed: seed of the draw.
        limit: largest number of windows in all, evenly spaced.
        keep: whether to hold the gathered windows in memory.

    Raises:
        DataError: no window has an observed target.
    """
    numbers, cities = [], []
    for city, (stop, length) in enumerate(zip(np.cumsum(source.lengths), source.lengths, strict=True)):
        drawn = own = np.arange(stop - length, stop)
        if per_city is not None and per_city < length:
            drawn = np.sort(np.random.default_rng(derive_seed(seed, city)).choice(own, per_city, replace=False))
        numbers.append(drawn)
        cities.append(np.full(len(drawn), city, dtype=np.int64))
    number, city_of = np.concatenate(numbers), np.concatenate(cities)
    if limit is not None and limit < len(number):
        spread = np.unique(np.linspace(0, len(number) - 1, limit).round().astype(np.int64))
        number, city_of = number[spread], city_of[spread]
    observed = _observed(source, number)
    if not observed.any():
        raise DataError(
            f"none of {len(number)} windows has an observed target; give a series with values in it, or a longer one"
        )
    return ChosenWindows(source, number[observed], city_of[observed], keep=keep)


def _observed(source: CityWindows, numbers: np.ndarray) -> np.ndarray:
    """Return which windows have at least one observed target, bool (n,)."""
    data = [part.dataset for part in source.parts]
    if data and not any(np.isnan(dataset.activity[..., dataset.mask]).any() for dataset in data):
        return np.ones(len(numbers), dtype=bool)
    seen = [
        (~torch.isnan(source.batch(numbers[start : start + _SCAN]).target)).any(dim=2).any(dim=1).numpy()
        for start in range(0, len(numbers), _SCAN)
    ]
    return np.concatenate(seen)
