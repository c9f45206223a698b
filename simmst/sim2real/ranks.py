"""Several processes that share one re-weighting: who owns which sample, and the few sums between them.

Rank r of R owns the simulated samples r, r + R, r + 2 R, ... with their weights, and the planes' columns for those. Of
the model's parameters it owns the r-th of R contiguous parts: it keeps the planes' columns for that part, and moves the
parameters in it. The model itself, psi and theta, the gradient, offsets and multipliers are the same on every rank. A
batch is drawn by all alike, and each rank computes the part of it that it owns. What is exchanged in a step: the sum of
the gradients of the model, one number a plane, and the moved parts of the model, so that all hold the whole again.
"""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from simmst.errors import SimmstError

TIMEOUT_SECONDS = 300.0
# Gloo's threads free the tensors of the last exchange a moment after it, and take Python's lock for that; where the
# interpreter has ended before, the process aborts.
_LETTING_GO = 0.1


class RankError(SimmstError, RuntimeError):
    """Another rank ended, or did not answer in time."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that share the work; one alone by default, for which nothing is exchanged.

    Attributes:
        number: of this process, from 0 on.
        count: how many there are.

    Example:
        >>> ranks = Ranks(1, 3)
        >>> ranks.own(torch.tensor([0, 1, 4, 5])), ranks.place(torch.tensor([1, 4])), ranks.owned(8)
        (tensor([1, 4]), tensor([0, 1]), 3)
        >>> ranks.part(21), Ranks(2, 3).part(21)
        (slice(8, 16, None), slice(16, 21, None))
        >>> Ranks().sum(torch.ones(2))
        tensor([1., 1.])
    """

    number: int = 0
    count: int = 1

    def own(self, index: Tensor) -> Tensor:
        """Return those of the samples `index` that this rank owns."""
        return index if self.count == 1 else index[index % self.count == self.number]

    def place(self, index: Tensor) -> Tensor:
        """Return where this rank keeps the weights of its samples `index`."""
        return index if self.count == 1 else index // self.count

    def owned(self, total: int) -> int:
        """Return how many of `total` samples this rank owns."""
        return len(range(self.number, total, self.count))

    def share(self, columns: Tensor) -> Tensor:
        """Return this rank's columns (..., n_r) of (..., n); also its part of a list of samples that none owns."""
        return columns if self.count == 1 else columns[..., self.number :: self.count].contiguous()

    def part(self, total: int, *, unit: int = 8) -> slice:
        """Return this rank's part of `total` columns: contiguous, in the order of the ranks, and the last ones shorter.

        Args:
            total: number of columns.
            unit: columns that stay together; eight, so that entries of one bit come in whole bytes, one for the bytes.
        """
        length = self._part_length(total, unit)
        return slice(min(self.number * length, total), min((self.number + 1) * length, total))

    def _part_length(self, total: int, unit: int) -> int:
        return -(-total // (unit * self.count)) * unit

    def cut(self, columns: Tensor, *, unit: int = 8) -> Tensor:
        """Return this rank's part (..., N_r) of (..., N), in memory of its own."""
        return columns if self.count == 1 else columns[..., self.part(columns.shape[-1], unit=unit)].clone()

    def join(self, columns: Tensor, total: int, *, unit: int = 8) -> Tensor:
        """On rank 0: return (..., total) on the CPU from every rank's part (..., N_r); others return what they gave."""
        if self.count == 1:
            return columns
        padded = columns.new_zeros((*columns.shape[:-1], self._part_length(total, unit)))
        padded[..., : columns.shape[-1]] = columns
        rows = padded.view(-1, padded.shape[-1])
        with _answered():
            if self.number:
                for row in rows:
                    dist.gather(row.view(torch.uint8))
                return columns
            whole = torch.empty((len(rows), total), dtype=rows.dtype)
            parts = rows.new_empty((self.count, rows.shape[-1]))
            for number, row in enumerate(rows):  # one at a time, so that little more than the result is held
                dist.gather(row.view(torch.uint8), list(parts.view(torch.uint8)))  # bytes, as gloo lacks some dtypes
                whole[number] = parts.flatten()[:total]
        return whole.view(*columns.shape[:-1], total)

    def renew_(self, whole: Tensor) -> None:
        """Fill `whole` (N,), of which each rank has changed its part, with the parts of all, in place."""
        if self.count == 1:
            return
        own, length = whole[self.part(len(whole))], self._part_length(len(whole), 8)
        padded = whole.new_zeros(length)
        padded[: len(own)] = own
        parts = whole.new_empty(self.count * length)
        with _answered():
            dist.all_gather_into_tensor(parts.view(torch.uint8), padded.view(torch.uint8))
        whole.copy_(parts[: len(whole)])

    def once(self, tensor: Tensor) -> Tensor:
        """Return the tensor on rank 0 and zeros elsewhere, so that a sum over the ranks counts it once."""
        return tensor if self.number == 0 else torch.zeros_like(tensor)

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over the ranks.

        Raises:
            RankError: a rank does not take part.
        """
        if self.count == 1:
            return tensor
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        with _answered():
            dist.all_reduce(total)
        return total

    def least(self, value: int, device: torch.device) -> int:
        """Return the lowest of the ranks' numbers."""
        if self.count == 1:
            return value
        lowest = torch.tensor(value, device=device)
        with _answered():
            dist.all_reduce(lowest, op=dist.ReduceOp.MIN)
        return int(lowest)

    def first(self, tensor: Tensor) -> Tensor:
        """Return the tensor of rank 0."""
        if self.count == 1:
            return tensor
        copy = tensor.detach().clone(memory_format=torch.contiguous_format)
        with _answered():
            dist.broadcast(copy, 0)
        return copy

    def tell(self, value: bool) -> None:
        """On rank 0: tell the others something that they wait for in `told`."""
        self.first(torch.tensor(float(value), device=_exchanged_on()))

    def told(self) -> bool:
        """On the other ranks: wait for what rank 0 tells."""
        return bool(self.first(torch.zeros((), device=_exchanged_on())))

    def collect(self, own: list[Any]) -> list[Any]:
        """Return everything in order, of which rank r brings numbers r, r + R, ...; any objects that pickle takes."""
        if self.count == 1:
            return own
        parts: list[Any] = [None] * self.count
        with _answered():
            dist.all_gather_object(parts, own)
        total = sum(map(len, parts))
        return [parts[number % self.count][number // self.count] for number in range(total)]

    def gather(self, columns: Tensor, total: int) -> Tensor:
        """Return (..., total) from every rank's own columns (..., n_r)."""
        if self.count == 1:
            return columns
        most = -(-total // self.count)
        padded = columns.new_zeros((*columns.shape[:-1], most))
        padded[..., : columns.shape[-1]] = columns
        parts = [torch.empty_like(padded) for _ in range(self.count)]
        with _answered():
            dist.all_gather(parts, padded)
        return torch.stack(parts, dim=-1).flatten(-2)[..., :total].contiguous()


ALONE = Ranks()


def _exchanged_on() -> str:
    return "cuda" if dist.is_initialized() and dist.get_backend() == "nccl" else "cpu"


@contextmanager
def started_ranks(device: str, *, timeout_seconds: float = TIMEOUT_SECONDS) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started, and leave them at the end; one process alone needs none of it.

    Args:
        device: where the tensors lie, "cpu" (exchanged by gloo) or "cuda" (by NCCL, one GPU a rank).
        timeout_seconds: how long a rank waits for the others before it gives up.

    Raises:
        RankError: the others cannot be reached, or one of them ends.

    Example:
        >>> with started_ranks("cpu") as ranks:
        ...     ranks.count
        1
    """
    if launched() == 1:
        yield ALONE
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    with _answered():
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo", timeout=datetime.timedelta(seconds=timeout_seconds)
        )
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
        with _answered():
            dist.barrier()  # none closes its connections while another still waits for an answer
    finally:
        time.sleep(_LETTING_GO)
        dist.destroy_process_group()


def launched() -> int:
    """Return how many processes ``torchrun`` started; 1 without it.

    Example:
        >>> launched()
        1
    """
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankError(
            "another rank of this run has ended or does not answer "
            f"({str(error).splitlines()[0]}); the last checkpoint is as it was: look at what that rank said, and start "
            "the same command again to go on from there"
        ) from error
