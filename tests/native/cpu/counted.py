"""Calls a kernel without torch, for valgrind to count: ``python counted.py MODULE KERNEL TURNS``."""

from __future__ import annotations

import ctypes
import importlib.util
import math
import sys
from typing import Any

_KEPT: list[Any] = []


def floats(*shape: int) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Return (address, shape, strides) of a contiguous array of zero floats."""
    memory = (ctypes.c_float * math.prod(shape))()
    _KEPT.append(memory)
    return ctypes.addressof(memory), shape, tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def buffer(*shape: int) -> tuple[int, int]:
    """Return (address, bytes) of a contiguous array of zero floats."""
    return floats(*shape)[0], 4 * math.prod(shape)


def typed(*shape: int) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
    """Return (address, type, shape, strides) of a contiguous array of zero floats."""
    address, sizes, strides = floats(*shape)
    return address, 0, sizes, strides


def main(path: str, kernel: str, turns: int) -> None:
    """Call a kernel `turns` times, on one thread."""
    spec = importlib.util.spec_from_file_location("_cpu", path)
    assert spec is not None
    assert spec.loader is not None
    cpu = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cpu)
    sample = (ctypes.c_int64 * 25)(*range(25))
    tokens = [floats(1, 2, 128, 32) for _ in range(4)]
    planes = typed(16, 20_000), None, typed(16), typed(20_000), typed(16)
    x, out = buffer(256, 32), buffer(256, 32)
    weights = [buffer(64, 32), buffer(64), buffer(32, 64), buffer(32), *[(0, 0)] * 4]
    drawn = (ctypes.addressof(sample), (25,), (1,))
    for _ in range(turns):
        if kernel == "prob_sparse_forward":
            cpu.prob_sparse_forward(0, 1, *tokens[:3], drawn, 128.0, 25, False, 0.2, 0, tokens[3])
        elif kernel == "cutting_plane_values":
            cpu.cutting_plane_values(*planes, 1)
        else:
            cpu.feed_forward_forward([1, 256, 32, 64, 32], 0, True, 1e-5, x, weights, out, 1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
