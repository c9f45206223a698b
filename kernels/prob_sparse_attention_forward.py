"""Attention in the selected rows and the fill in all others.

`_attend` is split over keys as in flash decoding: a program reads a chunk of K and V once, for all selected rows of a
tile. The same matrix products also give the sum of V for the fill, because the row after the selected ones takes part
as a query of zeros, whose weights are all exactly 1. If one program takes all keys (WHOLE), it also writes the output.
Otherwise it writes partial results, and `_combine` adds them in a fixed order for each chunk of output rows. Every row
of the output has one writer, which compares with `top` to know whether the row is selected.

A running fill reads V a second time for the sums inside a tile; the sums of earlier chunks come from `_attend`.

Selection and gradients use the functions above `_attend_keys`, too. Tensors are (B, H, L, D) with adjacent columns and
any other strides; a program finds its batch entry by `batch_offset`. Offsets are 64 bits wide. Absent rows and columns
read as zero.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def batch_offset(batch, heads, batch_stride, head_stride):
    """Return the offset of the flattened batch index `batch` in a (B, H, ...) tensor."""
    return (batch // heads).to(tl.int64) * batch_stride + (batch % heads).to(tl.int64) * head_stride


@triton.jit
def load_rows(matrix, rows, present, stride, width, BLOCK: tl.constexpr):
    """Load rows of a matrix, [rows, BLOCK], with zeros for absent rows and beyond the width."""
    columns = tl.arange(0, BLOCK)
    mask = present[:, None] & (columns < width)[None, :]
    return tl.load(matrix + rows.to(tl.int64)[:, None] * stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(matrix, rows, present, stride, width, tile, BLOCK: tl.constexpr):
    """Store rows, as the inverse of `load_rows`, in the type of the matrix."""
    columns = tl.arange(0, BLOCK)
    mask = present[:, None] & (columns < width)[None, :]
    where = matrix + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    tl.store(where, tile.to(matrix.dtype.element_ty), mask=mask)


@triton.jit
def slots_of(rows, top, u):
    """Return the place of each row in `top` [u], or -1 if the row is not selected."""
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
    """Tell which weights of the columns `start`, ... survive dropout, [BLOCK_U, BLOCK_N]; `start` is a multiple of 4.

    The counters are those of `simmst.core.philox`: one draw gives the words of four columns. `keep` is the threshold
    minus 2**31, so that it fits a signed word.
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
    """Return the number of keys in the running fill of each row."""
    return tl.minimum(rows + 1, keys).to(tl.float32)


@triton.jit
def sum_of_parts(parts, first, last, stride, width, BLOCK: tl.constexpr, BLOCK_P: tl.constexpr):
    """Return the sum of the rows first, ..., last - 1 of a float32 matrix, [BLOCK], in a fixed order."""
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(first, last, BLOCK_P):
        places = start + tl.arange(0, BLOCK_P)
        total += tl.sum(load_rows(parts, places, places < last, stride, width, BLOCK), 0)
    return total


