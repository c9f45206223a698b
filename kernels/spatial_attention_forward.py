"""Fused spatial attention, forward: one program computes one whole map after another."""

from __future__ import annotations

import triton
import triton.language as tl

from simmst.kernels.spatial_attention_tiles import (
    LN_2,
    attend,
    attend_step,
    finish,
    linear,
    linear_rows,
    load_tile,
    store_tile,
    visible_keys,
)


@triton.jit
def project_into(
    x_map, x_row, x_column, weight, bias, target, positions,
    CHANNELS: tl.constexpr, PRECISION: tl.constexpr, BLOCK_C: tl.constexpr, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write [X Q K V] of a map to target (4, N, C).

    In (C, N) order the elements of a map are read one by one; from target they are read by the cache line.
    """
    columns = tl.arange(0, BLOCK_C)
    column_mask = columns < CHANNELS
    for start in tl.range(0, positions, BLOCK_N, num_stages=1):
        rows = start + tl.arange(0, BLOCK_N)
        row_mask = rows < positions
        x = load_tile(x_map, rows, columns, x_row, x_column, row_mask, column_mask)
        store_tile(target, x, rows, columns, CHANNELS, 1, row_mask, column_mask)
        if CHUNK < BLOCK_C:
            tl.debug_barrier()  # the chunks are read by other threads
        for section in tl.static_range(3):
            outputs = section * CHANNELS + columns
            if CHUNK < BLOCK_C:
                part = linear_rows(
                    target, rows, CHANNELS, 1, row_mask, weight, bias, outputs, column_mask, 1, CHANNELS,
                    CHANNELS, PRECISION, BLOCK_C, CHUNK, BLOCK_N, BLOCK_C,
                )  # fmt: skip
            else:
                part = linear(x, weight, bias, columns, column_mask, outputs, column_mask, CHANNELS, PRECISION)
            place = target + (1 + section) * positions * CHANNELS
            store_tile(place, part, rows, columns, CHANNELS, 1, row_mask, column_mask)


@triton.jit
def _resident_head(
    x, w_in, b_in, visible, inputs, channel_mask, columns, column_mask, factor,
    CHANNELS: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Attend in one head of a map that is a single tile; its queries, keys and values never leave the chip."""
    query = linear(x, w_in, b_in, columns, column_mask, inputs, channel_mask, CHANNELS, PRECISION)
    key = linear(x, w_in, b_in, columns, column_mask, CHANNELS + inputs, channel_mask, CHANNELS, PRECISION)
    value = linear(x, w_in, b_in, columns, column_mask, 2 * CHANNELS + inputs, channel_mask, CHANNELS, PRECISION)
    value = tl.where(visible[:, None], value, 0.0)
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    heads = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    top, total, heads = attend_step(
        query.to(x.dtype), key.to(x.dtype), value.to(x.dtype), visible, factor, top, total, heads, PRECISION
    )
    return heads / total[:, None], top + tl.log2(total)


@triton.jit
def fused_forward(
    x, w_in, b_in, w_out, b_out, mask, empty, w_norm, b_norm, out, lse, stage,
    maps, positions, x_map, x_row, x_column, out_row, out_column, factor, eps,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, RESIDUAL: tl.constexpr, RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Compute the maps program, program + programs, ...; stage (programs, 4, N, C) holds [X Q K V] of the current map.

    If RESIDENT, a map is one tile, and stage is not used.
    """
    CHANNELS: tl.constexpr = HEADS * WIDTH
    program = tl.program_id(0).to(tl.int64)
    section = positions * CHANNELS
    if not RESIDENT:
        stage += program * 4 * section
    columns = tl.arange(0, BLOCK_C)
    column_mask = columns < CHANNELS
    channels = tl.arange(0, BLOCK_D)
    channel_mask = channels < WIDTH
    for index in tl.range(program, maps, tl.num_programs(0)):
        x_here = x + index * x_map
        mask_here = mask + index * positions if mask is not None else mask
        is_empty = tl.load(empty + index) != 0 if mask is not None else False
        if not RESIDENT:
            project_into(
                x_here, x_row, x_column, w_in, b_in, stage, positions,
                CHANNELS, PRECISION, BLOCK_C, CHUNK, BLOCK_N,
            )  # fmt: skip
            tl.debug_barrier()  # other threads of the program read what this one wrote
        for start in tl.range(0, positions, BLOCK_M):
            rows = start + tl.arange(0, BLOCK_M)
            row_mask = rows < positions
            if RESIDENT:
                tokens = load_tile(x_here, rows, columns, x_row, x_column, row_mask, column_mask)
                visible = visible_keys(mask_here, rows, positions)
            branch = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
            for head in tl.range(0, HEADS):
                first = head * WIDTH
                inputs = first + channels
                if RESIDENT:
                    heads, row_lse = _resident_head(
                        tokens, w_in, b_in, visible, inputs, channel_mask, columns, column_mask, factor,
                        CHANNELS, PRECISION, BLOCK_M, BLOCK_D,
                    )  # fmt: skip
                else:
                    query = load_tile(stage + section, rows, inputs, CHANNELS, 1, row_mask, channel_mask)
                    heads, row_lse = attend(
                        query, stage + 2 * section + first, stage + 3 * section + first, CHANNELS, mask_here, positions,
                        channels, channel_mask, factor, PRECISION, BLOCK_M, BLOCK_N, BLOCK_D,
                    )  # fmt: skip
                row_lse = tl.where(is_empty, float("inf"), row_lse * LN_2)
                tl.store(lse + (index * HEADS + head) * positions + rows, row_lse, mask=row_mask)
                branch += linear(
                    heads.to(x.dtype.element_ty),
                    w_out,
                    None,
                    inputs,
                    channel_mask,
                    columns,
                    column_mask,
                    CHANNELS,
                    PRECISION,
                )
            if RESIDENT:  # loaded again, because in registers across the heads it would crowd out the scores
                tokens = load_tile(x_here, rows, columns, x_row, x_column, row_mask, column_mask)
            else:
                tokens = load_tile(stage, rows, columns, CHANNELS, 1, row_mask, column_mask)
            result = finish(
                branch, tokens, b_out, w_norm, b_norm, is_empty, columns, column_mask, CHANNELS, eps, RESIDUAL
            )
            place = out + index * section
            store_tile(place, result, rows, columns, out_row, out_column, row_mask, column_mask)
        if not RESIDENT:
            tl.debug_barrier()  # the next map overwrites the keys
