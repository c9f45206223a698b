"""Spatial attention over more positions than the fused kernels take, on PyTorch's products and fused attention.

The forward pass also gets lse from PyTorch's memory-efficient attention. The backward pass of that attention adds in an
order that may change from run to run, so the backward pass here takes plain products over blocks of queries, in a fixed
order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from simmst.core.spatial_attention import Options

# PyTorch's attention takes no more than this many maps times heads in one call.
_MOST_SEQUENCES = 65_535
# The largest number of scores in a block of the backward pass; in float32 they take 256 MiB.
_MOST_SCORES = 1 << 26


class _Packed(NamedTuple):
    tokens: Tensor  # (B, N, C)
    query: Tensor  # (B, heads, N, D)
    key: Tensor  # zero where ignored
    value: Tensor  # zero where ignored
    ignored: Tensor | None  # (B, N)
    empty: Tensor | None  # (B, 1, 1), True for a map with every position ignored


def forward(
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor | None,
    w_out: Tensor,
    b_out: Tensor | None,
    w_norm: Tensor | None,
    b_norm: Tensor | None,
    mask: Tensor | None,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """Return the output and lse for the arguments of the fused kernels, with the mask last."""
    packed = _project(x, w_in, b_in, mask, options.num_heads)
    step = max(1, _MOST_SEQUENCES // options.num_heads)
    parts = [_attend(packed, slice(start, start + step), options.scale) for start in range(0, x.shape[0], step)]
    heads, lse = (torch.cat(group) for group in zip(*parts, strict=True))
    if packed.empty is not None:
        lse = lse.masked_fill(packed.empty, float("inf"))
    result = _branch(heads, packed, w_out, b_out)
    if options.residual:
        result = result + packed.tokens
    if w_norm is not None:
        result = F.layer_norm(result, result.shape[-1:], w_norm, b_norm, options.eps)
    return _from_tokens(result, x), lse.contiguous()


def backward(
    grad: Tensor,
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor | None,
    w_out: Tensor,
    b_out: Tensor | None,
    w_norm: Tensor | None,
    b_norm: Tensor | None,
    mask: Tensor | None,
    options: Options,
    output_mask: list[bool],
) -> list[Tensor | None]:
    """Return the wanted gradients of x, of the projections' four parameters and of the LayerNorm's two."""
    packed = _project(x, w_in, b_in, mask, options.num_heads)
    dtype = x.dtype
    heads = _heads_again(packed, options.scale)
    grad_out = _to_tokens(grad)
    grad_norm: tuple[Tensor | None, Tensor | None] = (None, None)
    if w_norm is not None:
        before = _branch(heads, packed, w_out, b_out)
        if options.residual:
            before = before + packed.tokens
        grad_out, *rest = _norm_backward(grad_out, before, w_norm, options.eps)
        grad_norm = rest[0], rest[1]
    branch = grad_out if packed.empty is None else grad_out.masked_fill(packed.empty, 0.0)
    grad_w_out = _outer(branch, _merge(heads))
    grad_heads = _split(branch @ w_out, options.num_heads)
    grads = _attention_backward(packed, grad_heads, options.scale)
    grad_packed = torch.cat([_merge(part) for part in grads], dim=-1)  # (B, N, 3C)
    grad_tokens = grad_packed @ w_in
    if options.residual:
        grad_tokens = grad_tokens + grad_out
    found = (
        _from_tokens(grad_tokens, x),
        _outer(grad_packed, packed.tokens),
        grad_packed.sum((0, 1), dtype=torch.float32),
        grad_w_out,
        branch.sum((0, 1), dtype=torch.float32),
        *grad_norm,
    )
    given = x, w_in, b_in, w_out, b_out, w_norm, b_norm
    return [
        gradient.to(dtype) if want and tensor is not None and gradient is not None else None
        for gradient, tensor, want in zip(found, given, output_mask, strict=True)
    ]


def _project(x: Tensor, w_in: Tensor, b_in: Tensor | None, mask: Tensor | None, num_heads: int) -> _Packed:
    tokens = _to_tokens(x)
    query, key, value = (_split(part, num_heads) for part in F.linear(tokens, w_in, b_in).chunk(3, dim=-1))
    if mask is None:
        return _Packed(tokens, query, key, value, None, None)
    empty = mask.all(dim=-1, keepdim=True)
    ignored = mask & ~empty
    rows = ignored[:, None, :, None]  # nothing from an ignored position, not even NaN, must reach another
    key, value = key.masked_fill(rows, 0.0), value.masked_fill(rows, 0.0)
    return _Packed(tokens, query, key, value, ignored, empty.unsqueeze(-1))


def _attend(packed: _Packed, maps: slice, scale: float) -> tuple[Tensor, Tensor]:
    """Return heads (maps, heads, N, D) and lse (maps, heads, N)."""
    query, key, value = packed.query[maps], packed.key[maps], packed.value[maps]
    positions, width = query.shape[2:]
    bias = None if packed.ignored is None else _bias(packed.ignored[maps], query)
    if query.is_cuda:
        spare = -width % 8  # the rows of the kernel's operands must start at multiples of 16 bytes
        query, key, value = (F.pad(part, (0, spare)).contiguous() for part in (query, key, value))
        heads, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, bias, True, scale=scale
        )
    else:
        heads, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, attn_mask=bias, scale=scale
        )
    return heads[..., :width], lse[..., :positions]


def _bias(ignored: Tensor, query: Tensor) -> Tensor:
    """Return -inf for ignored positions, (maps, heads, N, N) without copies; rows start at multiples of 16 entries."""
    maps, heads, positions, _ = query.shape
    bias = query.new_zeros((maps, 1, 1, -(-positions // 16) * 16))
    bias[..., :positions].masked_fill_(ignored[:, None, None, :], float("-inf"))
    return bias[..., :positions].expand(maps, heads, positions, positions)


def _blocks(packed: _Packed) -> list[tuple[slice, slice]]:
    """Return the slices (maps, queries) of blocks with at most _MOST_SCORES scores."""
    batch, heads, positions, _ = packed.query.shape
    queries = min(positions, max(1, _MOST_SCORES // (heads * positions)))
    maps = max(1, _MOST_SCORES // (heads * positions * queries))
    return [
        (slice(first, first + maps), slice(start, start + queries))
        for first in range(0, batch, maps)
        for start in range(0, positions, queries)
    ]


def _weights(packed: _Packed, scale: float, maps: slice, queries: slice) -> Tensor:
    """Return the softmax weights of a block of queries in float32. With a rounded lse their sum would not be 1."""
    scores = torch.matmul(packed.query[maps, :, queries], packed.key[maps].mT).float() * scale
    if packed.ignored is not None:
        scores = scores.masked_fill(packed.ignored[maps, None, None, :], float("-inf"))
    return scores.softmax(-1)


def _heads_again(packed: _Packed, scale: float) -> Tensor:
    heads = torch.empty_like(packed.query)
    for maps, queries in _blocks(packed):
        weights = _weights(packed, scale, maps, queries).to(heads.dtype)
        heads[maps, :, queries] = torch.matmul(weights, packed.value[maps])
    return heads


def _attention_backward(packed: _Packed, grad_heads: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value."""
    dtype = grad_heads.dtype
    grad_query = torch.empty_like(packed.query)
    grad_key = torch.zeros(packed.key.shape, dtype=torch.float32, device=grad_heads.device)
    grad_value = torch.zeros_like(grad_key)
    for maps, queries in _blocks(packed):
        weights = _weights(packed, scale, maps, queries)
        grad = grad_heads[maps, :, queries]
        slopes = torch.matmul(grad, packed.value[maps].mT).float()
        slopes = (weights * (slopes - (weights * slopes).sum(-1, keepdim=True)) * scale).to(dtype)
        grad_value[maps] += torch.matmul(weights.to(dtype).mT, grad)
        grad_query[maps, :, queries] = torch.matmul(slopes, packed.key[maps])
        grad_key[maps] += torch.matmul(slopes.mT, packed.query[maps, :, queries])
    if packed.ignored is not None:
        rows = packed.ignored[:, None, :, None]
        grad_key, grad_value = grad_key.masked_fill(rows, 0.0), grad_value.masked_fill(rows, 0.0)
    return grad_query, grad_key.to(dtype), grad_value.to(dtype)


