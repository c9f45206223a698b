"""Attention from slots to the days before in plain PyTorch, with derivatives of any order in every dtype."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def day_attention(
    query: Tensor,
    key: Tensor,
    bias: Tensor,
    alike: Tensor,
    alike_weight: Tensor,
    known: Tensor,
    values: Tensor,
    apart: Tensor,
) -> Tensor:
    """Attend from slots to days, as the reference for ``simmst.ops.day_attention``, which documents it.

    Arguments are not checked here.

    Example:
        >>> query, key, known = torch.ones(1, 2, 1, 4), torch.ones(1, 3, 1, 4), torch.ones(1, 3, 2, dtype=torch.bool)
        >>> weights = torch.zeros(1, 3), torch.zeros(1, 3, 2, 2), torch.zeros(1, 2)
        >>> day_attention(query, key, *weights, known, torch.ones(1, 3, 2), torch.zeros(1, 3)).shape
        torch.Size([1, 2, 2])
    """
    # The days are the last axis, because a softmax over any other axis takes several times as long.
    score = torch.einsum("ntae,nlae->natl", query / math.sqrt(query.shape[-1]), key)
    score = score + bias[:, None] + F.linear(alike, alike_weight).permute(0, 3, 2, 1)
    visible = known.transpose(1, 2)[:, None]  # (N, 1, T, L)
    weights = torch.softmax(score.masked_fill(~visible, -1e4), dim=-1) * visible  # (N, heads, T, L)
    recalled = torch.einsum("natl,nlt->nta", weights, values)
    return torch.cat((recalled, torch.einsum("natl,nl->nta", weights, apart)), dim=-1)


__all__ = ["day_attention"]
