"""Fused spatial attention, backward: one program computes one whole map after another.

A program works on its map in phases with barriers between them, so that all threads of a phase can read what the phase
before wrote to the program's stage. Sums over maps go to the program's own partial sums, which `reduce_partials` adds
in the order of the programs: without atomics, and with the same bits in every run.
"""

from __future__ import annotations

import triton
import triton.language as tl

from simmst.kernels.spatial_attention_forward import project_into
from simmst.kernels.spatial_attention_tiles import (
    attend_again,
    complete,
    linear,
    linear_rows,
    load_tile,
    normalise_backward,
    score_gradient,
    store_tile,
)

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _accumulate(place, value, mask, is_first):
    """Add to a partial sum, which is still empty at the first map of a program."""
    before = tl.load(place, mask=mask & (is_first == 0), other=0.0)
    tl.store(place, before + value, mask=mask)


@triton.jit
def _accumulate_matrix(place, value, columns, column_mask, is_first, CHANNELS: tl.constexpr):
    offsets = columns[:, None] * CHANNELS + columns[None, :]
    _accumulate(place + offsets, value, column_mask[:, None] & column_mask[None, :], is_first)


@triton.jit
def _branch_gradients(
    grad_map, g_row, g_column, w_out, b_out, mask, is_empty, w_norm, lse, stage, sums, partials,
    positions, is_first, factor, eps,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, RESIDUAL: tl.constexpr, PRECISION: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write O, dY (the gradient before the LayerNorm) and dO to the stage, and lse (base 2) and delta to sums.

    delta = rowsum(dO * O). The partial sums of out_proj_bias, norm_weight and norm_bias are updated, too.
    """
    CHANNELS: tl.constexpr = HEADS * WIDTH
    section = positions * CHANNELS
    columns = tl.arange(0, BLOCK_C)
    column_mask = columns < CHANNELS
    channels = tl.arange(0, BLOCK_D)
    channel_mask = channels < WIDTH
    for start in tl.range(0, positions, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        row_mask = rows < positions
        branch = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
        for head in tl.range(0, HEADS):
            inputs = head * WIDTH + channels
            query = load_tile(stage + section, rows, inputs, CHANNELS, 1, row_mask, channel_mask)
            place = head * positions + rows
            heads, row_lse = attend_again(
                query, stage + 2 * section + head * WIDTH, stage + 3 * section + head * WIDTH, CHANNELS, mask,
                positions, channels, channel_mask, factor,
                tl.load(lse + place, mask=row_mask, other=float("inf")) * _LOG2_E, PRECISION, BLOCK_M, BLOCK_N, BLOCK_D,
            )  # fmt: skip
            tl.store(sums + place, row_lse, mask=row_mask)
            heads = heads.to(query.dtype)
            store_tile(stage + 4 * section, heads, rows, inputs, CHANNELS, 1, row_mask, channel_mask)
            if w_norm is not None:
                branch += linear(
                    heads, w_out, None, inputs, channel_mask, columns, column_mask, CHANNELS, PRECISION
                )  # fmt: skip
        grad = load_tile(grad_map, rows, columns, g_row, g_column, row_mask, column_mask).to(tl.float32)
        if w_norm is not None:
            x = load_tile(stage, rows, columns, CHANNELS, 1, row_mask, column_mask)
            y = complete(branch, x, b_out, is_empty, columns, column_mask, RESIDUAL)
            grad, tile_weight, tile_bias = normalise_backward(
                grad, y, w_norm, columns, row_mask, column_mask, CHANNELS, eps
            )
            if partials is not None:
                place = partials + (4 * CHANNELS + 4) * CHANNELS + columns
                _accumulate(place, tile_weight, column_mask, is_first & (start == 0))
                _accumulate(place + CHANNELS, tile_bias, column_mask, is_first & (start == 0))
        if partials is not None:
            tile_bias = tl.where(is_empty, 0.0, tl.sum(grad, 0))
            place = partials + (4 * CHANNELS + 3) * CHANNELS + columns
            _accumulate(place, tile_bias, column_mask, is_first & (start == 0))
        grad = grad.to(stage.dtype.element_ty)
        store_tile(stage + 5 * section, grad, rows, columns, CHANNELS, 1, row_mask, column_mask)
        tl.debug_barrier()  # all of this was written by other threads
        grad_heads = linear_rows(
            stage + 5 * section, rows, CHANNELS, 1, row_mask, w_out, None, columns, column_mask, CHANNELS, 1,
            CHANNELS, PRECISION, BLOCK_C, CHUNK, BLOCK_M, BLOCK_C,
        ).to(stage.dtype.element_ty)  # fmt: skip
        store_tile(stage + 6 * section, grad_heads, rows, columns, CHANNELS, 1, row_mask, column_mask)
        heads = load_tile(stage + 4 * section, rows, columns, CHANNELS, 1, row_mask, column_mask)
        product = grad_heads.to(tl.float32) * heads.to(tl.float32)
        for head in tl.range(0, HEADS):
            of_head = (columns // WIDTH == head) & column_mask
            row_delta = tl.sum(tl.where(of_head[None, :], product, 0.0), 1)
            tl.store(sums + (HEADS + head) * positions + rows, row_delta, mask=row_mask)


@triton.jit
def _packed_gradients(
    stage, grad_query, sums, mask, positions, factor, scale,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write dQ (unscaled, float32) to `grad_query`, and dK and dV over K and V; scores are computed once.

    A tile of keys goes through all queries and adds its share to their dQ, which stays in cache.
    """
    CHANNELS: tl.constexpr = HEADS * WIDTH
    section = positions * CHANNELS
    channels = tl.arange(0, BLOCK_D)
    channel_mask = channels < WIDTH
    for head in tl.range(0, HEADS):
        inputs = head * WIDTH + channels
        for start_n in tl.range(0, positions, BLOCK_N):
            keys = start_n + tl.arange(0, BLOCK_N)
            key_mask = keys < positions
            visible = key_mask
            if mask is not None:
                visible &= tl.load(mask + keys, mask=key_mask, other=1) == 0
            key = load_tile(stage + 2 * section, keys, inputs, CHANNELS, 1, visible, channel_mask)
            value = load_tile(stage + 3 * section, keys, inputs, CHANNELS, 1, visible, channel_mask)
            grad_key = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
            grad_value = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
            for start_m in tl.range(0, positions, BLOCK_M):
                rows = start_m + tl.arange(0, BLOCK_M)
                row_mask = rows < positions
                query = load_tile(stage + section, rows, inputs, CHANNELS, 1, row_mask, channel_mask)
                grad = load_tile(stage + 6 * section, rows, inputs, CHANNELS, 1, row_mask, channel_mask)
                place = head * positions + rows
                weights, grad_scores = score_gradient(
                    query, key, value, grad, tl.load(sums + place, mask=row_mask, other=float("inf")),
                    tl.load(sums + HEADS * positions + place, mask=row_mask, other=0.0), visible, factor, PRECISION,
                )  # fmt: skip
                grad_value = tl.dot(weights.to(grad.dtype), grad, grad_value, input_precision=PRECISION)
                grad_scores = grad_scores.to(query.dtype)
                grad_key = tl.dot(grad_scores, query, grad_key, input_precision=PRECISION)
                before = load_tile(grad_query, rows, inputs, CHANNELS, 1, row_mask & (start_n > 0), channel_mask)
                share = tl.dot(tl.trans(grad_scores), key, input_precision=PRECISION)
                store_tile(grad_query, before + share, rows, inputs, CHANNELS, 1, row_mask, channel_mask)
            tl.debug_barrier()  # every thread has read its keys and values, and the next tile reads dQ
            store_tile(stage + 2 * section, grad_key * scale, keys, inputs, CHANNELS, 1, key_mask, channel_mask)
            store_tile(stage + 3 * section, grad_value, keys, inputs, CHANNELS, 1, key_mask, channel_mask)


@triton.jit
def _packed_tile(
    stage, grad_query, which, rows, columns, row_mask, column_mask, section, scale, CHANNELS: tl.constexpr
):
    """Return a tile of dQ, dK or dV (which = 0, 1, 2), in the element type of the stage."""
    if which == 0:
        tile = load_tile(grad_query, rows, columns, CHANNELS, 1, row_mask, column_mask) * scale
    else:
        tile = load_tile(stage + (1 + which) * section, rows, columns, CHANNELS, 1, row_mask, column_mask)
    return tile.to(stage.dtype.element_ty)


@triton.jit
def _input_gradient(
    stage, grad_query, w_in, target, t_row, t_column, positions, scale,
    CHANNELS: tl.constexpr, RESIDUAL: tl.constexpr, PRECISION: tl.constexpr, BLOCK_C: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Store dX = [dQ dK dV] W_in, plus dY if there is a residual."""
    section = positions * CHANNELS
    columns = tl.arange(0, BLOCK_C)
    column_mask = columns < CHANNELS
    for start in tl.range(0, positions, BLOCK_M, num_stages=1):
        rows = start + tl.arange(0, BLOCK_M)
        row_mask = rows < positions
        result = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
        if RESIDUAL:
            result += load_tile(stage + 5 * section, rows, columns, CHANNELS, 1, row_mask, column_mask).to(tl.float32)
        for which in tl.static_range(3):
            for first in tl.range(0, BLOCK_C, CHUNK, num_stages=1):
                inputs = first + tl.arange(0, CHUNK)
                input_mask = inputs < CHANNELS
                part = _packed_tile(
                    stage, grad_query, which, rows, inputs, row_mask, input_mask, section, scale, CHANNELS
                )  # fmt: skip
                weight = load_tile(
                    w_in + which * CHANNELS * CHANNELS, inputs, columns, CHANNELS, 1, input_mask, column_mask
                )  # fmt: skip
                result = tl.dot(part, weight, result, input_precision=PRECISION)
        store_tile(target, result, rows, columns, t_row, t_column, row_mask, column_mask)


@triton.jit
def _weight_gradients(
    stage, grad_query, partial, positions, is_first, scale,
    CHANNELS: tl.constexpr, PRECISION: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Update the partial sums of in_proj_weight (3C, C), out_proj_weight (C, C), in_proj_bias (3C), in this order."""
    section = positions * CHANNELS
    columns = tl.arange(0, BLOCK_C)
    column_mask = columns < CHANNELS
    for which in tl.static_range(4):
        matrix = tl.zeros((BLOCK_C, BLOCK_C), tl.float32)
        bias = tl.zeros((BLOCK_C,), tl.float32)
        for start in tl.range(0, positions, BLOCK_N, num_stages=1):
            rows = start + tl.arange(0, BLOCK_N)
            row_mask = rows < positions
            if which < 3:
                left = _packed_tile(
                    stage, grad_query, which, rows, columns, row_mask, column_mask, section, scale, CHANNELS
                )  # fmt: skip
                right = load_tile(stage, rows, columns, CHANNELS, 1, row_mask, column_mask)
                bias += tl.sum(left.to(tl.float32), 0)
            else:
                left = load_tile(stage + 5 * section, rows, columns, CHANNELS, 1, row_mask, column_mask)
                right = load_tile(stage + 4 * section, rows, columns, CHANNELS, 1, row_mask, column_mask)
            matrix = tl.dot(tl.trans(left), right, matrix, input_precision=PRECISION)
        _accumulate_matrix(
            partial + which * CHANNELS * CHANNELS, matrix, columns, column_mask, is_first, CHANNELS
        )  # fmt: skip
        if which < 3:
            place = partial + (4 * CHANNELS + which) * CHANNELS + columns
            _accumulate(place, bias, column_mask, is_first)


@triton.jit
def fused_backward(
    grad, x, w_in, b_in, w_out, b_out, mask, empty, w_norm, lse, stage, grad_query, sums, partials, grad_x,
    maps, positions, g_map, g_row, g_column, x_map, x_row, x_column, t_row, t_column, factor, scale, eps,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, RESIDUAL: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of the maps program, program + programs, ...

    Each program has a stage (7, N, C), which holds X, Q, K or dK, V or dV, O, dY, dO, and in float32 grad_query (N, C),
    sums (2, heads, N) and one row of the partials that `reduce_partials` describes. grad_x or partials may be None.
    """
    CHANNELS: tl.constexpr = HEADS * WIDTH
    program = tl.program_id(0).to(tl.int64)
    section = positions * CHANNELS
    stage += program * 7 * section
    grad_query += program * section
    sums += program * 2 * HEADS * positions
    if partials is not None:
        partials += program * (4 * CHANNELS + 6) * CHANNELS
    for index in tl.range(program, maps, tl.num_programs(0)):
        is_first = index == program
        x_here = x + index * x_map
        lse_here = lse + index * HEADS * positions
        mask_here = mask + index * positions if mask is not None else mask
        is_empty = tl.load(empty + index) != 0 if mask is not None else False
        project_into(
            x_here, x_row, x_column, w_in, b_in, stage, positions, CHANNELS, PRECISION, BLOCK_C, CHUNK, BLOCK_N
        )  # fmt: skip
        tl.debug_barrier()
        _branch_gradients(
            grad + index * g_map, g_row, g_column, w_out, b_out, mask_here, is_empty, w_norm, lse_here, stage,
            sums, partials, positions, is_first, factor, eps,
            HEADS, WIDTH, RESIDUAL, PRECISION, BLOCK_C, BLOCK_D, CHUNK, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        tl.debug_barrier()
        _packed_gradients(
            stage, grad_query, sums, mask_here, positions, factor, scale,
            HEADS, WIDTH, PRECISION, BLOCK_D, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        tl.debug_barrier()
        if grad_x is not None:
            _input_gradient(
                stage, grad_query, w_in, grad_x + index * section, t_row, t_column, positions, scale,
                CHANNELS, RESIDUAL, PRECISION, BLOCK_C, CHUNK, BLOCK_M,
            )  # fmt: skip
        if partials is not None:
            _weight_gradients(
                stage, grad_query, partials, positions, is_first, scale, CHANNELS, PRECISION, BLOCK_C, BLOCK_N
            )  # fmt: skip
        tl.debug_barrier()  # the next map overwrites the stage


@triton.jit
def _reduce_section(partials, target, first, size, programs, stride, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    column_mask = columns < size
    total = tl.zeros((BLOCK_N,), tl.float32)
    for start in tl.range(0, programs, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        places = rows[:, None].to(tl.int64) * stride + (first + columns)[None, :]
        total += tl.sum(
            tl.load(partials + places, mask=(rows < programs)[:, None] & column_mask[None, :], other=0.0), 0
        )
    tl.store(target + columns, total.to(target.dtype.element_ty), mask=column_mask)


@triton.jit
def reduce_partials(
    partials, w_in, w_out, b_in, b_out, w_norm, b_norm, programs, channels,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Add partials (programs, (4C + 6) C) over the programs, in an order that depends only on shapes.

    A row holds the gradients of in_proj_weight (3C, C), out_proj_weight (C, C), in_proj_bias (3C), out_proj_bias (C),
    norm_weight (C) and norm_bias (C); the grid is (blocks of 3C * C, 6). An unwanted gradient is None.
    """
    which = tl.program_id(1)
    square = channels * channels
    stride = 4 * square + 6 * channels
    bias = 4 * square
    if w_in is not None:  # noqa: SIM102 one is known when compiling
        if which == 0:
            _reduce_section(partials, w_in, 0, 3 * square, programs, stride, BLOCK_M, BLOCK_N)
    if w_out is not None:  # noqa: SIM102 one is known when compiling
        if which == 1:
            _reduce_section(partials, w_out, 3 * square, square, programs, stride, BLOCK_M, BLOCK_N)
    if b_in is not None:  # noqa: SIM102 one is known when compiling
        if which == 2:
            _reduce_section(partials, b_in, bias, 3 * channels, programs, stride, BLOCK_M, BLOCK_N)
    if b_out is not None:  # noqa: SIM102 one is known when compiling
        if which == 3:
            _reduce_section(partials, b_out, bias + 3 * channels, channels, programs, stride, BLOCK_M, BLOCK_N)
    if w_norm is not None:  # noqa: SIM102 one is known when compiling
        if which == 4:
            _reduce_section(partials, w_norm, bias + 4 * channels, channels, programs, stride, BLOCK_M, BLOCK_N)
    if b_norm is not None:  # noqa: SIM102 one is known when compiling
        if which == 5:
            _reduce_section(partials, b_norm, bias + 5 * channels, channels, programs, stride, BLOCK_M, BLOCK_N)
