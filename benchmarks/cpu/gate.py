"""The gate: two sides, timed in turn in one process and held to a ratio; and one table at the end of a run.

``SIMMST_BENCH_ROUNDS`` multiplies the rounds of every case (1).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from cpu import recorded
from harness.machine import conditions, copy_bandwidth, matrix_rate, processor, read_bandwidth
from harness.timing import Timing, time_pair


class Case(NamedTuple):
    """Two sides of a comparison, and the least work that ours must do."""

    name: str
    ours: Callable[[], Any]
    peer: Callable[[], Any]
    floor: float  # the ratio to reach: the peer's time divided by ours
    bytes: float = 0.0  # each read or written once
    flops: float = 0.0
    dtype: torch.dtype = torch.float32
    rounds: int = 10
    calls: int = 1  # per round, where one call is too short to time
    warm_up: bool = True
    # The limit for the bytes; read_bandwidth where almost none are written.
    bandwidth: Callable[[int], float] = copy_bandwidth
    goal: float = 0.0  # the ratio aimed at; docs/results/speed.md explains shortfalls

    def key(self) -> str:
        """Return the name under which the ratio is recorded; a ratio belongs to one team size."""
        threads = torch.get_num_threads()
        return self.name if threads == 1 else f"{self.name} on {threads} threads"


class Row(NamedTuple):
    """A case and its measurement."""

    case: Case
    key: str
    timing: Timing
    limit: recorded.Limit
    percent: float  # the least time for moving the bytes or doing the operations, in percent of ours
    bound: str  # which of the two
    again: bool  # whether it was measured a second time
    threads: int

    def line(self) -> str:
        ours, peer = self.timing.ours, self.timing.peer
        limit = f"{self.limit.ratio:6.2f} {self.limit.source:8}" if self.limit.source != "none" else f"{'-':>6} {'':8}"
        memory = f"{_megabytes(peer.peak):>8} {_megabytes(ours.peak):>7}"
        work = f"{self.case.bytes / 1e6:7.1f} {self.case.flops / 1e9:7.2f} {self.percent:5.0f}% {self.bound:5}"
        return (
            f"{self.key:58} {peer.median * 1e3:10.3f} {ours.median * 1e3:9.3f} {self.timing.ratio:7.2f}"
            f" {self.case.floor:6.2f} {limit} {memory} {work}{' (second try)' if self.again else ''}{self.missed()}"
        )

    def missed(self) -> str:
        """Return the goal, if it is not reached."""
        return f" (goal {self.case.goal:g})" if self.timing.ratio < self.case.goal else ""


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


def measured(case: Case, rounds: int) -> Timing:
    return time_pair(case.ours, case.peer, rounds, calls=case.calls, warm_up=case.warm_up)


def compare(benchmark: Any, case: Case) -> Row:
    """Measure a case, keep it in pytest-benchmark's file and in the table, and hold its ratio to the limit.

    A case under its limit is measured again before it fails, because other programs may have used the machine, which
    slows a team of threads the most. The second measurement is longer unless a round takes seconds.
    """
    limit = recorded.limit(case.key(), case.floor)
    rounds = rounds_of(case)
    timing, again = measured(case, rounds), False
    if timing.reached < limit.ratio:
        first, again = timing, True
        longer = 4 * rounds if case.warm_up else rounds
        timing = max(first, measured(case, longer), key=lambda timing: timing.reached)
    percent, bound = _roofline(case, timing)
    row = Row(case, case.key(), timing, limit, percent, bound, again, torch.get_num_threads())
    ROWS.append(row)
    benchmark.extra_info.update(_kept(row))
    benchmark.pedantic(case.ours, rounds=1)
    assert timing.reached >= limit.ratio, (
        f"{row.key}: {timing.reached:.2f} times as fast as the peer; the gate asks for at least {limit.ratio:.2f} "
        f"({recorded.ROOM_FOR_NOISE:.0%} of the {'ratio recorded' if limit.source == 'recorded' else 'floor'})"
    )
    return row


def _roofline(case: Case, timing: Timing) -> tuple[float, str]:
    if not case.bytes and not case.flops:
        return 0.0, ""
    threads = torch.get_num_threads()
    moving = case.bytes / case.bandwidth(threads)
    computing = case.flops / matrix_rate(case.dtype, threads) if case.flops else 0.0
    return 100 * max(moving, computing) / timing.ours.median, "bytes" if moving >= computing else "flops"


def _kept(row: Row) -> dict[str, Any]:
    return {
        "case": row.key,
        "ratio": round(row.timing.ratio, 3),
        "ratio_of_best": round(row.timing.ratio_of_best, 3),
        "floor": row.case.floor,
        "goal": row.case.goal,
        "limit": round(row.limit.ratio, 3),
        "limit_from": row.limit.source,
        "ours_ms": row.timing.ours.median * 1e3,
        "peer_ms": row.timing.peer.median * 1e3,
        "rounds": len(row.timing.ours.seconds),
        "ours_peak_bytes": row.timing.ours.peak,
        "peer_peak_bytes": row.timing.peer.peak,
        "bytes": row.case.bytes,
        "flops": row.case.flops,
        "percent_of_roofline": round(row.percent, 1),
        "bound": row.bound,
        **conditions(),
    }


def lines() -> list[str]:
    """The table of a run, and what it depends on; empty where no case ran."""
    if not ROWS:
        return NOTES
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
