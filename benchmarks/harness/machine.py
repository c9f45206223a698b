"""What a benchmark's figures depend on besides the code: the processor, its limits, memory, versions."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch


@contextmanager
def team(threads: int) -> Iterator[None]:
    """So many threads for torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _best(call: Callable[[], Any], clock: Callable[[], float] = time.perf_counter, rounds: int = 7) -> float:
    times = []
    for _ in range(rounds):
        start = clock()
        call()
        times.append(clock() - start)
    return min(times)


def _on_threads(threads: int, call: Callable[[], Any]) -> float:
    with team(threads):
        return _best(call)


@functools.cache
def copy_bandwidth(threads: int) -> float:
    """Bytes a second, read and written, of a copy that no cache holds; measured on ``threads`` threads."""
    source = torch.zeros(128 << 20, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * source.numel() / _on_threads(threads, lambda: target.copy_(source))


@functools.cache
def read_bandwidth(threads: int) -> float:
    """Bytes a second of a sum over an array that no cache holds; measured on ``threads`` threads."""
    source = torch.ones(32 << 20)
    return source.nbytes / _on_threads(threads, source.sum)


@functools.cache
def matrix_rate(dtype: torch.dtype, threads: int) -> float:
    """Floating-point operations a second of the product of two 768 x 768 matrices; the better of torch's and numpy's.

    The two call different libraries. numpy's team is not ours to set, so its product is timed on the processor's clock.
    """
    left, right = torch.randn(2, 768, 768).to(dtype)
    operations = 2 * 768**3
    rate = operations / _on_threads(threads, lambda: left @ right)
    if dtype == torch.float32:
        one, two = left.numpy(), right.numpy()
        rate = max(rate, threads * operations / _best(lambda: np.matmul(one, two), time.process_time))
    return rate


def peak_memory(call: Callable[[], Any]) -> tuple[Any, int | None]:
    """The result of a call, and the bytes it held at most beyond what was held before; None where that is not told."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        ctypes.CDLL(None).malloc_trim(0)  # so that memory freed earlier counts again when the call takes it
        clear.write_text("5")  # the peak starts from here
    except (OSError, AttributeError):
        return call(), None
    before = _field(status, "VmRSS:")
    result = call()
    return result, max(0, _field(status, "VmHWM:") - before)


def _field(path: Path, name: str) -> int:
    line = next(line for line in path.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def said(command: Sequence[str]) -> str:
    """What a command prints; empty where it fails or is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


@functools.cache
def commit() -> str:
    """The commit that the working tree is on, marked when it has changes."""
    root = Path(__file__).resolve().parents[2]
    return said(["git", "-C", str(root), "describe", "--always", "--dirty"]) or "unknown"


@functools.cache
def processor() -> str:
    """Model name, family and model number; a hypervisor may hide the name's end, so the numbers tell more."""
    fields: dict[str, str] = {}
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    return f"{fields['model name']} (family {fields.get('cpu family', '?')}, model {fields.get('model', '?')})"


def instruction_set() -> str:
    """The one that simmst's kernels use in this process."""
    from simmst.ops.backends import load_native  # here: a run on a GPU asks for the commit before it installs simmst

    cpu, _ = load_native("simmst._cpu")
    return "none" if cpu is None else str(cpu.instruction_set())


def conditions() -> dict[str, Any]:
    """For every figure that is kept."""
    return {
        "cpu": processor(),
        "isa": instruction_set(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit(),
        "load": round(os.getloadavg()[0], 1),
    }
