"""Definitions of the feed-forward part that every backend shares."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

# Gradients of x, in_weight, in_bias, out_weight, out_bias, norm_weight, norm_bias and addend; None where not wanted.
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
    """The options of the feed-forward part; ``simmst.ops.feed_forward`` documents them.

    Attributes:
        residual: whether to add x.
        norm_first: whether to normalise the input rather than the output.
        eps: LayerNorm epsilon.
    """

    residual: bool
    norm_first: bool
    eps: float


__all__ = ["Gradients", "Options"]
