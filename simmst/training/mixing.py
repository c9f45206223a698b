"""Batches drawn from real and simulated windows together, or by weights."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from simmst.data import Batch, WindowSource
from simmst.data.batch import Indices, as_index, gather_from
from simmst.errors import DataError
from simmst.training.seeds import derive_seed


class MixedWindows(WindowSource):
    """Real and simulated windows, mixed in every batch in a fixed proportion.

    The share of real windows does not depend on their number, so a hundred simulated cities do not drown a few real
    days. Within one epoch every real window comes once before any comes twice. The real windows are numbered first,
    then the simulated ones.

    Args:
        real: windows of the real city.
        simulated: windows of the simulated cities.
        real_share: share of each batch taken from `real`, in (0, 1); at least one window comes from each side.

    Raises:
        DataError: one of the sides has no window.
    """

    def __init__(self, real: WindowSource, simulated: WindowSource, real_share: float) -> None:
        for name, windows in (("real", real), ("simulated", simulated)):
            if len(windows) == 0:
                raise DataError(f"there is no {name} window to mix; give a longer {name} series or a shorter window")
        self.real = real
        self.simulated = simulated
        self.real_share = real_share

    def __len__(self) -> int:
        return len(self.real) + len(self.simulated)

    def batch(self, indices: Indices) -> Batch:
        """Gather windows by number."""
        return gather_from((self.real, self.simulated), as_index(indices, len(self)))

    def order(self, batch_size: int, *, seed: int, epoch: int, limit: int | None = None) -> Iterator[np.ndarray]:
        """Yield the numbers of mixed batches of one size, at least 2; they depend on (seed, epoch) alone."""
        total = len(self) if limit is None else min(limit, len(self))
        num_real = min(max(round(self.real_share * batch_size), 1), batch_size - 1)
        real = _endless(self.real, num_real, derive_seed(seed, "real"), epoch)
        simulated = _endless(self.simulated, batch_size - num_real, derive_seed(seed, "simulated"), epoch)
        for _ in range(math.ceil(total / batch_size)):
            yield np.concatenate([next(real), next(simulated) + len(self.real)])


class WeightedWindows(WindowSource):
    """Windows drawn with repeats, in proportion to their weights.

    Args:
        source: windows to draw from.
        weights: weight of each window relative to the others, (n,).

    Raises:
        DataError: no window has a weight above zero.
    """

    def __init__(self, source: WindowSource, weights: np.ndarray) -> None:
        shares = np.asarray(weights, dtype=np.float64)
        if not shares.sum() > 0:
            raise DataError(f"none of {len(shares)} windows has a weight above 0; there is nothing to draw")
        self.source, self.shares = source, shares / shares.sum()

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, indices: Indices) -> Batch:
        """Gather windows by number."""
        return self.source.batch(indices)

    def order(self, batch_size: int, *, seed: int, epoch: int, limit: int | None = None) -> Iterator[np.ndarray]:
        """Yield the numbers of an epoch's batches; the draw depends on (seed, epoch) alone."""
        total = len(self) if limit is None else min(limit, len(self))
        drawn = np.random.default_rng([seed, epoch]).choice(len(self), total, p=self.shares)
        for start in range(0, total, batch_size):
            yield drawn[start : start + batch_size]


def _endless(windows: WindowSource, batch_size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """Shuffle the windows again and again, each time in a new order."""
    rounds = 0
    while True:
        yield from windows.order(batch_size, seed=derive_seed(seed, epoch, rounds), epoch=epoch)
        rounds += 1
