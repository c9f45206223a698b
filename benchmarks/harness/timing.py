"""Clocks: CUDA events on a GPU, the processor's elsewhere; and what the machine itself reaches."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

Side = Callable[[], Any]
# What _sleep counts: cycles at no more than this rate.
_CYCLES_PER_SECOND = 2.0e9


class Times(NamedTuple):
    """Seconds of one side: on the device, call by call, and of one call in a row of many with the host's work."""

    device: list[float]
    row: float

    @property
    def median(self) -> float:
        return statistics.median(self.device)

    @property
    def spread(self) -> float:
        """Interquartile range as a share of the median."""
        if len(self.device) < 4:
            return 0.0
        low, _, high = statistics.quantiles(self.device, n=4)
        return (high - low) / self.median


def time_in_turn(
    sides: Mapping[str, Side], device: torch.device, *, cold: bool = False, seconds: float = 1.0
) -> dict[str, Times]:
    """Time the sides in turn, so that all meet the same clocks and the same noise.

    Args:
        sides: what to call, by name.
        device: a GPU, or the CPU for a dry run.
        cold: overwrite the second-level cache before each call, where the claim is about memory.
        seconds: about how long to measure; at least 5 rounds and at most 100.
    """
    for side in sides.values():
        for _ in range(3):
            side()
    rows = {name: _row(side, device) for name, side in sides.items()}
    rounds = min(100, max(5, int(seconds / max(1e-6, 1.5 * sum(rows.values())))))
    if device.type != "cuda":
        taken = {name: [_elapsed(side) for _ in range(rounds)] for name, side in sides.items()}
        return {name: Times(taken[name], rows[name]) for name in sides}
    scratch = torch.empty(2 * _cache_bytes(device), dtype=torch.uint8, device=device) if cold else None
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            found[name].append(_on_device(side, scratch, rows[name]))
    return {name: Times(found[name], rows[name]) for name in sides}


def _on_device(side: Side, scratch: torch.Tensor | None, host: float) -> float:
    """One call between two events. The device waits first, until the host has queued the whole call."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(int(_CYCLES_PER_SECOND * min(5e-3, 50e-6 + 2 * host)))
    if scratch is not None:
        scratch.zero_()
    start.record()
    side()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _row(side: Side, device: torch.device) -> float:
    """Seconds a call takes in a row of many, host and device together."""
    one = _elapsed(side, device)
    calls = min(50, max(1, int(0.1 / max(1e-6, one))))

    def many() -> None:
        for _ in range(calls):
            side()

    return _elapsed(many, device) / calls


def _elapsed(side: Side, device: torch.device | None = None) -> float:
    _synchronize(device)
    start = time.perf_counter()
    side()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def _cache_bytes(device: torch.device) -> int:
    return max(32 << 20, int(torch.cuda.get_device_properties(device).L2_cache_size))


def copy_bandwidth(device: torch.device, size: int = 2 << 30) -> float:
    """Bytes a second, read and written, of a copy that no cache holds."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / time_in_turn({"copy": lambda: target.copy_(source)}, device, seconds=0.5)["copy"].median


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int = 8192) -> float:
    """Floating-point operations a second of a product of two square matrices of random numbers."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / time_in_turn({"product": lambda: left @ right}, device, seconds=0.5)["product"].median
