"""The words of spatial attention that every backend shares."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

# Of x, in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias, norm_weight and norm_bias; None where not wanted.
Gradients = tuple[
    Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None
]


class Options(NamedTuple):
    """What a call of spatial attention is told beside its tensors; ``simmst.ops.spatial_attention`` documents it.

    Attributes:
        num_heads: number of heads.
        residual: add x.
        eps: LayerNorm epsilon.
        scale: factor of the scores.
    """

    num_heads: int
    residual: bool
    eps: float
    scale: float


__all__ = ["Gradients", "Options"]
