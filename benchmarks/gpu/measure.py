"""Measure the cases: check each result, then time the peer and our backends in turn."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from gpu.cases import Case
from gpu.work import Work
from harness import checks
from harness.timing import time_in_turn
from simmst.errors import BackendUnavailableError


class Ceilings(NamedTuple):
    """What the machine reaches: bytes copied and operations of matrix products a second, by dtype."""

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
        """Seconds that moving the bytes or the products take at least, and which of the two."""
        moving, computing = work.bytes / self.copy, work.flops / self.products[_name(work.dtype)]
        return max(moving, computing), "bytes" if moving >= computing else "flops"


def _copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes a second, read and written, of a copy that no cache holds."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / time_in_turn({"copy": lambda: target.copy_(source)}, device, seconds=0.5)["copy"].median


def _matrix_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Floating-point operations a second of a product of two square matrices of random numbers."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / time_in_turn({"product": lambda: left @ right}, device, seconds=0.5)["product"].median


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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
    """Hand `keep` one row for each case and backend as soon as it is there; what goes wrong is a row as well."""
    for case in cases:
        try:
            work = case.build(device, scale)
            found = measure(case, work, backends, device, ceilings, seconds)
        except Exception as error:
            if _is_lost(device):
                raise
            traceback.print_exc()
            found = [_row(case, backend, problem=f"{type(error).__name__}: {error}") for backend in backends]
        for row in found:
            keep(row)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _is_lost(device: torch.device) -> bool:
    """Whether an earlier error has left the GPU unusable to this process."""
    try:
        torch.ones(1, device=device).sum().item()
    except RuntimeError:
        return True
    return False


def measure(
    case: Case, work: Work, backends: Sequence[str], device: torch.device, ceilings: Ceilings, seconds: float
) -> list[dict[str, Any]]:
    """Rows of one case. A backend that cannot run it, or is wrong, gets a row without a time."""
    problems = {backend: problem_with(work, backend, device) for backend in backends}
    able = [backend for backend, problem in problems.items() if not problem]
    sides = {backend: functools.partial(work.ours, backend) for backend in able}
    times = time_in_turn({"peer": work.peer, **sides}, device, cold=case.cold, seconds=seconds)
    peer = times["peer"]
    found = []
    for backend in backends:
        if backend not in sides:
            found.append(_row(case, backend, peer_ms=1e3 * peer.median, problem=problems[backend]))
            continue
        ours = times[backend]
        least, bound = ceilings.least(work)
        found.append(
            _row(
                case,
                backend,
                peer_ms=1e3 * peer.median,
                ours_ms=1e3 * ours.median,
                ratio=peer.median / ours.median,
                ratio_in_a_row=peer.row / ours.row,
                spread=[peer.spread, ours.spread],
                calls=len(ours.seconds),
                bytes=work.bytes,
                flops=work.flops,
                of_copy_bandwidth=work.bytes / ours.median / ceilings.copy,
                of_roofline=least / ours.median,
                bound=bound,
            )
        )
    return found


def problem_with(work: Work, backend: str, device: torch.device) -> str:
    """Why a backend's result must not be timed, in words; empty where it may."""
    try:
        return (
            work.complaint(backend)
            or checks.differences(lambda: work.results(backend))
            or checks.graph_problem(lambda: work.results(backend), device)
        )
    except BackendUnavailableError as error:
        return str(error)


def _row(case: Case, backend: str, **found: Any) -> dict[str, Any]:
    row = {
        "case": case.name,
        "operator": case.operator,
        "dtype": _name(case.dtype),
        "size": case.size,
        "peer": case.peer,
        "backend": backend,
        "floor": case.floors.get(backend),
        "share_floor": case.shares.get(backend),
        "problem": "",
        **found,
    }
    row["short"] = _short(row)
    return row


def _short(row: Mapping[str, Any]) -> bool:
    """Whether a time was measured and is under what is to be reached."""
    pairs = (("ratio", "floor"), ("of_copy_bandwidth", "share_floor"))
    return any(row.get(name) is not None and row[floor] is not None and row[name] < row[floor] for name, floor in pairs)
