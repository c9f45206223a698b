"""Shared by the benchmarks: two sides timed in turn in one process, the machine's limits, and one table at the end."""

from __future__ import annotations

import functools
import gc
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from simmst.ops.backends import load_native

# .ci/run fails when a ratio falls under this part of the one to reach.
ROOM_FOR_NOISE = 0.7


class Medians(NamedTuple):
    """Seconds a call, on both sides."""

    ours: float
    peer: float

    @property
    def ratio(self) -> float:
        return self.peer / self.ours


def time_in_turn(
    ours: Callable[[], Any], peer: Callable[[], Any], *, rounds: int, calls: int = 1, warm_up: int = 1
) -> Medians:
    """Medians over rounds in which each side runs ``calls`` times, so that both meet the same noise."""
    for _ in range(warm_up):
        ours()
        peer()
    times: tuple[list[float], list[float]] = ([], [])
    gc.disable()
    try:
        for _ in range(rounds):
            for side, kept in zip((ours, peer), times, strict=True):
                start = time.perf_counter()
                for _ in range(calls):
                    side()
                kept.append((time.perf_counter() - start) / calls)
    finally:
        gc.enable()
    return Medians(*map(statistics.median, times))


def _best(call: Callable[[], Any], rounds: int = 7) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


@functools.cache
def copy_bandwidth(threads: int) -> float:
    """Bytes a second, read and written, of a copy that no cache holds; measured on ``threads`` threads."""
    source = torch.zeros(64 << 20, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * source.numel() / _on_threads(threads, lambda: target.copy_(source))


@functools.cache
def matrix_rate(dtype: torch.dtype, threads: int) -> float:
    """Floating-point operations a second of torch's product of two 768 x 768 matrices."""
    left, right = torch.randn(2, 768, 768).to(dtype)
    return 2 * 768**3 / _on_threads(threads, lambda: left @ right)


def _on_threads(threads: int, call: Callable[[], Any]) -> float:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _best(call)
    finally:
        torch.set_num_threads(before)


@functools.cache
def commit() -> str:
    """The commit that the working tree is on, marked when it has changes."""
    root = Path(__file__).resolve().parents[1]
    run = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return run.stdout.strip() or "unknown"


def conditions() -> dict[str, Any]:
    """What a figure depends on besides the code."""
    cpu, _ = load_native("simmst._cpu")
    return {
        "threads": torch.get_num_threads(),
        "isa": "none" if cpu is None else cpu.instruction_set(),
        "commit": commit(),
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 1),
    }


class Row(NamedTuple):
    """One case: what ran, how long both sides took, and what the work needs at least."""

    case: str
    medians: Medians
    floor: float  # the ratio to reach
    bytes: float = 0.0  # read and written once each
    flops: float = 0.0
    dtype: torch.dtype = torch.float32

    def roofline(self) -> tuple[float, str]:
        """Percentage of the time that bytes or operations alone would take, and which of the two bounds."""
        threads = torch.get_num_threads()
        moving = self.bytes / copy_bandwidth(threads)
        computing = self.flops / matrix_rate(self.dtype, threads)
        bound = max(moving, computing)
        return 100 * bound / self.medians.ours, "bytes" if moving >= computing else "flops"


def record(benchmark: Any, row: Row, table: list[str]) -> None:
    """Keep a case in pytest-benchmark's file and in the table; fail when it is far below the ratio to reach."""
    percent, bound = row.roofline()
    benchmark.extra_info.update(
        ratio=round(row.medians.ratio, 2),
        floor=row.floor,
        ours_ms=row.medians.ours * 1e3,
        peer_ms=row.medians.peer * 1e3,
        bytes=row.bytes,
        flops=row.flops,
        percent_of_roofline=round(percent, 1),
        bound=bound,
        **conditions(),
    )
    if not table:
        table.append(
            f"{'case':42} {'peer ms':>10} {'ours ms':>9} {'ratio':>7} {'floor':>6} {'MB':>7} {'GFLOP':>7}"
            f" {'roofline':>14}"
        )
    table.append(
        f"{row.case:42} {row.medians.peer * 1e3:10.3f} {row.medians.ours * 1e3:9.3f} {row.medians.ratio:7.2f}"
        f" {row.floor:6.2f} {row.bytes / 1e6:7.1f} {row.flops / 1e9:7.2f} {percent:7.0f}% {bound}"
    )
    assert row.medians.ratio >= ROOM_FOR_NOISE * row.floor, table[-1]


def show(table: list[str]) -> None:
    """Print the table of a file's cases and what they depend on."""
    if table:
        limits = f"copy {copy_bandwidth(torch.get_num_threads()) / 1e9:.0f} GB/s"
        rate = f"matrix product {matrix_rate(torch.float32, torch.get_num_threads()) / 1e9:.0f} GFLOP/s"
        print("\n" + "\n".join(table) + f"\n{conditions()}, {limits}, {rate}")


__all__ = ["Medians", "Row", "commit", "conditions", "copy_bandwidth", "matrix_rate", "record", "show", "time_in_turn"]
