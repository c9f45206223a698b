"""The Triton kernels of cutting planes: one pass over A, the same pass for tall A, and the final sums.

A program takes every `workers`-th tile of columns of one problem, so that programs that run at the same time read
neighbouring memory. It writes its sums of A x to `partials` (P, workers, L), which `finish` adds up in a fixed order.
All offsets are 64-bit.

An argument that is None switches a part off:
    coefficients (P, L)      the first product, A^T s; packed signs need their `scale` (P, L), too
    out (P, N)               the store of A^T s
    gradient                 the update: point <- point - lr (gradient + A^T s) in place, or Adam's with `exp_avg`
    partials                 the second product, A (point - anchor), or A point without anchor
"""

from __future__ import annotations

import triton
import triton.language as tl

from simmst.kernels.cutting_plane_tiles import (
    adam_scalars,
    combine_rows,
    distance,
    load_coefficients,
    load_stored,
    update,
    widen,
)


@triton.jit
def _columns(
    total, out, gradient, point, anchor, exp_avg, exp_avg_sq, step_size, second_root, start, columns,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Process a tile's columns between the products, given A^T s (COLUMNS,), and return the vector that A multiplies.

    The pointers are those of the problem. The result is 0 if there is no second product.
    """
    here = tl.arange(0, COLUMNS)
    inside = here < columns - start
    if out is not None:
        tl.store(out + start + here, total.to(out.dtype.element_ty), mask=inside)
    moved = 0.0
    if point is not None:
        at = tl.load(point + start + here, mask=inside, other=0.0)
        if gradient is not None:
            direction = total + tl.load(gradient + start + here, mask=inside, other=0.0).to(tl.float32)
            first = exp_avg + start + here if exp_avg is not None else None
            second = exp_avg_sq + start + here if exp_avg_sq is not None else None
            at = update(at, direction, first, second, step_size, second_root, inside)
            tl.store(point + start + here, at, mask=inside)
        if anchor is not None:
            moved = distance(at, tl.load(anchor + start + here, mask=inside, other=0.0))
        else:
            moved = at.to(tl.float32)
        moved = tl.where(inside, moved, 0.0)  # Adam moves even a zero past the end
    return moved


@triton.jit(do_not_specialize=["blocks", "workers"])
def one_pass(
    planes, planes_problem: tl.int64, planes_row: tl.int64,
    scale, coefficients,
    out,
    gradient, gradient_problem: tl.int64,
    point, point_problem: tl.int64,
    anchor, anchor_problem: tl.int64,
    exp_avg, exp_avg_problem: tl.int64,
    exp_avg_sq, exp_avg_sq_problem: tl.int64,
    step, lr, one,
    partials,
    rows: tl.int64, columns: tl.int64, blocks, workers,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr,
    PROGRAMS: tl.constexpr, PACKED: tl.constexpr, EVICTION: tl.constexpr,
):  # fmt: skip
    """Compute both products and the update between them; a tile of A stays in registers, so A is read once.

    One program is (problem, block of ROWS rows, worker). There is more than one block of rows only without the first
    product. Only the launcher uses PROGRAMS.
    """
    worker = (tl.program_id(0) % workers).to(tl.int64)
    block = (tl.program_id(0) // workers % blocks).to(tl.int64)
    problem = (tl.program_id(0) // workers // blocks).to(tl.int64)
    row = block * ROWS + tl.arange(0, ROWS)
    present = row < rows
    first_entries = planes + problem * planes_problem + row * planes_row
    if coefficients is not None:
        weight, used = load_coefficients(coefficients, scale, present, problem * rows + row)
    step_size, second_root = lr, 1.0
    if exp_avg is not None:
        step_size, second_root = adam_scalars(step, lr)
    sums = tl.zeros((ROWS, COLUMNS // WIDTH), tl.float32)
    stride = workers * COLUMNS
    following = 0
    if PACKED:  # bytes are too narrow for asynchronous copies, so those of the next tile wait in registers
        following = load_stored(first_entries, present, worker * COLUMNS, columns, COLUMNS, PACKED, EVICTION)
    for tile in tl.range(worker, tl.cdiv(columns, COLUMNS), workers, num_stages=STAGES):
        start = tile * COLUMNS
        if PACKED:
            stored = following
            following = load_stored(first_entries, present, start + stride, columns, COLUMNS, PACKED, EVICTION)
        else:
            stored = load_stored(first_entries, present, start, columns, COLUMNS, PACKED, EVICTION)
        entries = widen(stored, one, ROWS, COLUMNS, WIDTH, PACKED)
        total = 0.0
        if coefficients is not None:
            total = tl.reshape(combine_rows(entries, weight, used, PACKED), (COLUMNS,))
        moved = _columns(
            total,
            out + problem * columns if out is not None else None,
            gradient + problem * gradient_problem if gradient is not None else None,
            point + problem * point_problem if point is not None else None,
            anchor + problem * anchor_problem if anchor is not None else None,
            exp_avg + problem * exp_avg_problem if exp_avg is not None else None,
            exp_avg_sq + problem * exp_avg_sq_problem if exp_avg_sq is not None else None,
            step_size, second_root, start, columns, COLUMNS,
        )  # fmt: skip
        if partials is not None:
            sums += tl.sum(entries * tl.reshape(moved, (COLUMNS // WIDTH, WIDTH))[None, :, :], axis=2)
    if partials is not None:
        target = partials + (problem * workers + worker) * rows + row
        tl.store(target, tl.sum(sums, axis=1), mask=present)


@triton.jit(do_not_specialize=["workers"])
def tall_pass(
    planes, planes_problem: tl.int64, planes_row: tl.int64,
    scale, coefficients,
    out,
    gradient, gradient_problem: tl.int64,
    point, point_problem: tl.int64,
    anchor, anchor_problem: tl.int64,
    exp_avg, exp_avg_problem: tl.int64,
    exp_avg_sq, exp_avg_sq_problem: tl.int64,
    step, lr, one,
    partials,
    rows: tl.int64, columns: tl.int64, workers,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr,
    PROGRAMS: tl.constexpr, PACKED: tl.constexpr, EVICTION: tl.constexpr,
):  # fmt: skip
    """Do what `one_pass` does where more than ROWS rows have coefficients: a tile of columns takes its rows in blocks.

    The second product reads the tile again, last block first, while it is still in the caches: rows * COLUMNS entries
    for each running program. The sums are kept in the program's own part of `partials`.
    """
    worker = (tl.program_id(0) % workers).to(tl.int64)
    problem = (tl.program_id(0) // workers).to(tl.int64)
    in_block = tl.arange(0, ROWS)
    blocks = tl.cdiv(rows, ROWS)
    base = planes + problem * planes_problem
    step_size, second_root = lr, 1.0
    if exp_avg is not None:
        step_size, second_root = adam_scalars(step, lr)
    own = partials
    if partials is not None:
        own = partials + (problem * workers + worker) * rows
        for block in tl.range(0, blocks):
            row = block * ROWS + in_block
            tl.store(own + row, tl.zeros((ROWS,), tl.float32), mask=row < rows)
    for tile in tl.range(worker, tl.cdiv(columns, COLUMNS), workers):
        start = tile * COLUMNS
        total = tl.zeros((COLUMNS // WIDTH, WIDTH), tl.float32)
        for block in tl.range(0, blocks, num_stages=STAGES):
            row = block * ROWS + in_block
            present = row < rows
            weight, used = load_coefficients(coefficients, scale, present, problem * rows + row)
            stored = load_stored(base + row * planes_row, present, start, columns, COLUMNS, PACKED, EVICTION)
            total += combine_rows(widen(stored, one, ROWS, COLUMNS, WIDTH, PACKED), weight, used, PACKED)
        moved = _columns(
            tl.reshape(total, (COLUMNS,)),
            out + problem * columns if out is not None else None,
            gradient + problem * gradient_problem if gradient is not None else None,
            point + problem * point_problem if point is not None else None,
            anchor + problem * anchor_problem if anchor is not None else None,
            exp_avg + problem * exp_avg_problem if exp_avg is not None else None,
            exp_avg_sq + problem * exp_avg_sq_problem if exp_avg_sq is not None else None,
            step_size, second_root, start, columns, COLUMNS,
        )  # fmt: skip
        if partials is not None:
            tl.debug_barrier()  # several threads may hold a sum, and only one of them has written it
            vector = tl.reshape(moved, (COLUMNS // WIDTH, WIDTH))[None, :, :]
            for back in tl.range(0, blocks):
                row = (blocks - 1 - back) * ROWS + in_block
                present = row < rows
                stored = load_stored(base + row * planes_row, present, start, columns, COLUMNS, PACKED, EVICTION)
                product = tl.sum(widen(stored, one, ROWS, COLUMNS, WIDTH, PACKED) * vector, axis=2)
                before = tl.load(own + row, mask=present, other=0.0)
                tl.store(own + row, before + tl.sum(product, axis=1), mask=present)


@triton.jit(do_not_specialize=["blocks", "workers"])
def finish(
    partials, scale, offsets, multipliers,
    values, total, slopes,
    rows: tl.int64, blocks, workers,
    PENALTY: tl.constexpr, ROWS: tl.constexpr, WORKERS: tl.constexpr,
):  # fmt: skip
    """Add up partials (P, workers, L): values = offsets + scale * sum; `total` is their penalty or Lagrangian.

    Sums are taken in float64. One program is (problem, block of rows), or a whole problem if there is a total. `slopes`
    (P, L) receives d penalty / d values.
    """
    problem = (tl.program_id(0) // blocks).to(tl.int64)
    low = (tl.program_id(0) % blocks).to(tl.int64) * ROWS
    high = tl.minimum(low + ROWS, rows)
    if total is not None:
        high = rows
    result = tl.zeros((ROWS,), tl.float64)
    for block in tl.range(low, high, ROWS):
        row = block + tl.arange(0, ROWS)
        present = row < rows
        sums = tl.zeros((ROWS,), tl.float64)
        for first in tl.range(0, workers, WORKERS):
            worker = first + tl.arange(0, WORKERS)
            place = (problem * workers + worker)[:, None] * rows + row[None, :]
            mask = (worker < workers)[:, None] & present[None, :]
            sums += tl.sum(tl.load(partials + place, mask=mask, other=0.0).to(tl.float64), axis=0)
        here = problem * rows + row
        if scale is not None:
            sums *= tl.load(scale + here, mask=present, other=0.0).to(tl.float64)
        value = sums + tl.load(offsets + here, mask=present, other=0.0).to(tl.float64)
        tl.store(values + here, value.to(values.dtype.element_ty), mask=present)
        if total is not None:
            multiplier = tl.load(multipliers + here, mask=present, other=0.0).to(tl.float64)
            if PENALTY:
                excess = tl.where(value < 0, 0.0, value)  # NaN stays
                term = multiplier * excess * excess
                if slopes is not None:
                    tl.store(slopes + here, (2 * multiplier * excess).to(slopes.dtype.element_ty), mask=present)
            else:
                term = multiplier * value
            result += tl.where(present, term, 0.0)
    if total is not None:
        tl.store(total + problem, tl.sum(result, axis=0).to(total.dtype.element_ty))
