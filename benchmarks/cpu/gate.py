"""Shared by the benchmarks: two sides timed in turn in one process, held to a ratio, and one table at the end of a run.

``SIMMST_BENCH_ROUNDS`` multiplies the rounds of every case (1).
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from cpu import recorded
from harness.machine import conditions, copy_bandwidth, matrix_rate, peak_memory, processor, read_bandwidth


class Case(NamedTuple):
    """Two sides of a comparison, and what the work of ours needs at least."""

    name: str
    ours: Callable[[], Any]
    peer: Callable[[], Any]
    floor: float  # the ratio to reach, peer's time by ours
    bytes: float = 0.0  # read and written once each
    flops: float = 0.0
    dtype: torch.dtype = torch.float32
    rounds: int = 10
    calls: int = 1  # in a round, where one call is too short to time
    warm_up: bool = True
    bandwidth: Callable[[int], float] = (
        copy_bandwidth  # what bounds the bytes; read_bandwidth where hardly any is written
    )

    def key(self) -> str:
        """The name under which the ratio is recorded; a ratio belongs to a size of the team."""
        threads = torch.get_num_threads()
        return self.name if threads == 1 else f"{self.name} on {threads} threads"


class Timing(NamedTuple):
    """Seconds a call and the most bytes that a call held, on both sides."""

    ours: list[float]
    peer: list[float]
    ours_peak: int | None
    peer_peak: int | None

    @property
    def ratio(self) -> float:
        return statistics.median(self.peer) / statistics.median(self.ours)

    @property
    def ratio_of_best(self) -> float:
        return min(self.peer) / min(self.ours)

    @property
    def reached(self) -> float:
        """What a limit is compared with: where others use the machine, the best times say more than the medians."""
        return max(self.ratio, self.ratio_of_best)


class Row(NamedTuple):
    """A case that was measured."""

    case: Case
    key: str
    timing: Timing
    limit: recorded.Limit
    percent: float  # of the time that moving the bytes or doing the operations takes at least
    bound: str  # which of the two
    again: bool  # measured a second time
    threads: int

    def line(self) -> str:
        ours, peer = statistics.median(self.timing.ours), statistics.median(self.timing.peer)
        limit = f"{self.limit.ratio:6.2f} {self.limit.source:8}" if self.limit.source != "none" else f"{'-':>6} {'':8}"
        memory = f"{_megabytes(self.timing.peer_peak):>8} {_megabytes(self.timing.ours_peak):>7}"
        work = f"{self.case.bytes / 1e6:7.1f} {self.case.flops / 1e9:7.2f} {self.percent:5.0f}% {self.bound:5}"
        return (
            f"{self.key:58} {peer * 1e3:10.3f} {ours * 1e3:9.3f} {self.timing.ratio:7.2f} {self.case.floor:6.2f}"
            f" {limit} {memory} {work}{' (second try)' if self.again else ''}"
        )


_HEAD = (
    f"{'case':58} {'peer ms':>10} {'ours ms':>9} {'ratio':>7} {'floor':>6} {'limit':>6} {'from':8}"
    f" {'peer MB':>8} {'ours MB':>7} {'moved':>7} {'GFLOP':>7} {'of roofline':>12}"
)
ROWS: list[Row] = []
NOTES: list[str] = []  # printed under the table


def _megabytes(size: int | None) -> str:
    return "?" if size is None else f"{size / 1e6:.1f}"


def rounds_of(case: Case) -> int:
    return max(1, round(case.rounds * float(os.environ.get("SIMMST_BENCH_ROUNDS", "1"))))


def time_in_turn(case: Case, rounds: int) -> Timing:
    """Rounds in which each side runs, so that both meet the same noise.

    Memory is measured in the warm-up, or, for a peer too slow for one, in the first round.
    """
    sides = (case.ours, case.peer)
    times: tuple[list[float], list[float]] = ([], [])
    peaks: list[int | None] = [None, None]
    if case.warm_up:
        peaks = [peak_memory(side)[1] for side in sides]
    else:
        case.ours()
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            for index, side in enumerate(sides):
                if turn == 0 and not case.warm_up:
                    seconds, peaks[index] = peak_memory(lambda side=side: _seconds(side, case.calls))
                else:
                    seconds = _seconds(side, case.calls)
                times[index].append(seconds / case.calls)
    finally:
        gc.enable()
    return Timing(*times, *peaks)


def _seconds(side: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        side()
    return time.perf_counter() - start


def compare(benchmark: Any, case: Case) -> Row:
    """Measure a case, keep it in pytest-benchmark's file and in the table, and hold its ratio to the limit.

    A case under its limit is measured once more before it fails, and longer unless a round takes seconds: others may
    have used the machine, which slows a team of threads the most.
    """
    limit = recorded.limit(case.key(), case.floor)
    rounds = rounds_of(case)
    timing, again = time_in_turn(case, rounds), False
    if timing.reached < limit.ratio:
        first, again = timing, True
        longer = 4 * rounds if case.warm_up else rounds
        timing = max(first, time_in_turn(case, longer), key=lambda timing: timing.reached)
    percent, bound = _roofline(case, timing)
    row = Row(case, case.key(), timing, limit, percent, bound, again, torch.get_num_threads())
    ROWS.append(row)
    benchmark.extra_info.update(_kept(row))
    benchmark.pedantic(case.ours, rounds=1)
    assert timing.reached >= limit.ratio, (
        f"{row.key}: {timing.reached:.2f} times as fast as the peer, at least {limit.ratio:.2f} are asked for "
        f"({recorded.ROOM_FOR_NOISE:.0%} of the {'ratio recorded' if limit.source == 'recorded' else 'floor'})"
    )
    return row


def _roofline(case: Case, timing: Timing) -> tuple[float, str]:
    if not case.bytes and not case.flops:
        return 0.0, ""
    threads = torch.get_num_threads()
    moving = case.bytes / case.bandwidth(threads)
    computing = case.flops / matrix_rate(case.dtype, threads) if case.flops else 0.0
    return 100 * max(moving, computing) / statistics.median(timing.ours), "bytes" if moving >= computing else "flops"


def _kept(row: Row) -> dict[str, Any]:
    return {
        "case": row.key,
        "ratio": round(row.timing.ratio, 3),
        "ratio_of_best": round(row.timing.ratio_of_best, 3),
        "floor": row.case.floor,
        "limit": round(row.limit.ratio, 3),
        "limit_from": row.limit.source,
        "ours_ms": statistics.median(row.timing.ours) * 1e3,
        "peer_ms": statistics.median(row.timing.peer) * 1e3,
        "rounds": len(row.timing.ours),
        "ours_peak_bytes": row.timing.ours_peak,
        "peer_peak_bytes": row.timing.peer_peak,
        "bytes": row.case.bytes,
        "flops": row.case.flops,
        "percent_of_roofline": round(row.percent, 1),
        "bound": row.bound,
        **conditions(),
    }


@contextmanager
def team(threads: int) -> Iterator[None]:
    """torch's number of threads for a file's cases."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def lines() -> list[str]:
    """The table of a run, and what it depends on; empty where no case ran."""
    if not ROWS:
        return []
    limits = []
    for threads in sorted({row.threads for row in ROWS}):
        copy, read, rate = copy_bandwidth(threads), read_bandwidth(threads), matrix_rate(torch.float32, threads)
        limits.append(
            f"{threads} thread(s): copy {copy / 1e9:.1f} GB/s, read {read / 1e9:.1f} GB/s, "
            f"matrix product {rate / 1e9:.0f} GFLOP/s"
        )
    found = conditions()
    del found["threads"]
    return [
        _HEAD,
        *(row.line() for row in ROWS),
        *NOTES,
        *limits,
        "roofline: the bandwidth, and the better of torch's and numpy's matrix products; above 100% ours is faster",
        ", ".join(f"{name} {value}" for name, value in found.items()),
        _judged(),
    ]


def _judged() -> str:
    if recorded.recording():
        return f"recorded into {recorded.path()}"
    reason = recorded.foreign(recorded.read())
    room = f"{recorded.ROOM_FOR_NOISE:.0%}"
    if reason:
        return f"limits: {room} of the floors, because {reason}"
    return f"limits: {room} of the recorded ratios ({processor()}), or of the floor for a case without one"


def keep_recording() -> None:
    """Write the ratios of this run, where it records."""
    if recorded.recording() and ROWS:
        recorded.write({row.key: row.timing.ratio for row in ROWS}, max(row.threads for row in ROWS))


__all__ = ["NOTES", "ROWS", "Case", "Row", "Timing", "compare", "keep_recording", "lines", "team", "time_in_turn"]
