"""The words of the projections before and behind attention that every backend shares."""

from __future__ import annotations

from typing import NamedTuple


class Options(NamedTuple):
    """What a call of the projections is told beside its tensors.

    Attributes:
        input_heads: heads of x, (N, heads, T, D); 0 for tokens (N, T, C).
        output_heads: heads of the results, likewise.
        eps: LayerNorm epsilon.
    """

    input_heads: int
    output_heads: int
    eps: float


__all__ = ["Options"]
