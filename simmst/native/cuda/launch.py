"""What every adapter of ``simmst._cuda`` needs: the module itself, and tensors as the bindings take them."""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

import torch
from torch import Tensor

from simmst.core import dtypes

Array = tuple[int, int, tuple[int, ...], tuple[int, ...], int]  # address, dtype, shape, strides, device
Layout = tuple[torch.dtype, torch.Size, tuple[int, ...], torch.device]  # dtype, shape, strides, device
# What a compiled plan reads of it, and the plan itself: called with addresses, workspace and stream.
Told = tuple[int, torch.Size, tuple[int, ...], int]
Plan = Any
PLANS = 1024  # that an adapter keeps of a kind


def emulated() -> bool:
    """Whether CUDA kernels run in the emulator ``simmst._cuda_emulated``, on CPU tensors: slow, for tests alone.

    The variable ``SIMMST_CUDA_EMULATION=1`` must be set before the first call.
    """
    return os.environ.get("SIMMST_CUDA_EMULATION") == "1"


@functools.cache
def module() -> Any:
    """The compiled kernels: ``simmst._cuda``, or ``simmst._cuda_emulated`` in emulation.

    Raises:
        ImportError: the module is not in this installation.
    """
    return importlib.import_module("simmst._cuda_emulated" if emulated() else "simmst._cuda")


def array(tensor: Tensor) -> Array:
    """A tensor as the bindings take it. It must stay alive until the call has returned."""
    return tensor.data_ptr(), dtypes.CODES[tensor.dtype], tensor.shape, tensor.stride(), tensor.get_device()


def layout(tensor: Tensor) -> Layout:
    """What a plan depends on of a tensor, as a key of a cache."""
    return tensor.dtype, tensor.shape, tensor.stride(), tensor.device


def told(given: Layout) -> Told:
    """A layout as the bindings take it."""
    return dtypes.CODES[given[0]], given[1], given[2], number_of(given[3])


def told_or_none(given: Layout | None) -> Told | None:
    """The same for a tensor that may be missing."""
    return None if given is None else told(given)


def number_of(device: torch.device) -> int:
    """The number of a device: of a GPU, or -1 for the CPU tensors that the emulator takes."""
    return -1 if device.type == "cpu" else device.index


def address(tensor: Tensor | None) -> int:
    """Where a tensor lies; 0 for one that is missing. It must stay alive until the call has returned."""
    return 0 if tensor is None else tensor.data_ptr()


def run(plan: Plan, like: Tensor, *places: float) -> None:
    """Run a plan on the current stream of the device of ``like``, with a workspace of its own.

    Whoever gets the workspace next from torch's allocator runs after the kernels, on the same stream.
    """
    size = plan.workspace
    workspace = torch.empty(size, dtype=torch.uint8, device=like.device) if size else None
    plan(*places, address(workspace), stream_of(like))


def stream_of(tensor: Tensor) -> int:
    """The handle of the current stream of a tensor's device; 0 for the CPU tensors that the emulator takes."""
    if not tensor.is_cuda:
        return 0
    # The handle alone: an object around it takes longer than all the rest of a call's preparation.
    return torch._C._cuda_getCurrentRawStream(tensor.get_device())


def on(tensor: Tensor) -> tuple[int, int]:
    """Where a call runs: the number of the tensor's device and the handle of the current stream there.

    For the CPU tensors that the emulator takes, (-1, 0).
    """
    return tensor.get_device() if tensor.is_cuda else -1, stream_of(tensor)
