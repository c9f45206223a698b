"""The hot paths as functions, which check their arguments, choose a backend and run with autograd."""

from simmst.ops.cutting_plane import (
    PackedSigns,
    cutting_plane_lagrangian,
    cutting_plane_penalty,
    cutting_plane_step_,
    cutting_plane_values,
    pack_signs,
)
from simmst.ops.day_attention import day_attention
from simmst.ops.feed_forward import feed_forward
from simmst.ops.prob_sparse_attention import (
    ProbSparseAux,
    prob_sparse_attend,
    prob_sparse_attention,
    prob_sparse_select,
)
from simmst.ops.projection import merge_heads, split_heads
from simmst.ops.spatial_attention import spatial_attention

__all__ = [
    "PackedSigns",
    "ProbSparseAux",
    "cutting_plane_lagrangian",
    "cutting_plane_penalty",
    "cutting_plane_step_",
    "cutting_plane_values",
    "day_attention",
    "feed_forward",
    "merge_heads",
    "pack_signs",
    "prob_sparse_attend",
    "prob_sparse_attention",
    "prob_sparse_select",
    "spatial_attention",
    "split_heads",
]
