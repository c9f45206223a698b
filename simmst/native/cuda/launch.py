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


def array_or_none(tensor: Tensor | None) -> Array | None:
    """The same for a tensor that may be missing."""
    return None if tensor is None else array(tensor)


def on(tensor: Tensor) -> tuple[int, int]:
    """Where a call runs: the number of the tensor's device and the handle of the current stream there.

    For the CPU tensors that the emulator takes, (-1, 0).
    """
    if not tensor.is_cuda:
        return -1, 0
    device = tensor.get_device()
    # The handle alone: an object around it takes longer than all the rest of a call's preparation.
    return device, torch._C._cuda_getCurrentRawStream(device)
