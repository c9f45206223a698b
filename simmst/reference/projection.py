"""The projections before and after attention in plain PyTorch, with derivatives of any order in every dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def split_heads(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    num_heads: int,
    *,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, ...]:
    """Project tokens for each head, as the reference for ``simmst.ops.split_heads``, which documents it.

    Example:
        >>> import torch
        >>> split_heads(torch.randn(2, 5, 8), [torch.randn(8, 8)], [None], 2)[0].shape
        torch.Size([2, 2, 5, 4])
    """
    tokens = x if norm_weight is None else F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
    layers = zip(weights, biases, strict=True)
    return tuple(F.linear(tokens, *layer).unflatten(-1, (num_heads, -1)).transpose(1, 2) for layer in layers)


def merge_heads(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, residual: Tensor | None = None, scale: Tensor | None = None
) -> Tensor:
    """Project the outputs of the heads, as the reference for ``simmst.ops.merge_heads``, which documents it.

    Example:
        >>> import torch
        >>> merge_heads(torch.randn(2, 2, 5, 4), torch.randn(8, 8), None).shape
        torch.Size([2, 5, 8])
    """
    out = F.linear(x.transpose(1, 2).flatten(2), weight, bias)
    if scale is not None:
        out = out * scale[:, None]
    return out if residual is None else residual + out


__all__ = ["merge_heads", "split_heads"]
