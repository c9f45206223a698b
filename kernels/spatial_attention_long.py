"""Spatial attention for maps that one program cannot hold, or that are too few to fill the GPU.

torch's matrix products project. Tiles of queries or keys attend, each in its own program, as in FlashAttention. A last
kernel adds bias and residual and normalises. The middle part does not use torch's scaled_dot_product_attention, because
it does not return lse, differentiates only under autograd, which an operator's implementation runs below, and takes at
most 65,535 sequences in some of its kernels.

Memory in addition to inputs and results, in elements of B N C: 4 forward, and at most 9 at once backward; nothing has
the size of N * N.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
import triton
import triton.language as tl
from torch import Tensor

from simmst.core.spatial_attention import Options
from simmst.kernels.spatial_attention_sizes import Sizes, matrices, programs
from simmst.kernels.spatial_attention_tiles import (
    LOG2_E,
    attend,
    complete,
    finish,
    load_tile,
    normalise_backward,
    score_gradient,
    store_tile,
    visible_keys,
)

ROW_TILE = 4096  # number of elements in a tile of the kernels that work on rows


class Given(NamedTuple):
    """Arguments of a call. Weights are contiguous; mask (B, N) and empty (B,) are bytes."""

    x: Tensor
    w_in: Tensor
    b_in: Tensor | None
    w_out: Tensor
    b_out: Tensor | None
    mask: Tensor | None
    empty: Tensor | None
    w_norm: Tensor | None
    b_norm: Tensor | None
    options: Options


@triton.jit
def attend_rows(
    packed, heads_out, lse, mask, empty, positions, factor, unit,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Attend from a tile of queries of one head, from packed (B, N, 3C).

    Fill heads_out (B, N, C) and lse (B, heads, N), which is a logarithm of base 2 times `unit`.
    """
    CHANNELS: tl.constexpr = HEADS * WIDTH
    tiles = tl.cdiv(positions, BLOCK_M)
    sequence = (tl.program_id(0) // tiles).to(tl.int64)
    index, head = sequence // HEADS, sequence % HEADS
    rows = ((tl.program_id(0) % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    row_mask = rows < positions
    channels = tl.arange(0, BLOCK_D)
    channel_mask = channels < WIDTH
    queries = packed + index * positions * 3 * CHANNELS + head * WIDTH
    query = load_tile(queries, rows, channels, 3 * CHANNELS, 1, row_mask, channel_mask)
    mask_here = mask + index * positions if mask is not None else mask
    heads, row_lse = attend(
        query, queries + CHANNELS, queries + 2 * CHANNELS, 3 * CHANNELS, mask_here, positions, channels, channel_mask,
        factor, PRECISION, BLOCK_M, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    if mask is not None:
        is_empty = tl.load(empty + index) != 0
        heads = tl.where(is_empty, 0.0, heads)
        row_lse = tl.where(is_empty, float("inf"), row_lse)
    target = heads_out + index * positions * CHANNELS + head * WIDTH
    store_tile(target, heads, rows, channels, CHANNELS, 1, row_mask, channel_mask)
    tl.store(lse + sequence * positions + rows, row_lse * unit, mask=row_mask)


@triton.jit
def query_gradients(
    packed, heads_out, grad_heads, lse, delta, mask, grad_packed, positions, factor, scale,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Fill dQ and, for `key_gradients`, delta = rowsum(dO * O), (B, heads, N), of a tile of queries of one head."""
    CHANNELS: tl.constexpr = HEADS * WIDTH
    tiles = tl.cdiv(positions, BLOCK_M)
    sequence = (tl.program_id(0) // tiles).to(tl.int64)
    index, head = sequence // HEADS, sequence % HEADS
    rows = ((tl.program_id(0) % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    row_mask = rows < positions
    channels = tl.arange(0, BLOCK_D)
    channel_mask = channels < WIDTH
    place = index * positions * CHANNELS + head * WIDTH
    queries = packed + 3 * index * positions * CHANNELS + head * WIDTH
    query = load_tile(queries, rows, channels, 3 * CHANNELS, 1, row_mask, channel_mask)
    heads = load_tile(heads_out + place, rows, channels, CHANNELS, 1, row_mask, channel_mask)
    grad = load_tile(grad_heads + place, rows, channels, CHANNELS, 1, row_mask, channel_mask)
    row_lse = tl.load(lse + sequence * positions + rows, mask=row_mask, other=float("inf"))
    row_delta = tl.sum(heads.to(tl.float32) * grad.to(tl.float32), 1)
    tl.store(delta + sequence * positions + rows, row_delta, mask=row_mask)
    mask_here = mask + index * positions if mask is not None else mask
    result = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for start in tl.range(0, positions, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N).to(tl.int64)
        visible = visible_keys(mask_here, keys, positions)
        key = load_tile(queries + CHANNELS, keys, channels, 3 * CHANNELS, 1, visible, channel_mask)
        value = load_tile(queries + 2 * CHANNELS, keys, channels, 3 * CHANNELS, 1, visible, channel_mask)
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * factor
        weights = tl.where(visible[None, :], tl.exp2(scores - row_lse[:, None]), 0.0)
        grad_weights = tl.dot(grad, tl.trans(value), input_precision=PRECISION)
        grad_scores = (weights * (grad_weights - row_delta[:, None])).to(key.dtype)
        result = tl.dot(grad_scores, key, result, input_precision=PRECISION)
    target = grad_packed + 3 * index * positions * CHANNELS + head * WIDTH
    store_tile(target, result * scale, rows, channels, 3 * CHANNELS, 1, row_mask, channel_mask)


@triton.jit
def key_gradients(
    packed, grad_heads, lse, delta, mask, grad_packed, positions, factor, scale,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Fill dK and dV of a tile of keys of one head."""
    CHANNELS: tl.constexpr = HEADS * WIDTH
    tiles = tl.cdiv(positions, BLOCK_N)
    sequence = (tl.program_id(0) // tiles).to(tl.int64)
    index, head = sequence // HEADS, sequence % HEADS
    keys = ((tl.program_id(0) % tiles) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    channels = tl.arange(0, BLOCK_D)
    channel_mask = channels < WIDTH
    queries = packed + 3 * index * positions * CHANNELS + head * WIDTH
    grads = grad_heads + index * positions * CHANNELS + head * WIDTH
    mask_here = mask + index * positions if mask is not None else mask
    visible = visible_keys(mask_here, keys, positions)
    key = load_tile(queries + CHANNELS, keys, channels, 3 * CHANNELS, 1, visible, channel_mask)
    value = load_tile(queries + 2 * CHANNELS, keys, channels, 3 * CHANNELS, 1, visible, channel_mask)
    grad_key = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    grad_value = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for start in tl.range(0, positions, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M).to(tl.int64)
        row_mask = rows < positions
        query = load_tile(queries, rows, channels, 3 * CHANNELS, 1, row_mask, channel_mask)
        grad = load_tile(grads, rows, channels, CHANNELS, 1, row_mask, channel_mask)
        row_lse = tl.load(lse + sequence * positions + rows, mask=row_mask, other=float("inf"))
        row_delta = tl.load(delta + sequence * positions + rows, mask=row_mask, other=0.0)
        weights, grad_scores = score_gradient(query, key, value, grad, row_lse, row_delta, visible, factor, PRECISION)
        grad_value = tl.dot(weights.to(grad.dtype), grad, grad_value, input_precision=PRECISION)
        grad_key = tl.dot(grad_scores.to(query.dtype), query, grad_key, input_precision=PRECISION)
    target = grad_packed + (3 * index * positions + 1) * CHANNELS + head * WIDTH
    key_mask = keys < positions
    store_tile(target, grad_key * scale, keys, channels, 3 * CHANNELS, 1, key_mask, channel_mask)
    store_tile(target + CHANNELS, grad_value, keys, channels, 3 * CHANNELS, 1, key_mask, channel_mask)


@triton.jit
def _places(base, batch, row, column, rows, positions, columns, row_mask, column_mask):
    """Return pointers to, and the mask of, rows numbered through a batch of matrices with any strides."""
    offsets = (rows // positions) * batch + (rows % positions) * row
    places = base + offsets[:, None] + columns[None, :].to(tl.int64) * column
    return places, row_mask[:, None] & column_mask[None, :]


@triton.jit
def finish_rows(
    branch, x, b_out, empty, w_norm, b_norm, out, rows_in_all, positions, x_batch, x_row, x_column,
    out_batch, out_row, out_column, eps,
    CHANNELS: tl.constexpr, RESIDUAL: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Apply bias, residual and LayerNorm to a tile of rows of branch (B * N, C), and store it in the layout of x."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_mask = rows < rows_in_all
    columns = tl.arange(0, BLOCK_C)
    column_mask = columns < CHANNELS
    value = load_tile(branch, rows, columns, CHANNELS, 1, row_mask, column_mask).to(tl.float32)
    places, inside = _places(x, x_batch, x_row, x_column, rows, positions, columns, row_mask, column_mask)
    tokens = tl.load(places, mask=inside, other=0.0)
    is_empty = False
    if empty is not None:
        is_empty = tl.load(empty + rows // positions, mask=row_mask, other=0)[:, None] != 0
    value = finish(value, tokens, b_out, w_norm, b_norm, is_empty, columns, column_mask, CHANNELS, eps, RESIDUAL)
    places, inside = _places(out, out_batch, out_row, out_column, rows, positions, columns, row_mask, column_mask)
    tl.store(places, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def norm_gradients(
    grad, branch, x, b_out, empty, w_norm, grad_branch, partials, rows_in_all, positions, g_batch, g_row, g_column,
    x_batch, x_row, x_column, eps,
    CHANNELS: tl.constexpr, RESIDUAL: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Fill the gradient before the LayerNorm, (B, N, C), and partials (programs, 2, C) of its weight and bias."""
    columns = tl.arange(0, BLOCK_C)
    column_mask = columns < CHANNELS
    sum_weight = tl.zeros((BLOCK_C,), tl.float32)
    sum_bias = tl.zeros((BLOCK_C,), tl.float32)
    program = tl.program_id(0).to(tl.int64)
    for start in tl.range(program * BLOCK_M, rows_in_all, tl.num_programs(0) * BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M).to(tl.int64)
        row_mask = rows < rows_in_all
        value = load_tile(branch, rows, columns, CHANNELS, 1, row_mask, column_mask).to(tl.float32)
        places, inside = _places(x, x_batch, x_row, x_column, rows, positions, columns, row_mask, column_mask)
        tokens = tl.load(places, mask=inside, other=0.0)
        is_empty = False
        if empty is not None:
            is_empty = tl.load(empty + rows // positions, mask=row_mask, other=0)[:, None] != 0
        y = complete(value, tokens, b_out, is_empty, columns, column_mask, RESIDUAL)
        places, inside = _places(grad, g_batch, g_row, g_column, rows, positions, columns, row_mask, column_mask)
        row_grad = tl.load(places, mask=inside, other=0.0).to(tl.float32)
        row_grad, tile_weight, tile_bias = normalise_backward(
            row_grad, y, w_norm, columns, row_mask, column_mask, CHANNELS, eps
        )
        sum_weight += tile_weight
        sum_bias += tile_bias
        store_tile(grad_branch, row_grad, rows, columns, CHANNELS, 1, row_mask, column_mask)
    place = partials + program * 2 * CHANNELS + columns
    tl.store(place, sum_weight, mask=column_mask)
    tl.store(place + CHANNELS, sum_bias, mask=column_mask)


def forward(size: Sizes, given: Given, out: Tensor, lse: Tensor) -> None:
    """Fill out, contiguous in the shape of x, and lse (B, heads, N)."""
    packed = F.linear(matrices(given.x).tensor, given.w_in, given.b_in)
    branch = F.linear(_attend(size, given, packed, lse, math.log(2.0)), given.w_out)
    tokens, results = matrices(given.x), matrices(out)
    block = _rows_of_a_tile(size)
    finish_rows[(triton.cdiv(size.maps * size.positions, block),)](
        branch,
        given.x,
        given.b_out,
        given.empty,
        given.w_norm,
        given.b_norm,
        out,
        size.maps * size.positions,
        size.positions,
        *tokens[1:],
        *results[1:],
        given.options.eps,
        RESIDUAL=given.options.residual,
        **_rows(size),
    )


def _attend(size: Sizes, given: Given, packed: Tensor, lse: Tensor, unit: float) -> Tensor:
    """Return the heads side by side, (B, N, C), and fill lse, a logarithm of base 2 times `unit`."""
    chosen = size.configuration("attend")
    heads = torch.empty((size.maps, size.positions, size.channels), dtype=packed.dtype, device=packed.device)
    grid = _grid(size, chosen.constants["BLOCK_M"])
    factor = given.options.scale * LOG2_E
    attend_rows[grid](
        packed, heads, lse, given.mask, given.empty, size.positions, factor, unit, **_heads(size), **chosen.launch()
    )
    return heads


def _grid(size: Sizes, block: int) -> tuple[int]:
    return (size.maps * size.heads * triton.cdiv(size.positions, block),)


def _heads(size: Sizes) -> dict[str, Any]:
    return {"HEADS": size.heads, "WIDTH": size.width, "PRECISION": size.precision, "BLOCK_D": size.block_d}


def _rows_of_a_tile(size: Sizes) -> int:
    return max(1, ROW_TILE // size.block_c)


def _rows(size: Sizes) -> dict[str, Any]:
    return {
        "CHANNELS": size.channels,
        "BLOCK_C": size.block_c,
        "BLOCK_M": _rows_of_a_tile(size),
        "num_warps": 4,
        "num_stages": 1,
    }


def backward(size: Sizes, grad: Tensor, given: Given, lse: Tensor, found: list[Tensor | None]) -> None:
    """Fill the gradients that are not None, in the order of the operator's seven."""
    tokens = matrices(given.x).tensor
    packed = F.linear(tokens, given.w_in, given.b_in)
    # Compute lse again in the units of the kernels, because weights from a rounded lse do not quite sum to one.
    heads = _attend(size, given, packed, lse := torch.empty_like(lse), 1.0)
    grad_branch = matrices(grad).tensor.contiguous()
    if given.w_norm is not None:
        grad_branch = _norm_backward(size, grad, given, F.linear(heads, given.w_out), found)
    grad_residual = grad_branch
    if given.empty is not None:
        grad_branch = grad_branch.masked_fill(given.empty.view(torch.bool)[:, None, None], 0.0)
    if found[3] is not None:
        torch.mm(grad_branch.flatten(0, 1).mT, heads.flatten(0, 1), out=found[3])
    if found[4] is not None:
        torch.sum(grad_branch, (0, 1), out=found[4])
    grad_packed = _packed_gradients(size, given, packed, heads, torch.matmul(grad_branch, given.w_out), lse)
    del packed, heads, grad_branch
    if found[1] is not None:
        torch.mm(grad_packed.flatten(0, 1).mT, tokens.reshape(-1, size.channels), out=found[1])
    if found[2] is not None:
        torch.sum(grad_packed, (0, 1), out=found[2])
    if found[0] is not None:
        grad_tokens = matrices(found[0]).tensor
        grad_tokens.copy_(torch.matmul(grad_packed, given.w_in))
        if given.options.residual:
            grad_tokens += grad_residual


def _norm_backward(size: Sizes, grad: Tensor, given: Given, branch: Tensor, found: list[Tensor | None]) -> Tensor:
    tokens, grads = matrices(given.x), matrices(grad)
    rows = size.maps * size.positions
    grad_branch = torch.empty_like(branch)
    count = programs(triton.cdiv(rows, _rows_of_a_tile(size)), 4, grad.device)
    partials = torch.empty((count, 2, size.channels), dtype=torch.float32, device=grad.device)
    norm_gradients[(count,)](
        grads.tensor,
        branch,
        tokens.tensor,
        given.b_out,
        given.empty,
        given.w_norm,
        grad_branch,
        partials,
        rows,
        size.positions,
        *grads[1:],
        *tokens[1:],
        given.options.eps,
        RESIDUAL=given.options.residual,
        **_rows(size),
    )
    for gradient, total in zip(found[5:], partials.sum(0), strict=True):
        if gradient is not None:
            gradient.copy_(total)
    return grad_branch


def _packed_gradients(
    size: Sizes, given: Given, packed: Tensor, heads: Tensor, grad_heads: Tensor, lse: Tensor
) -> Tensor:
    grad_packed, delta = torch.empty_like(packed), torch.empty_like(lse)
    factors = given.options.scale * LOG2_E, given.options.scale
    chosen = size.configuration("queries")
    query_gradients[_grid(size, chosen.constants["BLOCK_M"])](
        packed, heads, grad_heads, lse, delta, given.mask, grad_packed, size.positions, *factors,
        **_heads(size), **chosen.launch(),
    )  # fmt: skip
    chosen = size.configuration("keys")
    key_gradients[_grid(size, chosen.constants["BLOCK_N"])](
        packed, grad_heads, lse, delta, given.mask, grad_packed, size.positions, *factors,
        **_heads(size), **chosen.launch(),
    )  # fmt: skip
    return grad_packed
