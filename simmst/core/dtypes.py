"""The dtypes that the operators take, their numbers in the compiled modules, and the check that TF32 is allowed."""

from __future__ import annotations

import torch

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
GPU_FLOATS = (torch.float32, torch.bfloat16, torch.float16)

# The same numbers as in csrc; the CPU kernels take the first five.
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


def tf32_is_allowed() -> bool:
    """Tell whether torch may round the operands of float32 matrix products on a GPU to TF32.

    A program sets this with ``torch.set_float32_matmul_precision``, ``torch.backends.cuda.matmul.allow_tf32`` or, since
    torch 2.9, ``torch.backends.cuda.matmul.fp32_precision`` and ``torch.backends.fp32_precision``. After one of the
    last two was set, torch raises if one of the first two is read; ``matmul.fp32_precision`` reflects all four.

    Example:
        >>> tf32_is_allowed()
        False
    """
    matmul = torch.backends.cuda.matmul
    precision = getattr(matmul, "fp32_precision", None)
    return bool(matmul.allow_tf32) if precision is None else precision == "tf32"


__all__ = ["CODES", "FLOATS", "GPU_FLOATS", "tf32_is_allowed"]
