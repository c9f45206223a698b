"""Measure the cases: check each result, then time the peer and our backends in turn."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from gpu.cases import Case
from gpu.row import row
from gpu.work import Work
from harness import checks
from harness.timing import time_in_turn
from simmst.errors import BackendUnavailableError


class Ceilings(NamedTuple):
    """The machine's limits: bytes copied, and operations of matrix products by dtype, both per second."""

    copy: float
    products: Mapping[str, float]

    @classmethod
    def measure(cls, device: torch.device) -> Ceilings:
        large = device.type == "cuda"
        products = {
            _name(dtype): _matrix_rate(device, dtype, 8192 if large else 64)
            for dtype in (torch.float32, torch.bfloat16, torch.float16)
        }
        return cls(_copy_bandwidth(device, 2 << 30 if large else 1 << 20), products)

    def least(self, work: Work) -> tuple[float, str]:
        """Return the least seconds that moving the bytes or the products take, and which of the two decides."""
        moving, computing = work.bytes / self.copy, work.flops / self.products[_name(work.dtype)]
        return max(moving, computing), "bytes" if moving >= computing else "flops"


def _copy_bandwidth(device: torch.device, size: int) -> float:
    """Return the bytes per second, read and written, of a copy that no cache holds."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / time_in_turn({"copy": lambda: target.copy_(source)}, device, seconds=0.5)["copy"].median


def _matrix_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Return the floating-point operations per second of a product of two square random matrices."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / time_in_turn({"product": lambda: left @ right}, device, seconds=0.5)["product"].median


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class DeviceLostError(RuntimeError):
    """An error has left the GPU unusable for this process. Earlier rows are kept; another process must take over."""


def rows(
    cases: Iterable[Case],
    backends: Sequence[str],
    device: torch.device,
    scale: str,
    ceilings: Ceilings,
    *,
    seconds: float = 1.0,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Hand `keep` one row per case and backend as soon as it is measured; a problem makes a row as well.

    Raises:
        DeviceLostError: If the GPU can no longer be used; the row before it says why.
    """
    for case in cases:
        work: Work | str
        try:
            work = case.build(device, scale)
        except Exception as error:
            work = f"its inputs cannot be made: {_words(error)}"
        for backend in backends:
            line = row(case, backend, problem=work) if isinstance(work, str) else None
            keep(line or measure(case, work, backend, device, ceilings, seconds))  # type: ignore[arg-type]
            if _is_lost(device):
                raise DeviceLostError(f"the GPU cannot be used any more after {case.name} on {backend}")
        del work
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _is_lost(device: torch.device) -> bool:
    try:
        torch.ones(1, device=device).sum().item()
    except RuntimeError:
        return True
    return False


def _words(error: Exception) -> str:
    """Return the kind of an error and its first line; print the rest."""
    traceback.print_exception(error)
    return f"{type(error).__name__}: {(str(error) or 'without a message').splitlines()[0]}"


def measure(
    case: Case, work: Work, backend: str, device: torch.device, ceilings: Ceilings, seconds: float
) -> dict[str, Any]:
    """Return the row of a case on a backend; one that cannot run, is wrong or fails has a problem and no ratio."""
    problem = problem_with(work, backend, device)
    if problem:
        return row(case, backend, problem=problem)
    sides = {"peer": work.peer, "ours": functools.partial(work.ours, backend)}
    try:
        work.peer()
    except Exception as error:
        problem = f"the peer fails: {_words(error)}"
        del sides["peer"]
    try:
        times = time_in_turn(sides, device, cold=case.cold, seconds=seconds)
    except Exception as error:
        return row(case, backend, problem=problem or f"it fails when it is timed: {_words(error)}")
    ours = times["ours"]
    least, bound = ceilings.least(work)
    found = {
        "ours_ms": 1e3 * ours.median,
        "calls": len(ours.seconds),
        "bytes": work.bytes,
        "flops": work.flops,
        "of_copy_bandwidth": work.bytes / ours.median / ceilings.copy,
        "of_roofline": least / ours.median,
        "bound": bound,
    }
    if not problem:
        peer = times["peer"]
        found |= {
            "peer_ms": 1e3 * peer.median,
            "ratio": peer.median / ours.median,
            "ratio_in_a_row": peer.row / ours.row,
            "spread": [peer.spread, ours.spread],
        }
    return row(case, backend, problem=problem, **found)


def problem_with(work: Work, backend: str, device: torch.device) -> str:
    """Return why a backend's result must not be timed, in words; empty if it may."""
    try:
        return (
            work.complaint(backend)
            or checks.differences(lambda: work.results(backend))
            or checks.graph_problem(lambda: work.results(backend), device)
        )
    except BackendUnavailableError as error:
        return str(error)
    except Exception as error:  # a compiler's error, an illegal access: whatever it is, it concerns only this case
        return _words(error)
