"""Definitions of spatial attention that every backend shares."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

# Gradients of x, in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias, norm_weight and norm_bias; None where
# not wanted.
Gradients = tuple[
    Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None
]


class Options(NamedTuple):
    """The options of spatial attention; ``simmst.ops.spatial_attention`` documents them.

    Attributes:
        num_heads: number of heads.
        residual: whether to add x.
        eps: LayerNorm epsilon.
        scale: factor of the scores.
    """

    num_heads: int
    residual: bool
    eps: float
    scale: float


def kept_entries(batch: int, channels: int, heads: int, positions: int, masked: bool) -> int:
    """Count the entries that the C++ kernels keep of a forward pass, as csrc/cpu/spatial_attention.hpp does.

    The entries are the queries, keys, values, heads and normalised sums of all channels, and a few numbers for every
    position. They are in rows that hold a group of maps and end in a few unused entries.

    Example:
        >>> kept_entries(384, 32, 4, 25, masked=False) / (384 * 25 * 32)  # times the size of x
        5.8...
    """
    columns = min(8192 // channels, 256)
    maps = 1 if masked else max(min(columns // max(positions, 1), batch // 16), 1)
    groups, ld = (batch + maps - 1) // maps, (2 * ((maps * positions + 30) // 32) + 1) * 16
    return groups * (5 * channels + 2 * heads + 1) * ld


def pays_to_keep(channels: int, positions: int) -> bool:
    """Tell whether the C++ backward pass gains from what the forward pass can keep.

    For each entry of x, keeping saves 8 C + 2 N operations and takes 20 more bytes of fresh memory, which cost as much
    as 500 operations on the machine of docs/results/speed.md.

    Example:
        >>> pays_to_keep(64, 121), pays_to_keep(32, 25)
        (True, False)
    """
    return 4 * channels + positions >= 256


__all__ = ["Gradients", "Options", "kept_entries", "pays_to_keep"]
