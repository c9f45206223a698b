"""Parts of the Triton kernels of cutting planes: how a tile of A is read, and what happens to its columns.

A tile is (ROWS, COLUMNS) of one problem's A. In registers it is (ROWS, COLUMNS / WIDTH, WIDTH) float32, where WIDTH
neighbouring columns belong to one thread: 16 bytes of a row, or the 8 signs of a byte. With all lanes of a warp along
the columns, A^T s adds up rows inside a thread and only then over warps, and A x adds WIDTH products inside a thread.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from simmst.core.cutting_plane import BETA1, BETA2, EPS

_BETA1, _BETA2, _EPS = tl.constexpr(BETA1), tl.constexpr(BETA2), tl.constexpr(EPS)
_LOG2_BETA1, _LOG2_BETA2 = tl.constexpr(math.log2(BETA1)), tl.constexpr(math.log2(BETA2))
_SIGN = tl.constexpr(-(2**31))


@triton.jit
def load_stored(rows, present, start, columns, COLUMNS: tl.constexpr, PACKED: tl.constexpr, EVICTION: tl.constexpr):
    """Load a tile in its stored form: (ROWS, COLUMNS), or the bytes of packed signs (ROWS, COLUMNS / 8).

    `rows` are pointers to the first entries of ROWS rows, `present` says which of them exist, `start` is a column.
    """
    if PACKED:
        # The hint of contiguity 1 gives each lane one byte, and so each thread 8 columns.
        here = tl.max_contiguous(tl.arange(0, COLUMNS // 8), 1)
        inside = here * 8 < columns - start
        start = start // 8
    else:
        here = tl.arange(0, COLUMNS)
        inside = here < columns - start
    mask = present[:, None] & inside[None, :]
    zero = 0 if PACKED else 0.0
    return tl.load((rows + start)[:, None] + here[None, :], mask=mask, other=zero, eviction_policy=EVICTION)


@triton.jit
def widen(stored, one, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, PACKED: tl.constexpr):
    """Return the tile's entries in float32, (ROWS, COLUMNS / WIDTH, WIDTH); signs are +1 and -1, not yet scaled.

    `one` is 1.0, passed as an argument. If the compiler knew the number, every entry would need another instruction,
    because the three-input logic instruction takes only one constant.
    """
    if PACKED:
        bits = tl.reshape(stored, (ROWS, COLUMNS // 8, 1)).to(tl.int32)
        shifts = 31 - tl.arange(0, 8)
        unit = tl.full((1, 1, 1), one, tl.float32).to(tl.int32, bitcast=True)
        entries = (((bits << shifts[None, None, :]) & _SIGN) | unit).to(tl.float32, bitcast=True)
    else:
        entries = tl.reshape(stored, (ROWS, COLUMNS // WIDTH, WIDTH)).to(tl.float32)
    return entries


@triton.jit
def load_coefficients(coefficients, scale, present, row):
    """Load the coefficients at the offsets `row`: times scale in float32 (0 if unused), and whether they are not 0."""
    given = tl.load(coefficients + row, mask=present, other=0.0)
    used = given != 0
    weight = given.to(tl.float32)
    if scale is not None:
        weight = tl.where(used, weight * tl.load(scale + row, mask=present, other=0.0).to(tl.float32), 0.0)
    return weight, used


@triton.jit
def combine_rows(entries, weight, used, PACKED: tl.constexpr):
    """Return sum_l s_l a_l over the rows of a tile, (COLUMNS / WIDTH, WIDTH)."""
    if not PACKED:  # 0 * inf is NaN; signs are finite, and their scale is in the weight
        entries = tl.where(used[:, None, None], entries, 0.0)
    return tl.sum(entries * weight[:, None, None], axis=0)


@triton.jit
def adam_scalars(step, lr):
    """Return lr / (1 - beta1^t) and sqrt(1 - beta2^t) for t steps taken; the powers are in float64, as in torch."""
    taken = tl.load(step).to(tl.float64)
    first = 1.0 - tl.exp2(taken * _LOG2_BETA1)
    second = 1.0 - tl.exp2(taken * _LOG2_BETA2)
    return (lr / first).to(tl.float32), tl.sqrt(second).to(tl.float32)


@triton.jit
def update(point, direction, exp_avg, exp_avg_sq, step_size, second_root, inside):
    """Return the new point x - lr g, or Adam's if `exp_avg` and `exp_avg_sq` point to the tile's averages."""
    if exp_avg is None:
        updated = point.to(tl.float32) - step_size * direction
    else:
        first = tl.load(exp_avg, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(exp_avg_sq, mask=inside, other=0.0).to(tl.float32)
        first += (1 - _BETA1) * (direction - first)
        second = second * _BETA2 + (1 - _BETA2) * direction * direction
        tl.store(exp_avg, first.to(exp_avg.dtype.element_ty), mask=inside)
        tl.store(exp_avg_sq, second.to(exp_avg_sq.dtype.element_ty), mask=inside)
        updated = point.to(tl.float32) - step_size * first / (tl.sqrt(second) / second_root + _EPS)
    return updated.to(point.dtype)


@triton.jit
def distance(point, anchor):
    """Return x - x_0 in float32, computed in float64 if the anchor is float64."""
    if anchor.dtype == tl.float64:
        moved = (point.to(tl.float64) - anchor).to(tl.float32)
    else:
        moved = point.to(tl.float32) - anchor.to(tl.float32)
    return moved
