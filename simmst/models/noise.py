"""The random numbers of training, drawn for whole batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

_PARTS: list[tuple[Tensor, int]] = []


@contextmanager
def part_of_batch(rows: Sequence[int], total: int) -> Iterator[None]:
    """Run a model inside the block on some samples of a batch, with the noise that they have in the whole batch.

    Processes whose generators have the same state thus train with the noise of a single process, and their states stay
    the same.

    Args:
        rows: indices of the samples in the batch, at least one.
        total: number of samples in the batch.

    Example:
        >>> state = torch.get_rng_state()
        >>> whole = uniform(4, 2, device=torch.device("cpu"))
        >>> torch.set_rng_state(state)
        >>> with part_of_batch([1, 3], 4):
        ...     bool((uniform(2, 2, device=torch.device("cpu")) == whole[[1, 3]]).all())
        True
    """
    if len(rows) == total:
        yield
        return
    _PARTS.append((torch.as_tensor(rows), total))
    try:
        yield
    finally:
        _PARTS.pop()


def uniform(rows: int, *shape: int, device: torch.device) -> Tensor:
    """Draw (rows, ...) from [0, 1), where every sample of the batch has the same number of rows."""
    if not _PARTS:
        return torch.rand(rows, *shape, device=device)
    chosen, total = _PARTS[-1]
    return torch.rand(total, rows // len(chosen), *shape, device=device)[chosen].flatten(0, 1)
