"""What the kernels of ProbSparse attention share: rows of a tensor as a tile, which are selected, dropout, sums.

Tensors come as (B, H, L, D) with columns next to each other and any other strides; a program finds its batch entry by
`batch_offset`. Offsets are 64 bits wide. Rows and columns that are absent read as zero.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def batch_offset(batch, heads, batch_stride, head_stride):
    """Offset of the flattened batch index `batch` in a (B, H, ...) tensor."""
    return (batch // heads).to(tl.int64) * batch_stride + (batch % heads).to(tl.int64) * head_stride


@triton.jit
def load_rows(matrix, rows, present, stride, width, BLOCK: tl.constexpr):
    """The rows of a matrix, [rows, BLOCK]; zero where a row is absent and beyond the width."""
    columns = tl.arange(0, BLOCK)
    mask = present[:, None] & (columns < width)[None, :]
    return tl.load(matrix + rows.to(tl.int64)[:, None] * stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(matrix, rows, present, stride, width, tile, BLOCK: tl.constexpr):
    """The inverse of `load_rows`, in the type of the matrix."""
    columns = tl.arange(0, BLOCK)
    mask = present[:, None] & (columns < width)[None, :]
    where = matrix + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    tl.store(where, tile.to(matrix.dtype.element_ty), mask=mask)


@triton.jit
def slots_of(rows, top, u):
    """For each row its place in `top` [u], or -1 where it is not selected."""
    BLOCK: tl.constexpr = 32
    slots = tl.full(rows.shape, -1, tl.int32)
    for start in range(0, u, BLOCK):
        places = start + tl.arange(0, BLOCK)
        selected = tl.load(top + places, mask=places < u, other=-1)
        selected = tl.where(selected < 0x80000000, selected, -1).to(tl.int32)
        match = rows[:, None] == selected[None, :]  # [rows, BLOCK]
        slots = tl.maximum(slots, tl.max(tl.where(match, places[None, :], -1), 1))
    return slots


@triton.jit
def kept_weights(seed, batch, rows, start, keep, BLOCK_U: tl.constexpr, BLOCK_N: tl.constexpr):
    """Which weights of the columns `start`, ... survive dropout, [BLOCK_U, BLOCK_N]; `start` is a multiple of 4.

    The counters are those of `simmst.core.philox`: one draw gives the words of four columns. `keep` is the
    threshold less 2**31, so that it fits a signed word.
    """
    quads = tl.zeros([BLOCK_U, 1], tl.uint32) + (start // 4 + tl.arange(0, BLOCK_N // 4)).to(tl.uint32)[None, :]
    row = tl.zeros([BLOCK_U, BLOCK_N // 4], tl.uint32) + rows.to(tl.uint32)[:, None]
    zero = tl.zeros([BLOCK_U, BLOCK_N // 4], tl.uint32)
    seed64 = tl.load(seed) | (tl.load(seed + 1) << 32)
    word0, word1, word2, word3 = tl.philox(seed64, quads, row, zero + batch.to(tl.uint32), zero)
    words = tl.join(tl.join(word0, word2), tl.join(word1, word3)).reshape([BLOCK_U, BLOCK_N])
    return (words ^ 0x80000000).to(tl.int32, bitcast=True) >= keep


@triton.jit
def visible_keys(rows, keys):
    """How many keys the fill of a row is taken of, when it is a running one."""
    return tl.minimum(rows + 1, keys).to(tl.float32)


@triton.jit
def sum_of_parts(parts, first, last, stride, width, BLOCK: tl.constexpr, BLOCK_P: tl.constexpr):
    """Sum of the rows first, ..., last - 1 of a float32 matrix, [BLOCK], in one order whatever else runs."""
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(first, last, BLOCK_P):
        places = start + tl.arange(0, BLOCK_P)
        total += tl.sum(load_rows(parts, places, places < last, stride, width, BLOCK), 0)
    return total


__all__ = [
    "batch_offset",
    "kept_weights",
    "load_rows",
    "slots_of",
    "store_rows",
    "sum_of_parts",
    "visible_keys",
]