def _norm_backward(grad: Tensor, before: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of LayerNorm's input, weight and bias."""
    wide = before.float()
    centred = wide - wide.mean(-1, keepdim=True)
    reciprocal = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    normal, upstream = centred * reciprocal, grad.float()
    scaled = upstream * weight.float()
    slope = scaled - scaled.mean(-1, keepdim=True) - normal * (scaled * normal).mean(-1, keepdim=True)
    return (reciprocal * slope).to(grad.dtype), (upstream * normal).sum((0, 1)), upstream.sum((0, 1))


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """Return the sum (O, I) over maps and positions of left (B, N, O) times right (B, N, I)."""
    return left.flatten(0, 1).mT @ right.flatten(0, 1)


def _branch(heads: Tensor, packed: _Packed, w_out: Tensor, b_out: Tensor | None) -> Tensor:
    branch = F.linear(_merge(heads), w_out, b_out)
    return branch if packed.empty is None else branch.masked_fill(packed.empty, 0.0)


def _to_tokens(x: Tensor) -> Tensor:
    """Reshape (B, C, H, W) to (B, N, C), and leave (B, N, C) unchanged."""
    return x.flatten(2).mT if x.dim() == 4 else x


def _from_tokens(tokens: Tensor, like: Tensor) -> Tensor:
    """Reshape (B, N, C) to the shape of ``like``, contiguous."""
    return tokens.mT.reshape(like.shape).contiguous() if like.dim() == 4 else tokens.contiguous()


def _split(tokens: Tensor, num_heads: int) -> Tensor:
    """Reshape (B, N, C) to (B, heads, N, D)."""
    batch, positions, channels = tokens.shape
    return tokens.reshape(batch, positions, num_heads, channels // num_heads).transpose(1, 2)


def _merge(heads: Tensor) -> Tensor:
    """Reshape (B, heads, N, D) to (B, N, C)."""
    return heads.transpose(1, 2).flatten(2)


__all__ = ["backward", "forward"]
