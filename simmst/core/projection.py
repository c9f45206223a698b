"""Definitions of the projections before and after attention that every backend shares."""

from __future__ import annotations

from typing import NamedTuple


class Options(NamedTuple):
    """The options of the projections.

    Attributes:
        input_heads: number of heads of x, (N, heads, T, D); 0 for tokens (N, T, C).
        output_heads: number of heads of the results, likewise.
        eps: LayerNorm epsilon.
    """

    input_heads: int
    output_heads: int
    eps: float


__all__ = ["Options"]
