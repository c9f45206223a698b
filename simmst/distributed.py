"""Processes that share one piece of work: what each process holds, and what the processes exchange.

Two layouts divide a tensor's columns among R ranks. In the strided layout, rank r holds the columns r, r + R, r + 2 R,
...; samples and their weights use it, because there may be any number of them. In the block layout, rank r holds the
r-th of R contiguous parts; the parameters of a model use it. A single process exchanges nothing and needs no
torch.distributed.
"""

from __future__ import annotations

import datetime
import inspect
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from simmst.errors import SimmstError

TIMEOUT_SECONDS = 300.0
# Gloo's threads free the tensors of the last exchange a moment after it and take Python's lock to do so. If the
# interpreter has already ended by then, the process aborts.
_LETTING_GO = 0.1


class RankError(SimmstError, RuntimeError):
    """Another rank ended or did not answer in time."""


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those that share the work; a single process by default.

    Attributes:
        rank: number of this process, counted from 0.
        world_size: number of processes.

    Raises:
        RankError: another rank does not take part in an exchange; every exchange may raise it.

    Example:
        >>> second = ProcessGroup(1, 3)
        >>> second.shard(torch.arange(8)), second.shard_size(8)
        (tensor([1, 4, 7]), 3)
        >>> second.select(torch.tensor([0, 1, 4, 5])), second.local(torch.tensor([1, 4]))
        (tensor([1, 4]), tensor([0, 1]))
        >>> second.block(21), ProcessGroup(2, 3).block(21)
        (slice(8, 16, None), slice(16, 21, None))
        >>> ProcessGroup().all_reduce(torch.ones(2))
        tensor([1., 1.])
    """

    rank: int = 0
    world_size: int = 1

    # Strided columns

    def shard(self, columns: Tensor) -> Tensor:
        """Return this rank's columns (..., n_r) of (..., n)."""
        return columns if self.world_size == 1 else columns[..., self.rank :: self.world_size].contiguous()

    def shard_size(self, total: int) -> int:
        """Return the number of columns in this rank's shard of `total` columns."""
        return len(range(self.rank, total, self.world_size))

    def select(self, index: Tensor) -> Tensor:
        """Return the column numbers in `index` that belong to this rank's shard."""
        return index if self.world_size == 1 else index[index % self.world_size == self.rank]

    def local(self, index: Tensor) -> Tensor:
        """Return the positions within this rank's shard of its columns `index`."""
        return index if self.world_size == 1 else index // self.world_size

    def all_gather(self, shard: Tensor, total: int) -> Tensor:
        """Return (..., total) on every rank from the shards (..., n_r)."""
        if self.world_size == 1:
            return shard
        most = -(-total // self.world_size)
        padded = shard.new_zeros((*shard.shape[:-1], most))
        padded[..., : shard.shape[-1]] = shard
        shards = [torch.empty_like(padded) for _ in range(self.world_size)]
        with answered():
            dist.all_gather(shards, padded)
        return torch.stack(shards, dim=-1).flatten(-2)[..., :total].contiguous()

    def all_gather_object(self, shard: list[Any]) -> list[Any]:
        """Return the whole list on every rank, where rank r has the entries r, r + R, ..., any picklable objects."""
        if self.world_size == 1:
            return shard
        shards: list[Any] = [None] * self.world_size
        with answered():
            dist.all_gather_object(shards, shard)
        total = sum(map(len, shards))
        return [shards[number % self.world_size][number // self.world_size] for number in range(total)]

    # Columns in blocks

    def block(self, total: int, *, unit: int = 8) -> slice:
        """Return this rank's block of `total` columns; blocks follow the order of the ranks, and the last are shorter.

        Args:
            total: number of columns.
            unit: number of columns that stay together: 8 so that one-bit entries fill whole bytes, 1 for the bytes.
        """
        length = self._block_length(total, unit)
        return slice(min(self.rank * length, total), min((self.rank + 1) * length, total))

    def _block_length(self, total: int, unit: int) -> int:
        return -(-total // (unit * self.world_size)) * unit

    def shard_block(self, columns: Tensor, *, unit: int = 8) -> Tensor:
        """Return a copy of this rank's block (..., N_r) of (..., N); a single process gets the tensor itself."""
        return columns if self.world_size == 1 else columns[..., self.block(columns.shape[-1], unit=unit)].clone()

    def gather_block(self, block: Tensor, total: int, *, unit: int = 8) -> Tensor:
        """Return (..., total) on the CPU of rank 0 from the blocks (..., N_r); other ranks return their own block."""
        if self.world_size == 1:
            return block
        padded = block.new_zeros((*block.shape[:-1], self._block_length(total, unit)))
        padded[..., : block.shape[-1]] = block
        rows = padded.view(-1, padded.shape[-1])
        with answered():
            if self.rank:
                for row in rows:
                    dist.gather(row.view(torch.uint8))
                return block
            whole = torch.empty((len(rows), total), dtype=rows.dtype)
            blocks = rows.new_empty((self.world_size, rows.shape[-1]))
            for number, row in enumerate(rows):  # row by row, so that little more than the result is in memory
                dist.gather(row.view(torch.uint8), list(blocks.view(torch.uint8)))  # bytes: gloo lacks some dtypes
                whole[number] = blocks.flatten()[:total]
        return whole.view(*block.shape[:-1], total)

    def all_gather_block_(self, whole: Tensor) -> None:
        """Fill `whole` (N,), in which each rank has changed its own block, with the blocks of all ranks, in place."""
        if self.world_size == 1:
            return
        block, length = whole[self.block(len(whole))], self._block_length(len(whole), 8)
        padded = whole.new_zeros(length)
        padded[: len(block)] = block
        blocks = whole.new_empty(self.world_size * length)
        with answered():
            dist.all_gather_into_tensor(blocks.view(torch.uint8), padded.view(torch.uint8))
        whole.copy_(blocks[: len(whole)])

    # Whole values

    def partial(self, tensor: Tensor) -> Tensor:
        """Return the tensor on rank 0 and zeros on the others, so that a sum over the ranks counts it once."""
        return tensor if self.rank == 0 else torch.zeros_like(tensor)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Return the sum over the ranks."""
        if self.world_size == 1:
            return tensor
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        with answered():
            dist.all_reduce(total)
        return total

    def all_reduce_min(self, value: int, device: torch.device) -> int:
        """Return the lowest of the ranks' numbers."""
        if self.world_size == 1:
            return value
        lowest = torch.tensor(value, device=device)
        with answered():
            dist.all_reduce(lowest, op=dist.ReduceOp.MIN)
        return int(lowest)

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Return the tensor of rank 0."""
        if self.world_size == 1:
            return tensor
        copy = tensor.detach().clone(memory_format=torch.contiguous_format)
        with answered():
            dist.broadcast(copy, 0)
        return copy

    def broadcast_object(self, value: Any = None) -> Any:
        """Return the value of rank 0, any picklable object; the values of the other ranks are ignored."""
        if self.world_size == 1:
            return value
        held = [value]
        with answered():
            dist.broadcast_object_list(held, 0)
        return held[0]

    # A model

    def replicate(self, model: nn.Module) -> nn.Module:
        """Return the model as this rank's replica, with the weights of rank 0.

        After its backward pass, every rank has the same gradients, the mean over the ranks. Its attributes and
        parameters are those of the model. All parameters must take part in every backward pass.
        """
        if self.world_size == 1:
            return model
        with answered():
            return _Replica(model, **_OWN_BUFFERS)


# Buffers are not synchronised. Older and newer versions of torch have different names for this option.
_NAMES = inspect.signature(DistributedDataParallel.__init__).parameters
_OWN_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _NAMES else "broadcast_buffers": False
}


class _Replica(DistributedDataParallel):
    """A replica with the attributes of its model."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


ALONE = ProcessGroup()


@contextmanager
def process_group(device: str, *, timeout_seconds: float = TIMEOUT_SECONDS) -> Iterator[ProcessGroup]:
    """Join the processes that ``torchrun`` started, and leave them at the end; a single process joins nothing.

    Args:
        device: device of the tensors, "cpu" (exchanged by gloo) or "cuda" (by NCCL, one GPU per rank).
        timeout_seconds: seconds that a rank waits for the others before it gives up.

    Raises:
        RankError: the others cannot be reached, or one of them ends.

    Example:
        >>> with process_group("cpu") as processes:
        ...     processes.world_size
        1
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield ALONE
        return
    _meet(device, timeout_seconds)
    try:
        yield ProcessGroup(dist.get_rank(), dist.get_world_size())
        with answered():
            dist.barrier()  # no rank closes its connections while another still waits for an answer
    finally:
        time.sleep(_LETTING_GO)
        dist.destroy_process_group()


def _meet(device: str, timeout_seconds: float) -> None:
    """Wait for the other ranks where MASTER_ADDR and MASTER_PORT say."""
    rank, size, address, port = (
        os.environ.get(name, "?") for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    )
    try:
        if device == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo", timeout=datetime.timedelta(seconds=timeout_seconds)
        )
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        raise RankError(
            f"rank {rank} of {size} did not reach the other ranks at {address}:{port} ({str(error).splitlines()[0]}); "
            f"it waits {timeout_seconds:g} s: start every rank with torchrun, and read the output of the missing ones"
        ) from error


@contextmanager
def answered() -> Iterator[None]:
    """Turn the failure of an exchange into a RankError.

    Raises:
        RankError: the exchange failed.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RankError(
            "another rank of this run has ended or does not answer "
            f"({str(error).splitlines()[0]}); the last checkpoint is intact: read the output of that rank, then start "
            "the same command again to resume"
        ) from error
