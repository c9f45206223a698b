"""Attention as a part of a layer, with a LayerNorm before it and a residual around it."""

from __future__ import annotations

from torch import Tensor, nn

from simmst.models.dropout import FeatureDropout
from simmst.nn.plain import is_plain
from simmst.nn.prob_sparse_attention import ProbSparseAttention


def attend(
    tokens: Tensor, norm: nn.Module, attention: nn.Module, dropout: FeatureDropout, memory: Tensor | None = None
) -> Tensor:
    """Return ``tokens + dropout(attention(norm(tokens), memory))``, in few operators if the attention is plain.

    Args:
        tokens: (B, T, C).
        norm: LayerNorm of the tokens.
        attention: `ProbSparseAttention` or its replacement.
        dropout: dropout of the attention's output.
        memory: (B, L, C), keys and values; None uses the normalised tokens.

    Example:
        >>> import torch
        >>> attention, norm = ProbSparseAttention(8, 2), nn.LayerNorm(8)
        >>> attend(torch.zeros(2, 3, 8), norm, attention, FeatureDropout()).shape
        torch.Size([2, 3, 8])
    """
    if is_plain(attention, ProbSparseAttention):
        assert isinstance(attention, ProbSparseAttention)  # noqa: S101 for the type checker
        return attention.added(tokens, norm, memory, dropout.factors(tokens, tokens.shape[2]))
    normed = norm(tokens)
    found: Tensor = attention(normed) if memory is None else attention(normed, memory)
    added: Tensor = tokens + dropout(found)
    return added
