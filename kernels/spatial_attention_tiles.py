"""Tile functions of spatial attention, which the fused kernels and those for many positions share.

A tile has BLOCK_M queries or BLOCK_N keys, and BLOCK_D >= D channels of one head or BLOCK_C >= C channels of all heads.
Everything outside of a tensor is loaded as zero. Offsets are 64 bits wide. `None` for a tensor is a constant that
Triton compiles away. Matrix products accumulate in float32; PRECISION says how products of float32 operands round
them ("ieee", or "tf32" where torch allows it).
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = 1.4426950408889634
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_tile(base, rows, columns, row_stride, column_stride, row_mask, column_mask):
    """Load (rows, columns) of a matrix with any strides; offsets are as wide as the indices."""
    offsets = rows[:, None] * row_stride + columns[None, :] * column_stride
    return tl.load(base + offsets, mask=row_mask[:, None] & column_mask[None, :], other=0.0)


@triton.jit
def store_tile(base, value, rows, columns, row_stride, column_stride, row_mask, column_mask):
    """Round to the element type of the matrix and store."""
    offsets = rows[:, None] * row_stride + columns[None, :] * column_stride
    tl.store(base + offsets, value.to(base.dtype.element_ty), mask=row_mask[:, None] & column_mask[None, :])


@triton.jit
def linear(x, weight, bias, inputs, input_mask, outputs, output_mask, weight_row, PRECISION: tl.constexpr):
    """Multiply x (rows, inputs) by the transpose of weight[outputs, inputs] and add bias[outputs], in float32."""
    transposed = load_tile(weight, inputs, outputs, 1, weight_row, input_mask, output_mask)
    result = tl.dot(x, transposed, input_precision=PRECISION)
    if bias is not None:
        result += tl.load(bias + outputs, mask=output_mask, other=0.0).to(tl.float32)[None, :]
    return result


@triton.jit
def linear_rows(
    base, rows, row_stride, column_stride, row_mask, weight, bias, outputs, output_mask, input_stride, output_stride,
    CHANNELS: tl.constexpr, PRECISION: tl.constexpr, BLOCK_C: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Apply `linear` to rows (BLOCK_M, C) in memory, CHUNK input channels at a time, so that few are in registers.

    The weight may have any strides. Exact float32 products hold all of a thread's operands in registers.
    """
    result = tl.zeros((BLOCK_M, BLOCK_O), tl.float32)
    for first in tl.range(0, BLOCK_C, CHUNK, num_stages=1):
        inputs = first + tl.arange(0, CHUNK)
        input_mask = inputs < CHANNELS
        x = load_tile(base, rows, inputs, row_stride, column_stride, row_mask, input_mask)
        matrix = load_tile(weight, inputs, outputs, input_stride, output_stride, input_mask, output_mask)
        result = tl.dot(x, matrix, result, input_precision=PRECISION)
    if bias is not None:
        result += tl.load(bias + outputs, mask=output_mask, other=0.0).to(tl.float32)[None, :]
    return result


@triton.jit
def visible_keys(mask, keys, positions):
    """Tell whether a key is in the map and not ignored."""
    visible = keys < positions
    if mask is not None:
        visible &= tl.load(mask + keys, mask=visible, other=1) == 0
    return visible


@triton.jit
def attend_step(query, key, value, visible, factor, top, total, heads, PRECISION: tl.constexpr):
    """Continue an online softmax with one more tile of keys; `factor` is scale * log2(e), because GPUs compute exp2.

    top, total (BLOCK_M,): largest score and sum of exponentials so far. heads (BLOCK_M, BLOCK_D): weighted values so
    far.
    """
    scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * factor
    scores = tl.where(visible[None, :], scores, float("-inf"))
    highest = tl.maximum(top, tl.max(scores, 1))
    # Rows that have seen only ignored keys would compute -inf - -inf, which is NaN.
    origin = tl.where(highest == float("-inf"), 0.0, highest)
    weights = tl.exp2(scores - origin[:, None])
    decay = tl.exp2(top - origin)
    total = total * decay + tl.sum(weights, 1)
    heads = tl.dot(weights.to(value.dtype), value, heads * decay[:, None], input_precision=PRECISION)
    return highest, total, heads


