"""Definitions of ProbSparse attention that every backend shares: options, their defaults, counts."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

SAMPLINGS = ("per_query", "shared")
NORMALIZERS = ("keys", "samples")
FILLS = ("mean", "cumsum", "cummean")  # in the order of the enum Fill in csrc

# floor(e^n): ceil(ln L) is the number of entries below L. Comparisons instead of a logarithm let torch.compile keep a
# length symbolic between two entries.
_POWERS_OF_E = (1, 2, 7, 20, 54, 148, 403, 1096, 2980, 8103, 22026, 59874, 162754, 442413, 1202604, 3269017, 8886110)


class Options(NamedTuple):
    """How the selected rows attend and the others are filled; ``simmst.ops.prob_sparse_attention`` documents it.

    Attributes:
        is_causal: whether row i sees only the keys j <= i.
        scale: factor of the scores; None is 1 / sqrt(D).
        fill: one of ``FILLS``; None is Informer's choice, ``"cumsum"`` when causal, else ``"mean"``.
        dropout_p: probability of dropping an attention weight; :mod:`simmst.core.philox` defines which are dropped.
    """

    is_causal: bool = False
    scale: float | None = None
    fill: str | None = None
    dropout_p: float = 0.0


DEFAULTS = Options()


def resolve_scale(scale: float | None, query: Tensor) -> float:
    """Return the scale of the scores: the given one, or 1 / sqrt(D)."""
    return 1.0 / math.sqrt(query.shape[-1]) if scale is None else float(scale)


def resolve_fill(fill: str | None, is_causal: bool) -> str:
    """Return the fill: the given one, or Informer's choice."""
    return ("cumsum" if is_causal else "mean") if fill is None else fill


def informer_count(length: int, factor: int) -> int:
    """Return the number of samples or selected queries, min(factor * ceil(ln length), length), at least 1.

    It is 0 for a length of 0.

    Example:
        >>> [informer_count(length, 5) for length in (0, 1, 2, 96, 720)]
        [0, 1, 2, 25, 35]
    """
    if length == 0:
        return 0
    logarithm = 0
    for power in _POWERS_OF_E:
        if length <= power:
            break
        logarithm += 1
    return max(1, min(factor * logarithm, length))


def divisor(key: Tensor, sample: Tensor, normalizer: str) -> int:
    """Return the divisor of the sum of the sampled scores: L_K, or the number of samples.

    Raises:
        ValueError: normalizer is not in ``NORMALIZERS``.
    """
    if normalizer == "keys":
        return key.shape[-2]
    if normalizer == "samples":
        return sample.shape[-1]
    raise ValueError(f"normalizer must be 'keys' or 'samples', got {normalizer!r}")


def empty_out(query: Tensor, value: Tensor) -> Tensor:
    """Return an empty output, with the layout of query if D_V == D, else contiguous.

    A (B, L, H, D) view of an output with the layout of query needs no copy.
    """
    if value.shape[-1] == query.shape[-1]:
        return torch.empty_like(query)
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


__all__ = [
    "DEFAULTS",
    "FILLS",
    "NORMALIZERS",
    "SAMPLINGS",
    "Options",
    "divisor",
    "empty_out",
    "informer_count",
    "resolve_fill",
    "resolve_scale",
]
