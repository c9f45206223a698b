"""Sides timed in turn, so that all meet the same noise: by the processor's clock, or by the events of a GPU."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from harness.machine import peak_memory

Side = Callable[[], Any]
# _sleep counts cycles; their rate is at most this.
_CYCLES_PER_SECOND = 2.0e9


class Times(NamedTuple):
    """Seconds of each call of one side, seconds per call in a row of many, and the most bytes that a call held."""

    seconds: list[float]  # on a GPU, the device's time alone
    row: float  # includes the host's work
    peak: int | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Interquartile range as a share of the median."""
        if len(self.seconds) < 4:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / self.median


class Timing(NamedTuple):
    """Ours and its peer."""

    ours: Times
    peer: Times

    @property
    def ratio(self) -> float:
        return self.peer.median / self.ours.median

    @property
    def ratio_of_best(self) -> float:
        return min(self.peer.seconds) / min(self.ours.seconds)

    @property
    def reached(self) -> float:
        """The ratio for the limit. If other programs use the machine, the best times say more than the medians."""
        return max(self.ratio, self.ratio_of_best)


def time_pair(ours: Side, peer: Side, rounds: int, *, calls: int = 1, warm_up: bool = True) -> Timing:
    """Time two sides on the processor, `rounds` rounds of `calls` calls.

    Memory is measured in the warm-up, or in the first round if a peer is too slow for a warm-up.
    """
    sides = {"ours": ours, "peer": peer}
    peaks: dict[str, int | None] = {}
    if warm_up:
        peaks = {name: peak_memory(side)[1] for name, side in sides.items()}
    else:
        ours()

    def seconds(name: str) -> float:
        side = sides[name]

        def many() -> None:
            for _ in range(calls):
                side()

        return _elapsed(many) / calls

    def clock(name: str) -> float:
        if name in peaks:
            return seconds(name)
        found, peaks[name] = peak_memory(lambda: seconds(name))
        return float(found)

    found = _in_turn(sides, rounds, clock)
    return Timing(*(Times(taken, statistics.fmean(taken), peaks[name]) for name, taken in found.items()))


def time_in_turn(
    sides: Mapping[str, Side], device: torch.device, *, cold: bool = False, seconds: float = 1.0
) -> dict[str, Times]:
    """Time any number of sides on a device.

    Args:
        sides: functions to time, by name.
        device: a GPU, or the CPU for a dry run.
        cold: whether to overwrite the second-level cache before each call, where the claim is about memory.
        seconds: approximate measuring time; at least 5 rounds and at most 100.
    """
    for side in sides.values():
        for _ in range(3):
            side()
    rows = {name: _row(side, device) for name, side in sides.items()}
    rounds = min(100, max(5, int(seconds / max(1e-6, 1.5 * sum(rows.values())))))
    on_gpu = device.type == "cuda"
    scratch = torch.empty(2 * _cache_bytes(device), dtype=torch.uint8, device=device) if cold and on_gpu else None

    def clock(name: str) -> float:
        return _on_device(sides[name], scratch, rows[name]) if on_gpu else _elapsed(sides[name])

    return {name: Times(found, rows[name]) for name, found in _in_turn(sides, rounds, clock).items()}


def _in_turn(names: Mapping[str, Side], rounds: int, clock: Callable[[str], float]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, seconds in found.items():
                seconds.append(clock(name))
    finally:
        gc.enable()
    return found


def _on_device(side: Side, scratch: torch.Tensor | None, host: float) -> float:
    """Time one call between two events. The device first waits until the host has queued the whole call."""
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
    """Return the seconds per call in a row of many, host and device together."""
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
