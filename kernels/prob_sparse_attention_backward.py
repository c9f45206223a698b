"""Gradients of the attention in the selected rows and of the fill in all others, without atomics.

A program of `_gradients` owns a chunk of keys: it reads each tile of K and V once, recomputes the weights from lse and
writes that tile's dK and dV. Only the selected rows have a dQ. If one tile holds all of them (u <= BLOCK_U), the
program's share of dQ stays on chip; otherwise it is kept in the program's own workspace. If one program takes all keys
(WHOLE), it writes dQ itself; otherwise `_combine_query` adds the shares in a fixed order and writes the zeros of the
other rows.

Through the fill, every value gets a gradient from the unselected rows: their sum for the mean, or the sum of the rows
at and after the value for a running fill. `_sum_chunks` sums the rows of each chunk. A running fill goes through the
tiles of a chunk from last to first and reads the gradient of the output a second time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from simmst.kernels.prob_sparse_attention_forward import (
    batch_offset,
    kept_weights,
    load_rows,
    slots_of,
    store_rows,
    sum_of_parts,
    visible_keys,
)

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _fill_gradient_rows(
    grad_out, top, rows, queries, keys, u, out_row, value_width,
    FILL: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Return the gradient that some rows pass to the values of their fill, [rows, V]: zero for selected rows."""
    unselected = (rows < queries) & (slots_of(rows, top, u) < 0)
    tile = load_rows(grad_out, rows, unselected, out_row, value_width, BLOCK_V).to(tl.float32)
    if FILL == "cummean":
        tile = tile / visible_keys(rows, keys)[:, None]
    return tile


