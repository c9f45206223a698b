"""Spatial multi-head attention as one would write it without simmst: a chain of PyTorch's fused operators.

The automatic choice takes the chain where it is measured to be faster than the kernels, so that a call costs no more
than such code. Only masks differ from such code: if every position of a map is ignored, its attention branch is zero,
and nothing from an ignored position reaches another, even if it is NaN or too large for the dtype.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from simmst.core.spatial_attention import Options

# The largest number of maps in a grid of the fused attention kernels.
_MOST_MAPS = 65_535


def spatial_attention(
    x: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    key_padding_mask: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    options: Options,
) -> Tensor:
    """Compute ``simmst.ops.spatial_attention``, which documents it, rounding to the dtype of x after every operator.

    Arguments are not checked here. Autograd gives first derivatives in reverse mode.

    Example:
        >>> x, weight = torch.randn(2, 8, 5, 5), torch.randn(24, 8)
        >>> options = Options(num_heads=2, residual=True, eps=1e-5, scale=0.5)
        >>> spatial_attention(x, weight, None, torch.randn(8, 8), None, None, None, None, options).shape
        torch.Size([2, 8, 5, 5])
    """
    tokens = x.flatten(2).transpose(1, 2) if x.dim() == 4 else x  # (B, N, C)
    channels = tokens.shape[2]
    packed = F.linear(tokens, in_proj_weight, in_proj_bias)  # (B, N, 3C)
    query, key, value = packed.unflatten(2, (3, options.num_heads, channels // options.num_heads)).unbind(2)
    seen = empty = None
    if key_padding_mask is not None:
        empty = key_padding_mask.all(1, keepdim=True)[..., None]  # (B, 1, 1)
        # The fused kernels add the mask to the scores, and 0 * NaN is NaN, so ignored keys and values become zero.
        ignored = key_padding_mask[..., None, None]
        key, value = key.masked_fill(ignored, 0.0), value.masked_fill(ignored, 0.0)
        seen = (~key_padding_mask[:, None] | empty)[:, None]  # (B, 1, 1, N)
    heads = _attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), seen, options.scale)
    branch = F.linear(heads.transpose(1, 2).flatten(2), out_proj_weight, out_proj_bias)
    if empty is not None:
        branch = branch.masked_fill(empty, 0.0)
    if options.residual:
        branch = branch + tokens
    if norm_weight is not None:
        branch = F.layer_norm(branch, (channels,), norm_weight, norm_bias, options.eps)
    return branch.transpose(1, 2).reshape(x.shape).contiguous() if x.dim() == 4 else branch.contiguous()


def _attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, scale: float) -> Tensor:
    """Apply scaled_dot_product_attention to (B, heads, N, D), for any scale and number of maps."""
    if 0 in query.shape:
        return value
    if scale <= 0.0:  # the fused kernels subtract the largest unscaled score, which needs a positive scale
        query, scale = query * scale, 1.0
    if torch.compiler.is_compiling() or query.shape[0] <= _MOST_MAPS:
        return F.scaled_dot_product_attention(query, key, value, seen, scale=scale)
    return torch.cat(
        [
            _attend(query[part], key[part], value[part], None if seen is None else seen[part], scale)
            for part in (slice(_MOST_MAPS), slice(_MOST_MAPS, None))
        ]
    )


__all__ = ["spatial_attention"]
