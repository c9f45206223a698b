"""Spatial multi-head attention over the positions of a map, in plain PyTorch.

It is written with elementary operations, so that it has derivatives of any order and works under ``torch.func``. The
fused kernels of ``scaled_dot_product_attention`` have neither forward-mode derivatives nor double backward.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from simmst.core.spatial_attention import Gradients, Options


class _Scores(NamedTuple):
    query: Tensor  # (B, heads, N, D)
    key: Tensor  # (B, heads, N, D)
    value: Tensor  # (B, heads, N, D), zero where ignored
    scores: Tensor  # (B, heads, N, N), -inf where ignored
    empty: Tensor | None  # (B, 1, 1), True for a map with every position ignored


def spatial_attention(
    x: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    *,
    num_heads: int,
    key_padding_mask: Tensor | None = None,
    residual: bool = False,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    scale: float | None = None,
) -> Tensor:
    """Attend over the positions of each map, as the reference for ``simmst.ops.spatial_attention``.

    Arguments are not checked here. Half types are computed in float32 and rounded once, at the end.

    Example:
        >>> x = torch.randn(2, 8, 5, 5)
        >>> spatial_attention(x, torch.randn(24, 8), None, torch.randn(8, 8), None, num_heads=2).shape
        torch.Size([2, 8, 5, 5])
    """
    tokens = _to_tokens(x)
    part = _scores(tokens, in_proj_weight, in_proj_bias, num_heads, key_padding_mask, scale)
    heads = torch.matmul(torch.softmax(part.scores, dim=-1), part.value)
    return _finish(x, tokens, heads, part.empty, out_proj_weight, out_proj_bias, residual, norm_weight, norm_bias, eps)


def forward(
    x: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    key_padding_mask: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """Return the output and what ``backward`` needs in addition to the inputs.

    Returns:
        The output, and lse (B, num_heads, N): the log of the sum of the exponentials of each row of scores, in
        float32 (float64 for float64 inputs); +inf for a map with every position ignored, so that exp(score - lse) is 0.
    """
    tokens = _to_tokens(x)
    part = _scores(tokens, in_proj_weight, in_proj_bias, options.num_heads, key_padding_mask, options.scale)
    lse = torch.logsumexp(part.scores, dim=-1)
    heads = torch.matmul(torch.exp(part.scores - lse.unsqueeze(-1)), part.value)
    if part.empty is not None:
        lse = lse.masked_fill(part.empty, float("inf"))
    out = _finish(
        *(x, tokens, heads, part.empty, out_proj_weight, out_proj_bias),
        *(options.residual, norm_weight, norm_bias, options.eps),
    )
    return out, lse


def backward(
    grad: Tensor,
    x: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    key_padding_mask: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    lse: Tensor,
    options: Options,
    output_mask: list[bool],
) -> Gradients:
    """Return the gradients in closed form. Scores and projections are computed again from x; only x and lse are kept.

    With P = exp(S - lse), O = P V and dO the gradient of O: dV = P^T dO, dS = P (dO V^T - rowsum(dO O)),
    dQ = scale dS K, dK = scale dS^T Q.

    Args:
        grad: gradient of the output, of the shape of x.
        output_mask: which of the seven gradients are wanted, in the order in which they are returned.

    Returns:
        Gradients of x, in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias, norm_weight, norm_bias; None
        where not wanted or where there is no such parameter.
    """
    tokens = _to_tokens(x)  # (B, N, C)
    dtype = tokens.dtype
    part = _scores(tokens, in_proj_weight, in_proj_bias, options.num_heads, key_padding_mask, options.scale)
    probabilities = torch.exp(part.scores - lse.unsqueeze(-1))  # (B, heads, N, N)
    heads = torch.matmul(probabilities, part.value)  # (B, heads, N, D)
    merged = _merge_heads(heads)
    out_weight = out_proj_weight.to(dtype)

    grad = _to_tokens(grad)
    grad_norm_weight = grad_norm_bias = None
    if norm_weight is not None:
        branch = _project_out(merged, part.empty, out_proj_weight, out_proj_bias)
        grad, grad_norm_weight, grad_norm_bias = _norm_backward(
            grad, branch + tokens if options.residual else branch, norm_weight.to(dtype), options.eps
        )
    grad_branch = grad if part.empty is None else grad.masked_fill(part.empty, 0.0)
    grad_out_weight = torch.einsum("bno,bni->oi", grad_branch, merged)
    grad_out_bias = grad_branch.sum((0, 1))

    grad_heads = _split_heads(torch.matmul(grad_branch, out_weight), options.num_heads)  # (B, heads, N, D)
    grad_value = torch.matmul(probabilities.mT, grad_heads)
    row = (grad_heads * heads).sum(-1, keepdim=True)
    grad_scores = probabilities * (torch.matmul(grad_heads, part.value.mT) - row) * options.scale
    grad_query = torch.matmul(grad_scores, part.key)
    grad_key = torch.matmul(grad_scores.mT, part.query)
    grad_packed = torch.cat([_merge_heads(g) for g in (grad_query, grad_key, grad_value)], dim=-1)  # (B, N, 3C)

    grad_in_weight = torch.einsum("bno,bni->oi", grad_packed, tokens)
    grad_in_bias = grad_packed.sum((0, 1))
    grad_tokens = torch.matmul(grad_packed, in_proj_weight.to(dtype))
    if options.residual:
        grad_tokens = grad_tokens + grad
    results = (
        (x, _from_tokens(grad_tokens, x)),
        (in_proj_weight, grad_in_weight),
        (in_proj_bias, grad_in_bias),
        (out_proj_weight, grad_out_weight),
        (out_proj_bias, grad_out_bias),
        (norm_weight, grad_norm_weight),
        (norm_bias, grad_norm_bias),
    )
    wanted = [
        None if given is None or gradient is None or not want else gradient.to(given.dtype)
        for (given, gradient), want in zip(results, output_mask, strict=True)
    ]
    return wanted[0], wanted[1], wanted[2], wanted[3], wanted[4], wanted[5], wanted[6]


def _to_tokens(x: Tensor) -> Tensor:
    """Reshape (B, C, H, W) or (B, N, C) to (B, N, C), in the dtype of the computation."""
    tokens = x.flatten(2).transpose(1, 2) if x.dim() == 4 else x
    return tokens if tokens.dtype == torch.float64 else tokens.float()


def _from_tokens(tokens: Tensor, like: Tensor) -> Tensor:
    """Reshape (B, N, C) to the shape and dtype of ``like``, contiguous."""
    if like.dim() == 4:
        tokens = tokens.transpose(1, 2).reshape(like.shape)
    return tokens.to(like.dtype).contiguous()


def _split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """Reshape (B, N, C) to (B, heads, N, D)."""
    batch, positions, channels = tokens.shape
    return tokens.reshape(batch, positions, num_heads, channels // num_heads).transpose(1, 2)


def _merge_heads(heads: Tensor) -> Tensor:
    """Reshape (B, heads, N, D) to (B, N, C)."""
    return heads.transpose(1, 2).flatten(2)


def _scores(
    tokens: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    num_heads: int,
    key_padding_mask: Tensor | None,
    scale: float | None,
) -> _Scores:
    """Project the tokens and score every position against every other, with -inf for ignored positions."""
    dtype = tokens.dtype
    bias = None if in_proj_bias is None else in_proj_bias.to(dtype)
    packed = F.linear(tokens, in_proj_weight.to(dtype), bias)  # (B, N, 3C)
    query, key, value = (_split_heads(part, num_heads) for part in packed.chunk(3, dim=-1))
    if scale is None:
        scale = query.shape[-1] ** -0.5
    scores = torch.matmul(query * scale, key.mT)
    if key_padding_mask is None:
        return _Scores(query, key, value, scores, None)
    # A map with every position ignored keeps its scores, because the softmax would otherwise divide by zero. Its branch
    # is set to zero later.
    empty = key_padding_mask.all(dim=-1, keepdim=True)  # (B, 1)
    ignored = (key_padding_mask & ~empty)[:, None, None, :]
    scores = scores.masked_fill(ignored, float("-inf"))
    # 0 * NaN is NaN, so zero the values, too: nothing from an ignored position must reach another position.
    value = value.masked_fill(ignored.mT, 0.0)
    return _Scores(query, key, value, scores, empty.unsqueeze(-1))


def _project_out(merged: Tensor, empty: Tensor | None, weight: Tensor, bias: Tensor | None) -> Tensor:
    branch = F.linear(merged, weight.to(merged.dtype), None if bias is None else bias.to(merged.dtype))
    return branch if empty is None else branch.masked_fill(empty, 0.0)


def _finish(
    x: Tensor,
    tokens: Tensor,
    heads: Tensor,
    empty: Tensor | None,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    residual: bool,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
) -> Tensor:
    """Apply output projection, residual and LayerNorm, and return to the shape of x."""
    result = _project_out(_merge_heads(heads), empty, out_proj_weight, out_proj_bias)
    if residual:
        result = result + tokens
    if norm_weight is not None:
        bias = None if norm_bias is None else norm_bias.to(result.dtype)
        result = F.layer_norm(result, result.shape[-1:], norm_weight.to(result.dtype), bias, eps)
    return _from_tokens(result, x)


def _norm_backward(grad: Tensor, before: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of LayerNorm's input, weight and bias."""
    centred = before - before.mean(-1, keepdim=True)
    reciprocal = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    normal = centred * reciprocal
    scaled = grad * weight
    grad_before = reciprocal * (
        scaled - scaled.mean(-1, keepdim=True) - normal * (scaled * normal).mean(-1, keepdim=True)
    )
    return grad_before, (grad * normal).sum((0, 1)), grad.sum((0, 1))