@triton.jit
def attend(
    query, keys, values, row_stride, mask, positions, channels, channel_mask, factor,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Attend from a tile of queries to all keys; `keys` and `values` point to the first channel of the first position.

    Return heads (BLOCK_M, BLOCK_D) and lse (BLOCK_M,) in float32, the latter in units of log 2.
    """
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    heads = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for start in tl.range(0, positions, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        visible = visible_keys(mask, columns, positions)
        key = load_tile(keys, columns, channels, row_stride, 1, visible, channel_mask)
        value = load_tile(values, columns, channels, row_stride, 1, visible, channel_mask)
        top, total, heads = attend_step(query, key, value, visible, factor, top, total, heads, PRECISION)
    return heads / total[:, None], top + tl.log2(total)


@triton.jit
def attend_again(
    query, keys, values, row_stride, mask, positions, channels, channel_mask, factor, lse,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Compute the heads of `attend` from a known lse, without searching a maximum or rescaling.

    lse is in units of log 2, and +inf for rows outside and for maps with every position ignored, whose heads are zero.
    The lse that is returned with the heads is corrected, so that the weights sum to one despite the rounding of lse.
    """
    heads = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for start in tl.range(0, positions, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        visible = visible_keys(mask, columns, positions)
        key = load_tile(keys, columns, channels, row_stride, 1, visible, channel_mask)
        value = load_tile(values, columns, channels, row_stride, 1, visible, channel_mask)
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * factor
        weights = tl.where(visible[None, :], tl.exp2(scores - lse[:, None]), 0.0)
        total += tl.sum(weights, 1)
        heads = tl.dot(weights.to(value.dtype), value, heads, input_precision=PRECISION)
    total = tl.where(total == 0.0, 1.0, total)
    return heads / total[:, None], lse + tl.log2(total)


@triton.jit
def score_gradient(query, key, value, grad, lse, delta, visible, factor, PRECISION: tl.constexpr):
    """Return P and dS = P (dO V^T - delta), both transposed, (BLOCK_N, BLOCK_M); dS lacks its factor `scale`."""
    scores = tl.dot(key, tl.trans(query), input_precision=PRECISION) * factor
    weights = tl.where(visible[:, None], tl.exp2(scores - lse[None, :]), 0.0)
    grad_weights = tl.dot(value, tl.trans(grad), input_precision=PRECISION)
    return weights, weights * (grad_weights - delta[None, :])


@triton.jit
def finish(
    branch, x, b_out, w_norm, b_norm, is_empty, columns, column_mask, channels, eps, RESIDUAL: tl.constexpr
):  # fmt: skip
    """Apply bias, residual and LayerNorm to a tile (BLOCK_M, BLOCK_C) in float32; is_empty is a scalar or per row."""
    branch = complete(branch, x, b_out, is_empty, columns, column_mask, RESIDUAL)
    if w_norm is not None:
        normal, _ = normalise(branch, column_mask, channels, eps)
        branch = normal * tl.load(w_norm + columns, mask=column_mask, other=0.0).to(tl.float32)[None, :]
        if b_norm is not None:
            branch += tl.load(b_norm + columns, mask=column_mask, other=0.0).to(tl.float32)[None, :]
    return branch


@triton.jit
def complete(branch, x, b_out, is_empty, columns, column_mask, RESIDUAL: tl.constexpr):
    """Apply everything before the LayerNorm; the branch of a map with every position ignored is zero."""
    if b_out is not None:
        branch += tl.load(b_out + columns, mask=column_mask, other=0.0).to(tl.float32)[None, :]
    branch = tl.where(is_empty, 0.0, branch)
    if RESIDUAL:
        branch += x.to(tl.float32)
    return branch


@triton.jit
def normalise(y, column_mask, channels, eps):
    """Return rows of mean 0 and variance 1, with zeros as padding, and the reciprocal deviation (BLOCK_M, 1)."""
    mean = tl.sum(y, 1)[:, None] / channels
    centred = tl.where(column_mask[None, :], y - mean, 0.0)
    reciprocal = 1.0 / tl.sqrt(tl.sum(centred * centred, 1)[:, None] / channels + eps)
    return centred * reciprocal, reciprocal


@triton.jit
def normalise_backward(grad, y, w_norm, columns, row_mask, column_mask, channels, eps):
    """Return the gradients of y, and of the LayerNorm's weight and bias summed over the rows of the tile."""
    normal, reciprocal = normalise(y, column_mask, channels, eps)
    # A row of padding may be constant, and eps may be 0: keep the resulting infinity out of the sums.
    normal = tl.where(row_mask[:, None], normal, 0.0)
    scaled = grad * tl.load(w_norm + columns, mask=column_mask, other=0.0).to(tl.float32)[None, :]
    mean = tl.sum(scaled, 1)[:, None] / channels
    along = tl.sum(scaled * normal, 1)[:, None] / channels
    grad_y = tl.where(row_mask[:, None] & column_mask[None, :], reciprocal * (scaled - mean - normal * along), 0.0)
    return grad_y, tl.sum(grad * normal, 0), tl.sum(grad, 0)
