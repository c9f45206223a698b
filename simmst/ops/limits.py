"""What sizes the GPU kernels take, as data: asked before a kernel, or the compiler that makes it, is imported."""

from __future__ import annotations

from collections.abc import Mapping

# backend -> operator -> size -> the largest that its kernels are made for; a size that is not listed has no limit.
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


def why_too_large(operator: str, backend: str, sizes: Mapping[str, int]) -> str | None:
    """Say which size is beyond what a backend's kernels take; None where none is.

    Example:
        >>> why_too_large("prob_sparse_attention", "cuda", {"head_width": 160})
        'its largest head width is 128, got 160'
        >>> why_too_large("prob_sparse_attention", "cpp", {"head_width": 160}) is None
        True
    """
    for name, largest in LARGEST.get(backend, {}).get(operator, {}).items():
        if sizes.get(name, 0) > largest:
            return f"its largest {name.replace('_', ' ')} is {largest}, got {sizes[name]}"
    return None


__all__ = ["LARGEST", "why_too_large"]
