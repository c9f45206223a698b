"""A fixed choice of windows, so that a weight can belong to each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from simmst.data import Batch, ConcatWindows, StreamedWindows, Windows
from simmst.errors import DataError
from simmst.training.mixing import WindowSource
from simmst.training.seeds import derive_seed

_SCAN = 2048  # windows looked at together


class ChosenWindows:
    """Some windows of a source, numbered from 0 on.

    Args:
        source: where they are gathered from.
        numbers: int64 (n,), their numbers there.
        cities: int64 (n,), the city of each; zeros where the source is one city.
        keep: hold the gathered windows in memory.

    Example:
        >>> from simmst.data import Scaler, TrafficDataset, WindowSpec
        >>> city = TrafficDataset.from_arrays(np.ones((48, 3, 3)), np.arange(48) * 3600, country=None)
        >>> spec = WindowSpec.recent(2, 6, steps_per_day=24, neighbourhood=3)
        >>> windows = Windows(city, spec, Scaler.fit(city, range(48)), steps=range(48))
        >>> chosen = choose_windows(windows, per_city=5, seed=0)
        >>> len(chosen), chosen.batch([4]).index.tolist()
        (5, [4])
    """

    def __init__(self, source: WindowSource, numbers: np.ndarray, cities: np.ndarray, *, keep: bool = False) -> None:
        self.source, self.numbers, self.cities = source, numbers, cities
        self._kept = _gathered(source, numbers) if keep and len(numbers) else None

    def __len__(self) -> int:
        return len(self.numbers)

    def batch(self, indices: Sequence[int] | np.ndarray | torch.Tensor) -> Batch:
        """Gather windows by their number here."""
        index = torch.as_tensor(np.asarray(indices), dtype=torch.int64)
        if self._kept is not None:
            return Batch(*(tensor[index] for tensor in self._kept))._replace(index=index)
        return self.source.batch(self.numbers[index.numpy()])._replace(index=index)


def choose_windows(
    source: WindowSource, *, per_city: int | None, seed: int, limit: int | None = None, keep: bool = False
) -> ChosenWindows:
    """Choose windows that have an observed target; the choice depends on (source, seed) alone.

    Args:
        source: windows of one or of many cities.
        per_city: how many of each city, drawn without repeats; None takes all.
        seed: of the draw.
        limit: at most so many altogether, evenly spaced.
        keep: hold the gathered windows in memory.

    Raises:
        DataError: no window has an observed target.
    """
    numbers, cities = [], []
    for city, own in enumerate(_numbers_by_city(source)):
        drawn = own
        if per_city is not None and per_city < len(own):
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


def datasets_of(source: WindowSource) -> list[Windows]:
    """Return the windows of each city that is in memory; none of those that are streamed.

    Example:
        >>> from simmst.data import Scaler, TrafficDataset, WindowSpec
        >>> city = TrafficDataset.from_arrays(np.ones((48, 3, 3)), np.arange(48) * 3600, country=None)
        >>> spec = WindowSpec.recent(2, 6, steps_per_day=24, neighbourhood=3)
        >>> len(datasets_of(Windows(city, spec, Scaler.fit(city, range(48)), steps=range(48))))
        1
    """
    if isinstance(source, StreamedWindows):
        return []
    return list(source.parts) if isinstance(source, ConcatWindows) else [source]


def _numbers_by_city(source: WindowSource) -> list[np.ndarray]:
    if isinstance(source, StreamedWindows):
        return list(np.arange(len(source)).reshape(-1, source.per_city))
    starts = np.cumsum([0] + [len(part) for part in datasets_of(source)])
    return [np.arange(start, stop) for start, stop in itertools.pairwise(starts)]


def _observed(source: WindowSource, numbers: np.ndarray) -> np.ndarray:
    """Which windows have at least one observed target, bool (n,)."""
    parts = datasets_of(source)
    if parts and not any(np.isnan(part.dataset.activity[..., part.dataset.mask]).any() for part in parts):
        return np.ones(len(numbers), dtype=bool)
    seen = [
        (~torch.isnan(source.batch(numbers[start : start + _SCAN]).target)).any(dim=2).any(dim=1).numpy()
        for start in range(0, len(numbers), _SCAN)
    ]
    return np.concatenate(seen)


def _gathered(source: WindowSource, numbers: np.ndarray) -> Batch:
    pieces = [source.batch(numbers[start : start + _SCAN]) for start in range(0, len(numbers), _SCAN)]
    return Batch(*(torch.cat(parts) for parts in zip(*pieces, strict=True)))
