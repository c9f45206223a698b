"""Helpers of every adapter of ``simmst._cuda``: the module itself, and tensors in the form that the bindings take."""

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
# A layout in the form that a compiled plan reads, and the plan itself, which is called with addresses, workspace and
# stream.
Told = tuple[int, torch.Size, tuple[int, ...], int]
Plan = Any
PLANS = 1024  # number of plans of each kind that an adapter keeps


def emulated() -> bool:
    """Tell whether CUDA kernels run in the emulator ``simmst._cuda_emulated``, which takes CPU tensors, for tests only.

    The variable ``SIMMST_CUDA_EMULATION=1`` must be set before the first call.
    """
    return os.environ.get("SIMMST_CUDA_EMULATION") == "1"


@functools.cache
def module() -> Any:
    """Return the module of the compiled kernels: ``simmst._cuda``, or ``simmst._cuda_emulated`` in emulation.

    Raises:
        ImportError: the module is not in this installation.
    """
    return importlib.import_module("simmst._cuda_emulated" if emulated() else "simmst._cuda")


def array(tensor: Tensor) -> Array:
    """Return a tensor in the form that the bindings take. It must stay alive until the call has returned."""
    return tensor.data_ptr(), dtypes.CODES[tensor.dtype], tensor.shape, tensor.stride(), tensor.get_device()


def layout(tensor: Tensor) -> Layout:
    """Return the properties of a tensor that a plan depends on, as a key of a cache."""
    return tensor.dtype, tensor.shape, tensor.stride(), tensor.device


def told(given: Layout) -> Told:
    """Return a layout in the form that the bindings take."""
    return dtypes.CODES[given[0]], given[1], given[2], number_of(given[3])


def told_or_none(given: Layout | None) -> Told | None:
    """Return the same for a layout that may be None."""
    return None if given is None else told(given)


def number_of(device: torch.device) -> int:
    """Return the number of a GPU, or -1 for the CPU, whose tensors the emulator takes."""
    return -1 if device.type == "cpu" else device.index


def address(tensor: Tensor | None) -> int:
    """Return the address of a tensor, or 0 for None. The tensor must stay alive until the call has returned."""
    return 0 if tensor is None else tensor.data_ptr()


def run(plan: Plan, like: Tensor, *places: float) -> None:
    """Run a plan on the current stream of the device of ``like``, with its own workspace.

    The workspace may be freed at once: torch's allocator reuses it only for work after the kernels on the same stream.
    """
    size = plan.workspace
    workspace = torch.empty(size, dtype=torch.uint8, device=like.device) if size else None
    plan(*places, address(workspace), stream_of(like))


def stream_of(tensor: Tensor) -> int:
    """Return the handle of the current stream of a tensor's device, or 0 for CPU tensors, which the emulator takes."""
    if not tensor.is_cuda:
        return 0
    # Only the handle, because an object around it takes longer than all the rest of a call's preparation.
    return torch._C._cuda_getCurrentRawStream(tensor.get_device())


def on(tensor: Tensor) -> tuple[int, int]:
    """Return where a call runs: the number of the tensor's device and the handle of the current stream there.

    For CPU tensors, which the emulator takes, return (-1, 0).
    """
    return tensor.get_device() if tensor.is_cuda else -1, stream_of(tensor)