@triton.jit
def _attend_keys(
    query, key, value, seed, batch, rows, is_selected, begin, end, width, value_width,
    key_row, value_row, scale, keep,
    CAUSAL: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_U: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Attend to the keys begin, ..., end - 1; return maximum (of base 2) and sum [U], and weighted values [U, V]."""
    # Under tf32 the fill keeps the precision of float32, by three products instead of one.
    FILL_PRECISION: tl.constexpr = "tf32x3" if PRECISION == "tf32" else PRECISION
    largest = tl.full([BLOCK_U], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_U], tl.float32)
    weighted = tl.zeros([BLOCK_U, BLOCK_V], tl.float32)
    for start in range(begin, end, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        present = columns < end
        key_tile = load_rows(key, columns, present, key_row, width, BLOCK_D)  # [N, D]
        value_tile = load_rows(value, columns, present, value_row, value_width, BLOCK_V)  # [N, V]
        scores = tl.dot(query, tl.trans(key_tile), input_precision=PRECISION) * (scale * _LOG2_E)  # [U, N]
        scores = tl.where(is_selected[:, None], scores, 0.0)  # the zero query must ignore NaN and infinity in the keys
        visible = present[None, :]
        if CAUSAL:
            visible = visible & ((columns[None, :] <= rows[:, None]) | ~is_selected[:, None])
        scores = tl.where(visible, scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 1))
        base = tl.where(larger == float("-inf"), 0.0, larger)
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(largest - base)
        total = total * shrink + tl.sum(weights, 1)
        if DROPOUT:
            kept = kept_weights(seed, batch, rows, start, keep, BLOCK_U, BLOCK_N)
            weights = tl.where(kept | ~is_selected[:, None], weights, 0.0)
        weighted = tl.dot(
            weights.to(value_tile.dtype), value_tile, weighted * shrink[:, None], input_precision=FILL_PRECISION
        )
        largest = larger
    return largest, total, weighted


@triton.jit
def _fill_tile(
    value, before, rows, keys, value_row, value_width,
    FILL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Return the fill of some rows [M, V], and the new `before`: the same mean, or the sum of the values so far [V]."""
    if FILL == "mean":
        tile = tl.zeros([BLOCK_M, BLOCK_V], tl.float32) + before[None, :]
    else:
        values = load_rows(value, rows, rows < keys, value_row, value_width, BLOCK_V).to(tl.float32)
        tile = before[None, :] + tl.cumsum(values, 0)
        before += tl.sum(values, 0)
        if FILL == "cummean":
            tile = tile / visible_keys(rows, keys)[:, None]
    return tile, before


_COUNTS = ["heads", "queries", "keys", "u", "keep", "chunk", "splits"]


@triton.jit(do_not_specialize=_COUNTS)
def _attend(
    query, key, value, top, seed, out, lse, parts, statistics, heads, queries, keys, u, width, value_width,
    query_batch, query_head, query_row, key_batch, key_head, key_row,
    value_batch, value_head, value_row, out_batch, out_head, out_row,
    scale, keep, dropout_factor, chunk, splits,
    WHOLE: tl.constexpr, CAUSAL: tl.constexpr, FILL: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_U: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Process one chunk of keys for one tile of selected rows of one batch entry; the whole attention if WHOLE.

    parts: float32 (B, splits, u + 1, V); statistics: float32 (2, B, splits, u + 1), maximum and sum.
    """
    tiles = tl.cdiv(u + 1, BLOCK_U)
    tile = tl.program_id(0) % tiles
    split = (tl.program_id(0) // tiles) % splits
    batch = tl.program_id(0) // (tiles * splits)
    query += batch_offset(batch, heads, query_batch, query_head)
    key += batch_offset(batch, heads, key_batch, key_head)
    value += batch_offset(batch, heads, value_batch, value_head)
    top += batch.to(tl.int64) * u

    places = tile * BLOCK_U + tl.arange(0, BLOCK_U)
    is_selected = places < u
    rows = tl.load(top + places, mask=is_selected, other=0)
    inside = is_selected & (rows >= 0) & (rows < queries)
    rows = rows.to(tl.int32)
    selected = load_rows(query, rows, inside, query_row, width, BLOCK_D)  # [U, D]
    selected = tl.where((is_selected & ~inside)[:, None], float("nan"), selected).to(query.dtype.element_ty)
    begin = split * chunk
    largest, total, weighted = _attend_keys(
        selected, key, value, seed, batch, rows, is_selected, begin, tl.minimum(begin + chunk, keys),
        width, value_width, key_row, value_row, scale, keep,
        CAUSAL, DROPOUT, PRECISION, BLOCK_U, BLOCK_D, BLOCK_V, BLOCK_N,
    )  # fmt: skip

    if WHOLE:
        lse += batch.to(tl.int64) * u
        tl.store(lse + places, (largest + tl.log2(total)) / _LOG2_E, mask=is_selected)
        out += batch_offset(batch, heads, out_batch, out_head)
        if FILL == "mean":
            before = tl.sum(tl.where((places == u)[:, None], weighted, 0.0), 0) / keys
        else:
            before = tl.zeros([BLOCK_V], tl.float32)
        for start in range(0, queries, BLOCK_N):
            others = start + tl.arange(0, BLOCK_N)
            fill, before = _fill_tile(value, before, others, keys, value_row, value_width, FILL, BLOCK_N, BLOCK_V)
            unselected = (others < queries) & (slots_of(others, top, u) < 0)
            store_rows(out, others, unselected, out_row, value_width, fill, BLOCK_V)
        store_rows(out, rows, inside, out_row, value_width, weighted * (dropout_factor / total)[:, None], BLOCK_V)
    else:
        entry = (batch.to(tl.int64) * splits + split) * (u + 1)
        store_rows(parts + entry * value_width, places, places <= u, value_width, value_width, weighted, BLOCK_V)
        entries = (tl.num_programs(0) // tiles).to(tl.int64) * (u + 1)
        tl.store(statistics + entry + places, largest, mask=places <= u)
        tl.store(statistics + entries + entry + places, total, mask=places <= u)


@triton.jit
def _merge(
    parts, maxima, sums, slots, present, splits, u, value_width,
    BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Merge the softmax of all chunks for places `slots` [M] in top: maximum and sum [M], weighted values [M, V]."""
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    weighted = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    for split in range(0, splits):
        places = split * (u + 1) + slots
        part_largest = tl.load(maxima + places, mask=present, other=float("-inf"))
        part_total = tl.load(sums + places, mask=present, other=0.0)
        part = load_rows(parts, places, present, value_width, value_width, BLOCK_V)
        larger = tl.maximum(largest, part_largest)
        base = tl.where(larger == float("-inf"), 0.0, larger)
        shrink, part_shrink = tl.exp2(largest - base), tl.exp2(part_largest - base)
        total = total * shrink + part_total * part_shrink
        weighted = weighted * shrink[:, None] + part * part_shrink[:, None]
        largest = larger
    return largest, total, weighted


@triton.jit(do_not_specialize=_COUNTS)
def _combine(
    value, top, out, lse, parts, statistics, heads, queries, keys, u, value_width,
    value_batch, value_head, value_row, out_batch, out_head, out_row, dropout_factor, chunk, splits,
    FILL: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Write a chunk of output rows of one batch entry; the program of the first chunk also writes lse."""
    chunks = tl.cdiv(queries, chunk)
    batch = (tl.program_id(0) // chunks).to(tl.int64)
    number = tl.program_id(0) % chunks
    value += batch_offset(batch, heads, value_batch, value_head)
    out += batch_offset(batch, heads, out_batch, out_head)
    top += batch * u
    entries = (tl.num_programs(0) // chunks).to(tl.int64) * splits * (u + 1)
    maxima = statistics + batch * splits * (u + 1)
    sums = maxima + entries
    parts += batch * splits * (u + 1) * value_width
    if number == 0:
        for first in range(0, u, BLOCK_U):
            places = first + tl.arange(0, BLOCK_U)
            largest = tl.full([BLOCK_U], float("-inf"), tl.float32)
            total = tl.zeros([BLOCK_U], tl.float32)
            for split in range(0, splits):
                part_largest = tl.load(maxima + split * (u + 1) + places, mask=places < u, other=0.0)
                part_total = tl.load(sums + split * (u + 1) + places, mask=places < u, other=1.0)
                larger = tl.maximum(largest, part_largest)
                base = tl.where(larger == float("-inf"), 0.0, larger)
                total = total * tl.exp2(largest - base) + part_total * tl.exp2(part_largest - base)
                largest = larger
            tl.store(lse + batch * u + places, (largest + tl.log2(total)) / _LOG2_E, mask=places < u)

    value_sums = parts + u * value_width  # the row after the selected ones, in every split
    stride = (u + 1) * value_width
    if FILL == "mean":
        before = sum_of_parts(value_sums, 0, splits, stride, value_width, BLOCK_V, 16) / keys
    else:
        before = sum_of_parts(value_sums, 0, tl.minimum(number, splits), stride, value_width, BLOCK_V, 16)
    end = tl.minimum((number + 1) * chunk, queries)
    for start in range(number * chunk, end, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        tile, before = _fill_tile(value, before, rows, keys, value_row, value_width, FILL, BLOCK_M, BLOCK_V)
        slots = slots_of(rows, top, u)
        if tl.max(slots) >= 0:
            _, total, weighted = _merge(
                parts, maxima, sums, slots, slots >= 0, splits, u, value_width, BLOCK_M, BLOCK_V
            )
            factor = dropout_factor / tl.where(slots >= 0, total, 1.0)
            tile = tl.where((slots >= 0)[:, None], weighted * factor[:, None], tile)
        store_rows(out, rows, rows < end, out_row, value_width, tile, BLOCK_V)
