"""Selection: the sparsity measure of every query, and the rows with the largest measure.

Measure with shared samples: a program gathers the sampled keys once and reads the queries once, for a narrow matrix
product; maximum and sum stay in registers. Measure with per-query samples: rows of K are gathered from cache as
[rows, samples, D] tiles, and nothing of that size is ever written.

Top: the u-th largest measure is found by bisection over its bits, mapped to integers of the same order. A prefix sum
counts the ties at the threshold, lower indices first, and also gives each selected row its place. The result is exact,
deterministic and ascending without a sort. A row of measures that fits into one block stays in registers throughout.
"""

from __future__ import annotations

import triton
import triton.language as tl

from simmst.kernels.prob_sparse_attention_forward import batch_offset, load_rows


@triton.jit
def _measure_shared(
    query, key, sample, rows, queries, keys, samples, width, query_row, key_row, divisor,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    tile = load_rows(query, rows, rows < queries, query_row, width, BLOCK_D)  # [M, D]
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, samples, BLOCK_S):
        places = start + tl.arange(0, BLOCK_S)
        drawn = places < samples
        index = tl.load(sample + places, mask=drawn, other=-1)
        inside = (index >= 0) & (index < keys)
        sampled = load_rows(key, index, inside, key_row, width, BLOCK_D)  # [S, D]
        scores = tl.dot(tile, tl.trans(sampled), input_precision=PRECISION)  # [M, S]
        # An index out of range must show in the result, and must not read other memory.
        scores = tl.where(inside[None, :], scores, float("nan"))
        largest = tl.maximum(largest, tl.max(tl.where(drawn[None, :], scores, float("-inf")), 1))
        total += tl.sum(tl.where(drawn[None, :], scores, 0.0), 1)
    return largest - total / divisor


@triton.jit
def _measure_per_query(
    query, key, sample, rows, queries, keys, samples, width, query_row, key_row, divisor,
    BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    there = rows < queries
    tile = load_rows(query, rows, there, query_row, width, BLOCK_D).to(tl.float32)  # [M, D]
    columns = tl.arange(0, BLOCK_D)
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, samples, BLOCK_S):
        places = start + tl.arange(0, BLOCK_S)
        drawn = there[:, None] & (places < samples)[None, :]  # [M, S]
        where = rows.to(tl.int64)[:, None] * samples + places[None, :]
        index = tl.load(sample + where, mask=drawn, other=-1)
        inside = (index >= 0) & (index < keys)
        mask = inside[:, :, None] & (columns < width)[None, None, :]
        sampled = tl.load(key + index[:, :, None] * key_row + columns[None, None, :], mask=mask, other=0.0)
        scores = tl.sum(sampled.to(tl.float32) * tile[:, None, :], 2)  # [M, S]
        scores = tl.where(inside, scores, float("nan"))
        largest = tl.maximum(largest, tl.max(tl.where(drawn, scores, float("-inf")), 1))
        total += tl.sum(tl.where(drawn, scores, 0.0), 1)
    return largest - total / divisor


@triton.jit
def _measure_rows(
    query, key, sample, rows, queries, keys, samples, width, query_row, key_row, divisor,
    PER_QUERY: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    if PER_QUERY:
        measure = _measure_per_query(
            query, key, sample, rows, queries, keys, samples, width, query_row, key_row, divisor,
            BLOCK_M, BLOCK_S, BLOCK_D,
        )  # fmt: skip
    else:
        measure = _measure_shared(
            query, key, sample, rows, queries, keys, samples, width, query_row, key_row, divisor,
            PRECISION, BLOCK_M, BLOCK_S, BLOCK_D,
        )  # fmt: skip
    return measure


@triton.jit
def _ordered(measure, rows, queries):
    """Return the measures of some rows as int32 in the same order: NaN largest, -0.0 as 0.0, absent rows smallest."""
    value = tl.load(measure + rows, mask=rows < queries, other=0.0)
    bits = tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True)
    order = tl.where(value != value, 0x7FFFFFFF, bits ^ ((bits >> 31) & 0x7FFFFFFF))
    return tl.where(rows < queries, order, -0x80000000)


@triton.jit
def _count(measure, order, bound, queries, BLOCK: tl.constexpr, IN_REGISTERS: tl.constexpr):
    """Return how many measures are at least `bound`."""
    if IN_REGISTERS:
        count = tl.sum((order >= bound).to(tl.int32))
    else:
        counts = tl.zeros([BLOCK], tl.int32)
        for start in range(0, queries, BLOCK):
            counts += (_ordered(measure, start + tl.arange(0, BLOCK), queries) >= bound).to(tl.int32)
        count = tl.sum(counts)
    return count


