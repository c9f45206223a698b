"""Dtypes: which the operators take, and the numbers that name them to the compiled modules."""

from __future__ import annotations

import torch

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
GPU_FLOATS = (torch.float32, torch.bfloat16, torch.float16)

# As in csrc; the CPU kernels take the first five.
CODES = {
    torch.float32: 0,
    torch.float64: 1,
    torch.bfloat16: 2,
    torch.float16: 3,
    torch.uint8: 4,
    torch.int64: 5,
    torch.bool: 6,
    torch.int32: 7,
}

__all__ = ["CODES", "FLOATS", "GPU_FLOATS"]
