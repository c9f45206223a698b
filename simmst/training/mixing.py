"""Batches drawn from real and simulated windows together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import torch

from simmst.data import Batch, ConcatWindows, StreamedWindows, Windows, batches
from simmst.errors import DataError
from simmst.sim2real import Samples
from simmst.training.seeds import derive_seed

WindowSource: TypeAlias = Windows | ConcatWindows | StreamedWindows


class MixedWindows:
    """Real and simulated windows, mixed in every batch in a fixed proportion.

    The share of real windows does not depend on how many there are, so a few real days are not drowned by a hundred
    simulated cities; within one epoch every real window comes once before any comes twice.

    Args:
        real: windows of the real city.
        simulated: windows of the simulated cities.
        real_share: the part of each batch taken from `real`, in (0, 1); at least one window comes from each side.

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

    def batches(self, batch_size: int, *, seed: int, epoch: int, limit: int | None) -> Iterator[Batch]:
        """Yield an epoch of mixed batches; the order depends on (seed, epoch) alone.

        Args:
            batch_size: windows in a batch, at least 2.
            seed: the run's seed.
            epoch: the epoch's number.
            limit: windows in the epoch; None takes as many as both sides have together.

        Yields:
            Batches whose `index` counts the real windows first, then the simulated ones.
        """
        total = len(self) if limit is None else min(limit, len(self))
        num_real = min(max(round(self.real_share * batch_size), 1), batch_size - 1)
        real = _endless(self.real, num_real, derive_seed(seed, "real"), epoch)
        simulated = _endless(self.simulated, batch_size - num_real, derive_seed(seed, "simulated"), epoch)
        for _ in range(math.ceil(total / batch_size)):
            one, two = next(real), next(simulated)
            two = two._replace(index=two.index + len(self.real))
            yield Batch(*(torch.cat(parts) for parts in zip(one, two, strict=True)))


class WeightedWindows:
    """Windows drawn with repeats, each as often as its weight says.

    Args:
        source: where they are gathered from.
        numbers: int64 (n,), the windows that may be drawn.
        weights: (n,), how often, relative to each other.

    Raises:
        DataError: no window has a weight above zero.
    """

    def __init__(self, source: Samples, numbers: np.ndarray, weights: np.ndarray) -> None:
        shares = np.asarray(weights, dtype=np.float64)
        if not shares.sum() > 0:
            raise DataError(f"none of {len(shares)} windows has a weight above 0; there is nothing to draw")
        self.source, self.numbers, self.shares = source, numbers, shares / shares.sum()

    def __len__(self) -> int:
        return len(self.numbers)

    def batches(self, batch_size: int, *, seed: int, epoch: int, limit: int | None) -> Iterator[Batch]:
        """Yield an epoch of batches; the draw depends on (seed, epoch) alone."""
        total = len(self) if limit is None else min(limit, len(self))
        drawn = np.random.default_rng([seed, epoch]).choice(len(self), total, p=self.shares)
        for start in range(0, total, batch_size):
            yield self.source.batch(self.numbers[drawn[start : start + batch_size]])


TrainingWindows: TypeAlias = WindowSource | MixedWindows | WeightedWindows


def _endless(windows: WindowSource, batch_size: int, seed: int, epoch: int) -> Iterator[Batch]:
    """Shuffle the windows again and again, each time in another order."""
    rounds = 0
    while True:
        yield from _once(windows, batch_size, derive_seed(seed, epoch, rounds), epoch, None)
        rounds += 1


def epoch_batches(
    windows: TrainingWindows, batch_size: int, *, seed: int, epoch: int, limit: int | None
) -> Iterator[Batch]:
    """Yield the training batches of one epoch from any kind of source; the order depends on (seed, epoch) alone."""
    if isinstance(windows, (MixedWindows, WeightedWindows)):
        return windows.batches(batch_size, seed=seed, epoch=epoch, limit=limit)
    return _once(windows, batch_size, seed, epoch, limit)


def _once(windows: WindowSource, batch_size: int, seed: int, epoch: int, limit: int | None) -> Iterator[Batch]:
    if isinstance(windows, StreamedWindows):  # shuffled in an order that reads each city once
        return windows.batches(batch_size, seed=seed, epoch=epoch, limit=limit)
    return batches(windows, batch_size, seed=seed, epoch=epoch, shuffle=True, limit=limit)
