"""The host's cost of a call: microseconds until it returns, and launches, next to those of PyTorch's attention.

The shapes are so small that no call waits for the device; the device's queue is emptied now and then.
"""

from __future__ import annotations

import functools
import gc
import statistics
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812

PEER = "scaled_dot_product_attention"
AT_MOST = 2.0  # times the peer's time
_CALLS, _ROUNDS = 20, 60  # calls between two waits, and rounds on a GPU
Call = Callable[[], Any]


class Small(NamedTuple):
    """A call at a small shape: for a device, it builds a function that takes a backend."""

    name: str
    build: Callable[[torch.device], Callable[[str], Any]]


def _normal(device: torch.device, *shape: int) -> torch.Tensor:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.randn(shape, device=device).to(dtype)


def _sparse(sampling: str, backward: bool = False) -> Callable[[torch.device], Callable[[str], Any]]:
    def build(device: torch.device) -> Callable[[str], Any]:
        from simmst.core.prob_sparse_attention import informer_count
        from simmst.ops import prob_sparse_attention

        query, key, value = (_normal(device, 2, 4, 96, 64) for _ in range(3))
        rows = (96, informer_count(96, 5)) if sampling == "per_query" else (informer_count(96, 5),)
        sample = torch.randint(96, rows, device=device)
        call = functools.partial(prob_sparse_attention, query, key, value, sample=sample, factor=5)
        if not backward:
            return lambda backend: call(backend=backend)
        leaves = [tensor.requires_grad_() for tensor in (query, key, value)]
        gradient = torch.randn_like(query)
        return lambda backend: torch.autograd.grad(call(backend=backend), leaves, gradient)

    return build


def _spatial(device: torch.device) -> Callable[[str], Any]:
    from simmst.ops import spatial_attention

    x, *weights = (_normal(device, *shape) for shape in ((4, 121, 64), (192, 64), (192,), (64, 64), (64,)))
    return lambda backend: spatial_attention(x, *weights, num_heads=4, residual=True, backend=backend)


def _step(device: torch.device) -> Callable[[str], Any]:
    from simmst.ops import cutting_plane_step_

    planes = torch.randn(8, 4096, device=device)
    coefficients, values = torch.rand(8, device=device), torch.randn(8, device=device)
    gradient, point, anchor = (torch.randn(4096, device=device) for _ in range(3))
    return lambda backend: cutting_plane_step_(
        planes, coefficients, gradient, point, anchor, values, lr=1e-3, backend=backend
    )


_CALLED: tuple[Small, ...] = (
    Small("plane step, L=8, N=4096", _step),
    Small("ProbSparse forward, shared samples, 8 heads, L=96", _sparse("shared")),
    Small("ProbSparse forward, per-query samples, 8 heads, L=96", _sparse("per_query")),
    Small("ProbSparse forward + backward, 8 heads, L=96", _sparse("shared", True)),
    Small("spatial forward, 4 maps, N=121", _spatial),
)


class Measure(NamedTuple):
    """What is measured for a call: its `time` or its `launches`."""

    small: Small
    what: str


# All times come first, because once a process has counted launches, the profiler makes every launch slower.
SMALL = tuple(Measure(small, what) for what in ("time", "launches") for small in _CALLED)


def line(measure: Measure, backend: str, *, problem: str = "", **found: Any) -> dict[str, Any]:
    """Return the line of a call that was measured, or of one with a problem."""
    over = found.get("times_peer") is not None and found["times_peer"] > AT_MOST
    line = {"call": measure.small.name, "what": measure.what, "backend": backend, "problem": problem, **found}
    return {**line, "at_most": AT_MOST, "over": over} if measure.what == "time" else line


def measure(measure: Measure, backend: str, device: torch.device) -> dict[str, Any]:
    """Measure the host time, or the launches, of a backend's call and of the peer's."""
    peer = _peer(device, backward="backward" in measure.small.name)
    try:
        ours = functools.partial(measure.small.build(device), backend)
        if measure.what == "launches":
            found = {"launches": launches(ours, device), "peer_launches": launches(peer, device)}
            return line(measure, backend, **found)
        found = _microseconds({"host_us": ours, "peer_us": peer}, device)
    except Exception as error:
        traceback.print_exception(error)
        return line(measure, backend, problem=f"{type(error).__name__}: {error}")
    return line(measure, backend, **found, times_peer=found["host_us"] / found["peer_us"])


def _peer(device: torch.device, *, backward: bool) -> Call:
    query, key, value = (_normal(device, 2, 4, 96, 64).requires_grad_(backward) for _ in range(3))
    gradient = torch.randn_like(query)

    def forward() -> Any:
        return F.scaled_dot_product_attention(query, key, value)

    return (lambda: torch.autograd.grad(forward(), (query, key, value), gradient)) if backward else forward


def together(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Merge the lines of each call and backend: the one with its time and the one with its launches."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for one in lines:
        held = found.setdefault((one["call"], one["backend"]), {"problem": ""})
        problem = "; ".join(filter(None, (held["problem"], one["problem"])))
        held |= {**{name: value for name, value in one.items() if name != "what"}, "problem": problem}
    return list(found.values())


def _microseconds(sides: dict[str, Call], device: torch.device) -> dict[str, float]:
    """Return the median time until a call returns; the device's queue is never full."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    found: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        for _ in range(_CALLS):
            side()
    gc.collect()
    gc.disable()
    try:
        for _ in range(_ROUNDS if device.type == "cuda" else 3):
            for name, side in sides.items():
                wait()
                for _ in range(_CALLS):
                    start = time.perf_counter()
                    side()
                    found[name].append(time.perf_counter() - start)
        wait()
    finally:
        gc.enable()
    return {name: 1e6 * statistics.median(taken) for name, taken in found.items()}


def launches(call: Call, device: torch.device) -> float | None:
    """Count the kernels, copies and fills that a call launches; None without a GPU, or if the profiler sees none."""
    if device.type != "cuda":
        return None
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize(device)
    calls = 5
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(calls):
            call()
        torch.cuda.synchronize(device)
    seen = sum(1 for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA)
    return seen / calls if seen else None
