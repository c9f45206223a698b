"""The hot paths in plain PyTorch: the reference for every kernel, the fallback, and the other side in benchmarks."""

from simmst.reference import (
    cutting_plane,
    day_attention,
    feed_forward,
    prob_sparse_attention,
    projection,
    spatial_attention,
)

__all__ = ["cutting_plane", "day_attention", "feed_forward", "prob_sparse_attention", "projection", "spatial_attention"]