@triton.jit
def _sum_rows(
    grad_out, top, begin, end, queries, keys, u, out_row, value_width,
    FILL: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Return the sum of `_fill_gradient_rows` over the rows begin, ..., end - 1, [V]."""
    total = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    for start in range(begin, end, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        rows = tl.where(rows < end, rows, queries)
        total += _fill_gradient_rows(grad_out, top, rows, queries, keys, u, out_row, value_width, FILL, BLOCK_V)
    return tl.sum(total, 0)


_COUNTS = ["heads", "queries", "keys", "u", "keep", "chunk", "splits", "chunks"]


@triton.jit(do_not_specialize=_COUNTS)
def _sum_chunks(
    grad_out, top, sums, heads, queries, keys, u, value_width, out_batch, out_head, out_row, chunk,
    FILL: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Sum a chunk of rows of one batch entry into sums: float32 (B, chunks, V)."""
    chunks = tl.cdiv(queries, chunk)
    batch = tl.program_id(0) // chunks
    begin = (tl.program_id(0) % chunks) * chunk
    grad_out += batch_offset(batch, heads, out_batch, out_head)
    top += batch.to(tl.int64) * u
    total = _sum_rows(
        grad_out, top, begin, tl.minimum(begin + chunk, queries), queries, keys, u, out_row, value_width,
        FILL, BLOCK_V, BLOCK_M,
    )  # fmt: skip
    columns = tl.arange(0, BLOCK_V)
    sums += tl.program_id(0).to(tl.int64) * value_width
    tl.store(sums + columns, total, mask=columns < value_width)


@triton.jit
def _selected_tile(
    query, grad_out, out, top, lse, places, queries, u, width, value_width, query_row, grad_out_row, out_row,
    BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Load a tile of selected rows: row, query [U, D], gradient [U, V], lse of base 2, rowsum(dO O)."""
    rows = tl.load(top + places, mask=places < u, other=-1)
    inside = (rows >= 0) & (rows < queries)
    rows = rows.to(tl.int32)
    selected = load_rows(query, rows, inside, query_row, width, BLOCK_D)
    grad = load_rows(grad_out, rows, inside, grad_out_row, value_width, BLOCK_V)
    result = load_rows(out, rows, inside, out_row, value_width, BLOCK_V)
    delta = tl.sum(grad.to(tl.float32) * result.to(tl.float32), 1)
    base = tl.load(lse + places, mask=inside, other=float("inf")) * _LOG2_E  # absent rows get weight 0
    return rows, selected, grad, base, delta


@triton.jit
def _tile_gradients(
    selected, grad, base, delta, rows, key_tile, value_tile, columns, present, grad_key, grad_value,
    seed, batch, start, scale, keep, dropout_factor,
    CAUSAL: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_U: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Add a tile of selected rows to a tile's dK [N, D] and dV [N, V]; return the scores' gradient [U, N], too."""
    scores = tl.dot(selected, tl.trans(key_tile), input_precision=PRECISION) * (scale * _LOG2_E)
    visible = present[None, :]
    if CAUSAL:
        visible = visible & (columns[None, :] <= rows[:, None])
    weights = tl.where(visible, tl.exp2(scores - base[:, None]), 0.0)
    grad_weights = tl.dot(grad, tl.trans(value_tile), input_precision=PRECISION)
    kept = weights
    if DROPOUT:
        survives = kept_weights(seed, batch, rows, start, keep, BLOCK_U, BLOCK_N)
        kept = tl.where(survives, weights * dropout_factor, 0.0)
        grad_weights = tl.where(survives, grad_weights * dropout_factor, 0.0)
    grad_value = tl.dot(tl.trans(kept.to(grad.dtype)), grad, grad_value, input_precision=PRECISION)
    grad_scores = (weights * (grad_weights - delta[:, None]) * scale).to(selected.dtype)
    grad_key = tl.dot(tl.trans(grad_scores), selected, grad_key, input_precision=PRECISION)
    return grad_scores, grad_key, grad_value


@triton.jit(do_not_specialize=_COUNTS)
def _gradients(
    grad_out, query, key, value, top, out, lse, seed, sums, grad_query, grad_key, grad_value, parts,
    heads, queries, keys, u, width, value_width,
    query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row,
    out_batch, out_head, out_row, grad_out_batch, grad_out_head, grad_out_row,
    grad_query_batch, grad_query_head, grad_query_row, grad_key_batch, grad_key_head, grad_key_row,
    grad_value_batch, grad_value_head, grad_value_row,
    scale, keep, dropout_factor, chunk, splits, chunks,
    WHOLE: tl.constexpr, ONE_TILE: tl.constexpr, CAUSAL: tl.constexpr, FILL: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_U: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Compute dK and dV of one chunk of keys of one batch entry, and its share of dQ; all of dQ if WHOLE.

    sums: float32 (B, chunks, V) from `_sum_chunks`; parts: float32 (B, splits, u, D). Both are None if WHOLE.
    """
    batch = (tl.program_id(0) // splits).to(tl.int64)
    split = tl.program_id(0) % splits
    query += batch_offset(batch, heads, query_batch, query_head)
    key += batch_offset(batch, heads, key_batch, key_head)
    value += batch_offset(batch, heads, value_batch, value_head)
    out += batch_offset(batch, heads, out_batch, out_head)
    grad_out += batch_offset(batch, heads, grad_out_batch, grad_out_head)
    grad_key += batch_offset(batch, heads, grad_key_batch, grad_key_head)
    grad_value += batch_offset(batch, heads, grad_value_batch, grad_value_head)
    top += batch * u
    lse += batch * u
    begin = split * chunk
    end = tl.minimum(begin + chunk, keys)
    tiles = tl.cdiv(end - begin, BLOCK_N)

    # The gradient through the fill to every value (mean), or to this chunk's values from the rows after its keys, [V].
    if not WHOLE:
        sums += batch * chunks * value_width
        parts += tl.program_id(0).to(tl.int64) * u * width
    if FILL == "mean" and not WHOLE:
        after = sum_of_parts(sums, 0, chunks, value_width, value_width, BLOCK_V, 16)
    else:
        first = 0
        if FILL != "mean":
            first = begin + tiles * BLOCK_N
        after = _sum_rows(
            grad_out, top, first, tl.minimum(begin + chunk, queries), queries, keys, u, grad_out_row, value_width,
            FILL, BLOCK_V, BLOCK_N,
        )  # fmt: skip
        if not WHOLE:
            after += sum_of_parts(sums, split + 1, chunks, value_width, value_width, BLOCK_V, 16)
    if FILL == "mean":
        after = after / keys

    places = tl.arange(0, BLOCK_U)
    rows, selected, grad, base, delta = _selected_tile(
        query, grad_out, out, top, lse, places, queries, u, width, value_width, query_row, grad_out_row, out_row,
        BLOCK_D, BLOCK_V,
    )  # fmt: skip
    share = tl.zeros([BLOCK_U, BLOCK_D], tl.float32)
    for step in range(0, tiles):
        start = begin + (tiles - 1 - step) * BLOCK_N
        columns = start + tl.arange(0, BLOCK_N)
        present = columns < end
        key_tile = load_rows(key, columns, present, key_row, width, BLOCK_D)  # [N, D]
        value_tile = load_rows(value, columns, present, value_row, value_width, BLOCK_V)  # [N, V]
        tile_grad_key = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        tile_grad_value = tl.zeros([BLOCK_N, BLOCK_V], tl.float32) + after[None, :]
        if FILL != "mean":
            handed = _fill_gradient_rows(
                grad_out, top, columns, queries, keys, u, grad_out_row, value_width, FILL, BLOCK_V
            )
            tile_grad_value += tl.cumsum(handed, 0, reverse=True)
            after += tl.sum(handed, 0)
        if ONE_TILE:
            grad_scores, tile_grad_key, tile_grad_value = _tile_gradients(
                selected, grad, base, delta, rows, key_tile, value_tile, columns, present,
                tile_grad_key, tile_grad_value, seed, batch, start, scale, keep, dropout_factor,
                CAUSAL, DROPOUT, PRECISION, BLOCK_U, BLOCK_N,
            )  # fmt: skip
            share = tl.dot(grad_scores, key_tile, share, input_precision=PRECISION)
        else:
            for first_place in range(0, u, BLOCK_U):
                places = first_place + tl.arange(0, BLOCK_U)
                rows, selected, grad, base, delta = _selected_tile(
                    query, grad_out, out, top, lse, places, queries, u, width, value_width,
                    query_row, grad_out_row, out_row, BLOCK_D, BLOCK_V,
                )  # fmt: skip
                grad_scores, tile_grad_key, tile_grad_value = _tile_gradients(
                    selected, grad, base, delta, rows, key_tile, value_tile, columns, present,
                    tile_grad_key, tile_grad_value, seed, batch, start, scale, keep, dropout_factor,
                    CAUSAL, DROPOUT, PRECISION, BLOCK_U, BLOCK_N,
                )  # fmt: skip
                earlier = load_rows(parts, places, (places < u) & (step > 0), width, width, BLOCK_D)
                later = tl.dot(grad_scores, key_tile, earlier, input_precision=PRECISION)
                tl.debug_barrier()  # other threads may still read what this store overwrites
                store_rows(parts, places, places < u, width, width, later, BLOCK_D)
                tl.debug_barrier()
        store_rows(grad_key, columns, present, grad_key_row, width, tile_grad_key, BLOCK_D)
        store_rows(grad_value, columns, present, grad_value_row, value_width, tile_grad_value, BLOCK_V)

    if WHOLE:
        grad_query += batch_offset(batch, heads, grad_query_batch, grad_query_head)
        zeros = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        for start in range(0, queries, BLOCK_N):
            others = start + tl.arange(0, BLOCK_N)
            unselected = (others < queries) & (slots_of(others, top, u) < 0)
            store_rows(grad_query, others, unselected, grad_query_row, width, zeros, BLOCK_D)
        inside = (rows >= 0) & (rows < queries)
        store_rows(grad_query, rows, inside, grad_query_row, width, share, BLOCK_D)
    elif ONE_TILE:
        store_rows(parts, places, places < u, width, width, share, BLOCK_D)


@triton.jit(do_not_specialize=_COUNTS)
def _combine_query(
    top, parts, grad_query, heads, queries, u, width, grad_query_batch, grad_query_head, grad_query_row, splits,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Write BLOCK_M rows of dQ of one batch entry."""
    tiles = tl.cdiv(queries, BLOCK_M)
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    rows = (tl.program_id(0) % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    grad_query += batch_offset(batch, heads, grad_query_batch, grad_query_head)
    parts += batch * splits * u * width
    slots = slots_of(rows, top + batch * u, u)
    total = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if tl.max(slots) >= 0:
        for split in range(0, splits):
            total += load_rows(parts, split * u + slots, slots >= 0, width, width, BLOCK_D)
    store_rows(grad_query, rows, rows < queries, grad_query_row, width, total, BLOCK_D)
