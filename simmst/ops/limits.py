"""The sizes that the GPU kernels take, as data, so that no kernel or kernel compiler is imported to ask for them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

# backend -> operator -> size -> the largest value that its kernels take; a size that is not listed has no limit.
LARGEST: Mapping[str, Mapping[str, Mapping[str, int]]] = {
    "triton": {
        "prob_sparse_attention": {"head_width": 128},
        "spatial_attention": {"head_width": 128},
    },
    "cuda": {
        "prob_sparse_attention": {"head_width": 128},
        "spatial_attention": {"head_width": 128},
    },
}

# backend -> operator -> dtype -> bytes of shared memory that a block of the largest kernel needs. Kernels without an
# entry fit into the 99 KiB of compute capabilities 8.6, 8.9 and 12.0, or adapt to what the device has.
SHARED_BYTES: Mapping[str, Mapping[str, Mapping[torch.dtype, int]]] = {
    "cuda": {"prob_sparse_attention": {torch.float32: 129_984}},
}


def why_too_large(operator: str, backend: str, sizes: Mapping[str, int]) -> str | None:
    """Say which size is too large for a backend's kernels; None if none is.

    Example:
        >>> why_too_large("prob_sparse_attention", "cuda", {"head_width": 160})
        'its largest head width is 128, got 160'
        >>> why_too_large("prob_sparse_attention", "cpu", {"head_width": 160}) is None
        True
    """
    for name, largest in LARGEST.get(backend, {}).get(operator, {}).items():
        if sizes.get(name, 0) > largest:
            return f"its largest {name.replace('_', ' ')} is {largest}, got {sizes[name]}"
    return None


def why_too_little_memory(operator: str, backend: str, dtype: torch.dtype, shared_bytes: int) -> str | None:
    """Say so if a block needs more shared memory than a device has; None if it does not.

    Example:
        >>> why_too_little_memory("prob_sparse_attention", "cuda", torch.float32, 99 * 1024)
        'for torch.float32 a block needs 129984 bytes of shared memory, but this GPU has 101376'
        >>> why_too_little_memory("prob_sparse_attention", "cuda", torch.bfloat16, 99 * 1024) is None
        True
    """
    needed = SHARED_BYTES.get(backend, {}).get(operator, {}).get(dtype, 0)
    if needed > shared_bytes:
        return f"for {dtype} a block needs {needed} bytes of shared memory, but this GPU has {shared_bytes}"
    return None


__all__ = ["LARGEST", "SHARED_BYTES", "why_too_large", "why_too_little_memory"]
