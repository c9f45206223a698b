"""The words of the feed-forward part that every backend shares."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

# Of x, in_weight, in_bias, out_weight, out_bias, norm_weight, norm_bias and addend; None where not wanted.
Gradients = tuple[
    Tensor | None,
    Tensor | None,
    Tensor | None,
    Tensor | None,
    Tensor | None,
    Tensor | None,
    Tensor | None,
    Tensor | None,
]


class Options(NamedTuple):
    """What a call of the feed-forward part is told beside its tensors; ``simmst.ops.feed_forward`` documents it.

    Attributes:
        residual: add x.
        norm_first: normalise the input rather than the output.
        eps: LayerNorm epsilon.
    """

    residual: bool
    norm_first: bool
    eps: float


__all__ = ["Gradients", "Options"]
