"""The feed-forward part in plain PyTorch, with derivatives of any order and ``torch.func`` in every dtype."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def feed_forward(
    x: Tensor,
    in_weight: Tensor,
    in_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    *,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    norm_first: bool = True,
    addend: Tensor | None = None,
    scale: Tensor | None = None,
    residual: bool = True,
    eps: float = 1e-5,
) -> Tensor:
    """Apply two layers around a GELU, as the reference for ``simmst.ops.feed_forward``, which documents it.

    Arguments are not checked here.

    Example:
        >>> import torch
        >>> feed_forward(torch.randn(2, 3, 4), torch.randn(8, 4), None, torch.randn(4, 8), None).shape
        torch.Size([2, 3, 4])
    """
    normed = norm_weight is not None
    tokens = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps) if normed and norm_first else x
    hidden = F.linear(tokens, in_weight, in_bias)
    if addend is not None:
        hidden = hidden + addend.unsqueeze(-2)
    branch = F.linear(F.gelu(hidden), out_weight, out_bias)
    if scale is not None:
        branch = branch * scale.unsqueeze(-2)
    out = x + branch if residual else branch
    if normed and not norm_first:
        out = F.layer_norm(out, out.shape[-1:], norm_weight, norm_bias, eps)
    return out


__all__ = ["feed_forward"]
