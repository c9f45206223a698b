"""The conditions of a benchmark besides the code: the processor, its limits, memory, versions."""

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
    """Set the number of torch's threads, and restore it afterwards."""
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
    """Return the bytes per second, read and written, of a copy that no cache holds, on ``threads`` threads."""
    source = torch.zeros(128 << 20, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * source.numel() / _on_threads(threads, lambda: target.copy_(source))


@functools.cache
def read_bandwidth(threads: int) -> float:
    """Return the bytes per second of a sum over an array that no cache holds, on ``threads`` threads."""
    source = torch.ones(32 << 20)
    return source.nbytes / _on_threads(threads, source.sum)


@functools.cache
def matrix_rate(dtype: torch.dtype, threads: int) -> float:
    """Return the floating-point operations per second of a 768 x 768 matrix product; the better of torch's and numpy's.

    The two call different libraries. numpy's team size cannot be set here, so its product is timed in CPU seconds.
    """
    left, right = torch.randn(2, 768, 768).to(dtype)
    operations = 2 * 768**3
    rate = operations / _on_threads(threads, lambda: left @ right)
    if dtype == torch.float32:
        one, two = left.numpy(), right.numpy()
        rate = max(rate, threads * operations / _best(lambda: np.matmul(one, two), time.process_time))
    return rate


def peak_memory(call: Callable[[], Any]) -> tuple[Any, int | None]:
    """Return a call's result, and the most bytes it held beyond those held before; None if the system does not tell."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        ctypes.CDLL(None).malloc_trim(0)  # so that memory freed earlier counts when the call takes it again
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
    """Return what a command prints; empty if it fails or does not exist."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


@functools.cache
def commit() -> str:
    """Return the working tree's commit, marked if the tree has changes."""
    root = Path(__file__).resolve().parents[2]
    return said(["git", "-C", str(root), "describe", "--always", "--dirty"]) or "unknown"


@functools.cache
def processor() -> str:
    """Return model name, family and model number, because a hypervisor may hide the end of the name."""
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
    """Return the instruction set that simmst's kernels use in this process."""
    # Imported here, because a run on a GPU asks for the commit before it installs simmst.
    from simmst.ops.backends import load_native

    cpu, _ = load_native("simmst._cpu")
    return "none" if cpu is None else str(cpu.instruction_set())


def conditions() -> dict[str, Any]:
    """Return the conditions that are kept with every figure."""
    return {
        "cpu": processor(),
        "isa": instruction_set(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit(),
        "load": round(os.getloadavg()[0], 1),
    }