@triton.jit
def _select_rows(measure, top, queries, u, BLOCK: tl.constexpr, IN_REGISTERS: tl.constexpr):
    """Write the u rows with the largest measure of one batch entry, ascending; ties go to the lower index."""
    order = _ordered(measure, tl.arange(0, BLOCK), queries)
    # Find the largest bound that u measures reach, bit by bit from the sign down.
    bound = tl.where(_count(measure, order, 0, queries, BLOCK, IN_REGISTERS) >= u, 0, -0x80000000)
    for step in range(31):
        candidate = bound + (1 << (30 - step))
        reached = _count(measure, order, candidate, queries, BLOCK, IN_REGISTERS) >= u
        bound = tl.where(reached, candidate, bound)
    above = tl.zeros([1], tl.int32)
    if IN_REGISTERS:
        above += tl.sum((order > bound).to(tl.int32))
    elif bound < 0x7FFFFFFF:
        above += _count(measure, order, bound + 1, queries, BLOCK, IN_REGISTERS)
    ties_wanted = (u - above).to(tl.int64)
    before = tl.zeros([1], tl.int64)  # rows above the bound in the upper half, ties in the lower
    for start in range(0, queries, BLOCK // 4):  # smaller blocks, because the scan takes many registers
        rows = start + tl.arange(0, BLOCK // 4)
        part = _ordered(measure, rows, queries)
        is_above, is_tie = part > bound, (part == bound) & (rows < queries)
        marks = (is_above.to(tl.int64) << 32) + is_tie.to(tl.int64)
        running = before + tl.cumsum(marks, 0)
        ties = running & 0xFFFFFFFF
        place = (running >> 32) + tl.minimum(ties, ties_wanted) - 1
        tl.store(top + place, rows.to(tl.int64), mask=is_above | (is_tie & (ties <= ties_wanted)))
        before += tl.sum(marks)


_COUNTS = ["heads", "queries", "keys", "samples", "u"]


@triton.jit(do_not_specialize=_COUNTS)
def _measure(
    query, key, sample, measure, heads, queries, keys, samples, width,
    query_batch, query_head, query_row, key_batch, key_head, key_row, divisor,
    PER_QUERY: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Measure BLOCK_M rows. The row tiles of one batch entry are neighbours, so that its keys stay in cache."""
    tiles = tl.cdiv(queries, BLOCK_M)
    batch = tl.program_id(0) // tiles
    rows = (tl.program_id(0) % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    query += batch_offset(batch, heads, query_batch, query_head)
    key += batch_offset(batch, heads, key_batch, key_head)
    found = _measure_rows(
        query, key, sample, rows, queries, keys, samples, width, query_row, key_row, divisor,
        PER_QUERY, PRECISION, BLOCK_M, BLOCK_S, BLOCK_D,
    )  # fmt: skip
    tl.store(measure + batch.to(tl.int64) * queries + rows, found, mask=rows < queries)


@triton.jit(do_not_specialize=_COUNTS)
def _top(measure, top, queries, u, IN_REGISTERS: tl.constexpr, BLOCK: tl.constexpr):
    """Select the rows of one batch entry."""
    batch = tl.program_id(0).to(tl.int64)
    _select_rows(measure + batch * queries, top + batch * u, queries, u, BLOCK, IN_REGISTERS)


@triton.jit(do_not_specialize=_COUNTS)
def _measure_and_top(
    query, key, sample, measure, top, heads, queries, keys, samples, width, u,
    query_batch, query_head, query_row, key_batch, key_head, key_row, divisor,
    PER_QUERY: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Measure and select in one program per batch entry, for queries <= BLOCK."""
    batch = tl.program_id(0)
    query += batch_offset(batch, heads, query_batch, query_head)
    key += batch_offset(batch, heads, key_batch, key_head)
    measure += batch.to(tl.int64) * queries
    for start in range(0, queries, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        found = _measure_rows(
            query, key, sample, rows, queries, keys, samples, width, query_row, key_row, divisor,
            PER_QUERY, PRECISION, BLOCK_M, BLOCK_S, BLOCK_D,
        )  # fmt: skip
        tl.store(measure + rows, found, mask=rows < queries)
    tl.debug_barrier()  # the selection reads what other threads have written
    _select_rows(measure, top + batch.to(tl.int64) * u, queries, u, BLOCK, True)
