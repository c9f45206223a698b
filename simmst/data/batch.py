"""Batches of samples, and the protocol of their sources."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import torch

from simmst.errors import ConfigError
from simmst.foundation.memory import Memory

Indices: TypeAlias = Sequence[int] | np.ndarray | torch.Tensor


class Batch(NamedTuple):
    """Samples as torch tensors; values and target are on the scaler's scale, NaN = missing or outside the city.

    Attributes:
        values: float32 (B, T_in, K, n, n).
        marks: float32 (B, T_in + T_out, M), calendar features of the input and then the target slots.
        mask: bool (B, n, n), True inside the city.
        target: float32 (B, T_out, K), the centre cell.
        index: int64 (B,), the samples' numbers.
        days: this and the following fields are those of `Memory`; None where the windows have no memory.
    """

    values: torch.Tensor
    marks: torch.Tensor
    mask: torch.Tensor
    target: torch.Tensor
    index: torch.Tensor  # type: ignore[assignment]  # a field of this name hides tuple.index
    days: torch.Tensor | None = None
    same_day: torch.Tensor | None = None
    usual: torch.Tensor | None = None
    city: torch.Tensor | None = None
    level: torch.Tensor | None = None
    spread: torch.Tensor | None = None
    context: torch.Tensor | None = None
    steps_per_day: torch.Tensor | None = None

    @property
    def memory(self) -> Memory | None:
        """The memory of the samples; None where the windows have none."""
        return None if self.days is None else Memory(*self[5:])  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device."""
        return _batch(None if tensor is None else tensor.to(device) for tensor in self)


def _batch(tensors: Iterable[torch.Tensor | None]) -> Batch:
    return Batch(*tensors)  # type: ignore[arg-type]  # None stands only where the field may be None


def concat_batches(batches: Iterable[Batch]) -> Batch:
    """Concatenate batches; there must be at least one."""
    return _batch(None if tensors[0] is None else torch.cat(tensors) for tensors in zip(*batches, strict=True))


def index_batch(batch: Batch, rows: torch.Tensor) -> Batch:
    """Return some rows of a batch, int64 (R,), in that order."""
    return _batch(None if tensor is None else tensor[rows] for tensor in batch)


class WindowSource(Protocol):
    """A source of samples, by number or as epochs of batches: windows of one city or many, or a choice or mixture.

    A subclass defines `__len__` and `batch`; `order` and `batches` then draw the samples in shuffled order.

    Example:
        >>> class Zeros(WindowSource):
        ...     def __len__(self):
        ...         return 5
        ...
        ...     def batch(self, indices):
        ...         return Batch(*[torch.zeros(len(indices))] * 4, index=torch.as_tensor(indices))
        >>> [len(batch.index) for batch in Zeros().batches(2, seed=0, epoch=0)]
        [2, 2, 1]
    """

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abstractmethod
    def batch(self, indices: Indices) -> Batch:
        """Gather samples by number.

        Raises:
            IndexError: a number is outside 0..len-1.
        """

    def order(self, batch_size: int, *, seed: int, epoch: int, limit: int | None = None) -> Iterator[np.ndarray]:
        """Yield the sample numbers of an epoch's batches, int64 (B,); they depend on (seed, epoch) alone.

        The arguments are those of `batches`. Gather each batch before asking for the numbers of the next one.
        """
        return batch_numbers(len(self), batch_size, seed=seed, epoch=epoch, limit=limit)

    def batches(self, batch_size: int, *, seed: int, epoch: int, limit: int | None = None) -> Iterator[Batch]:
        """Yield the batches of an epoch, in the order that `order` gives."""
        return map(self.batch, self.order(batch_size, seed=seed, epoch=epoch, limit=limit))

    def share(self, numbers: np.ndarray, rank: int, world_size: int) -> np.ndarray:
        """Return the positions, in a batch's sample numbers, of the samples that one of several processes gathers."""
        return np.arange(rank, len(numbers), world_size)


def batches(
    windows: WindowSource,
    batch_size: int,
    *,
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = True,
    limit: int | None = None,
) -> Iterator[Batch]:
    """Iterate once over the samples in batches; the order depends on (seed, epoch) alone.

    Args:
        windows: the samples.
        batch_size: number of samples in a batch; the last batch may be smaller.
        seed: seed of the order.
        epoch: number of the pass; every epoch has its own order.
        shuffle: whether to shuffle the samples; False takes them by number.
        limit: largest number of samples, drawn without repeats in each epoch; None takes all of them.

    Raises:
        ConfigError: batch_size or limit below 1.
    """
    order = batch_numbers(len(windows), batch_size, seed=seed, epoch=epoch, shuffle=shuffle, limit=limit)
    return map(windows.batch, order)


def batch_numbers(
    total: int, batch_size: int, *, seed: int, epoch: int, shuffle: bool = True, limit: int | None = None
) -> Iterator[np.ndarray]:
    """Yield the sample numbers of each batch that `batches` gathers from `total` samples."""
    check_sizes(batch_size, limit)
    generator = np.random.default_rng([seed, epoch])
    if limit is not None and limit < total:
        order = generator.choice(total, size=limit, replace=False)
        if not shuffle:
            order.sort()
    else:
        order = generator.permutation(total) if shuffle else np.arange(total)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def check_sizes(batch_size: int, limit: int | None) -> None:
    """Refuse a batch size or limit below 1 with a ConfigError."""
    if batch_size < 1 or (limit is not None and limit < 1):
        raise ConfigError(f"batch_size and limit must be at least 1, got {batch_size} and {limit}")


def gather_from(sources: Sequence[WindowSource], index: np.ndarray) -> Batch:
    """Gather samples of several sources, numbered one source after the other; each source is called once."""
    starts = np.cumsum([0, *map(len, sources)])
    which = np.searchsorted(starts, index, side="right") - 1
    asked = [(number, np.flatnonzero(which == number)) for number in np.unique(which)] or [(0, which)]
    pieces = [sources[int(number)].batch(index[rows] - starts[number]) for number, rows in asked]
    whole = pieces[0]
    if len(pieces) > 1:
        whole = _batch(None if x is None else x.new_empty((len(index), *x.shape[1:])) for x in whole)
        for (_, rows), piece in zip(asked, pieces, strict=True):
            for tensor, part in zip(whole, piece, strict=True):
                if tensor is not None and part is not None:
                    tensor.numpy()[rows] = part.numpy()  # several times as fast as torch's indexed writes
    return whole._replace(index=torch.from_numpy(index))


def as_index(indices: Indices, total: int) -> np.ndarray:
    """Return sample numbers as int64 (B,); raise IndexError if one is outside 0..total-1."""
    index = np.asarray(indices).astype(np.int64).reshape(-1)
    if index.size and (index.min() < 0 or index.max() >= total):
        bad = int(index.min() if index.min() < 0 else index.max())
        raise IndexError(f"sample {bad} is outside the {total} samples, 0..{total - 1}")
    return index
