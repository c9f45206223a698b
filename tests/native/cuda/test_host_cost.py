"""The cost of a call on the processor before the GPU has anything to do: microseconds, launches, allocations.

The emulator records launches instead of running them, so a call is only its host side. It is compared with
``scaled_dot_product_attention`` on a handful of numbers, which is that function's host side with almost no arithmetic.
Processor time is compared in turns in one process, so that a busy machine slows both.
"""

from __future__ import annotations

import importlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from simmst import ops
from simmst.native.cuda.launch import emulated

if not emulated():
    pytest.skip("runs in the emulator, with SIMMST_CUDA_EMULATION=1", allow_module_level=True)
emulator = pytest.importorskip("simmst._cuda_emulated", reason="build with SIMMST_CUDA_EMULATION=ON")

Calls = dict[str, Callable[[], Any]]


@pytest.fixture(autouse=True)
def nothing_runs() -> Iterator[None]:
    emulator.only_note_launches(True)
    yield
    emulator.only_note_launches(False)
    emulator.take_noted_launches()


@pytest.fixture(autouse=True)
def no_range_of_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Return such indices as on a GPU, where their values are not read."""
    for name in ("api", "short"):
        module = importlib.import_module(f"simmst.ops.prob_sparse_attention.{name}")
        monkeypatch.setattr(module, "check_index_range", lambda *given: None)


def prob_sparse(length: int, shared: bool = False) -> Calls:
    inputs = [torch.randn(1, 2, length, 16, dtype=torch.bfloat16) for _ in range(3)]
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    sample = torch.randint(length, (30,) if shared else (length, 30))

    def backward() -> None:
        out = ops.prob_sparse_attention(*leaves, sample=sample, backend="cuda")
        torch.autograd.grad(out, leaves, inputs[0])

    return {
        "forward": lambda: ops.prob_sparse_attention(*inputs, sample=sample, backend="cuda"),
        "backward": backward,
    }


def spatial() -> Calls:
    x, channels = torch.randn(1, 16, 4, 4), 16
    shapes = (3 * channels, channels), (3 * channels,), (channels, channels), (channels,), (channels,), (channels,)
    weights = [torch.randn(shape) for shape in shapes]
    leaves = [tensor.clone().requires_grad_() for tensor in (x, *weights)]

    def call(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        norm = {"norm_weight": weights[4], "norm_bias": weights[5]}
        return ops.spatial_attention(x, *weights[:4], num_heads=4, residual=True, **norm, backend="cuda")

    return {"forward": lambda: call(x, *weights), "backward": lambda: torch.autograd.grad(call(*leaves), leaves, x)}


def planes() -> Calls:
    rows, offsets, multipliers, point, gradient, anchor = (
        torch.randn(shape) for shape in ((8, 500), (8,), (8,), (500,), (500,), (500,))
    )
    state = torch.zeros(500), torch.zeros(500), torch.tensor(1.0)
    leaf = point.clone().requires_grad_()

    def backward() -> None:
        total = ops.cutting_plane_penalty(rows, offsets, multipliers, leaf, backend="cuda")
        torch.autograd.grad(total, leaf)

    def step(adam_state: Any = None) -> torch.Tensor:
        given = rows, multipliers, gradient, point, anchor, offsets
        return ops.cutting_plane_step_(*given, lr=0.1, adam_state=adam_state, backend="cuda")

    return {
        "forward": lambda: ops.cutting_plane_values(rows, offsets, point, backend="cuda"),
        "backward": backward,
        "step": step,
        "adam": lambda: step(state),
    }


def attention() -> Calls:
    x = torch.randn(1, 1, 8, 16)
    leaves = [x.clone().requires_grad_() for _ in range(3)]
    return {
        "forward": lambda: F.scaled_dot_product_attention(x, x, x),
        "backward": lambda: torch.autograd.grad(F.scaled_dot_product_attention(*leaves), leaves, x),
    }


def launches(call: Callable[[], Any]) -> list[str]:
    call()
    emulator.take_noted_launches()
    call()
    return [name.removeprefix("prob_sparse ") for name in emulator.take_noted_launches()]


SHORT, BACKWARD = ["forward_entry"], ["sum_rows", "backward_span", "finish_grad_query"]
LONG = ["list_samples", "measure_gathered", "select_largest", "attend_span", "finish_rows"]
SHARED = ["measure_shared", *LONG[2:]]
PLANES = ["cutting_plane_pass", "cutting_plane_finish"]
SPATIAL = ["spatial_attention_backward", "spatial_attention_sums"]


@pytest.mark.parametrize(
    ("calls", "direction", "expected"),
    [
        (prob_sparse(96), "forward", SHORT),
        (prob_sparse(96), "backward", SHORT + BACKWARD),
        (prob_sparse(720), "forward", LONG),
        (prob_sparse(720), "backward", LONG + BACKWARD),
        (prob_sparse(4000, shared=True), "forward", SHARED),
        (spatial(), "forward", ["spatial_attention_forward"]),
        (spatial(), "backward", ["spatial_attention_forward", *SPATIAL]),
        (planes(), "forward", PLANES),
        (planes(), "step", PLANES),
        (planes(), "adam", PLANES),
        (planes(), "backward", [*PLANES, PLANES[0]]),
    ],
)
def test_launches_a_call(calls: Calls, direction: str, expected: list[str]) -> None:
    assert launches(calls[direction]) == expected


def allocations(call: Callable[[], Any]) -> int:
    """Return how often a call asks torch's allocator for memory."""
    for _ in range(2):
        call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    return sum(event.name in ("aten::empty", "aten::empty_strided") for event in profile.events())


@pytest.mark.parametrize(
    ("calls", "direction", "expected"),
    [
        (prob_sparse(96), "forward", 2),  # the output, and one for everything else
        (prob_sparse(720), "forward", 2),
        (prob_sparse(96), "backward", 7),  # separately kept tensors, three gradients, workspace
        (prob_sparse(720), "backward", 7),
        (spatial(), "forward", 2),
        (planes(), "forward", 2),
        (planes(), "step", 2),
    ],
)
def test_allocations_a_call(calls: Calls, direction: str, expected: int) -> None:
    assert allocations(calls[direction]) == expected


def ratio(call: Callable[[], Any], standard: Callable[[], Any], turns: int = 11, repeats: int = 30) -> float:
    """Return a call's processor time relative to the standard's: the median of the turns."""
    taken: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(2 * turns + 2):
        ours = turn % 2 == 0
        begun = time.process_time()
        for _ in range(repeats):
            (call if ours else standard)()
        if turn > 1:  # the first turns are warm-ups
            taken[ours].append(time.process_time() - begun)
        emulator.take_noted_launches()
    return statistics.median(taken[True]) / statistics.median(taken[False])


@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="a sanitizer slows only our side")
@pytest.mark.parametrize(
    ("calls", "direction", "most"),
    [
        (prob_sparse(96), "forward", 2.6),
        (prob_sparse(96), "backward", 2.6),
        (prob_sparse(720), "forward", 2.6),
        (prob_sparse(720), "backward", 2.6),
        (planes(), "forward", 2.6),
        # More than twice if there is more to pass: 7 tensors with their gradients, 8 of a step. Adam's count of
        # steps is torch's own.
        (spatial(), "forward", 3.6),
        (spatial(), "backward", 3.6),
        (planes(), "step", 3.6),
        (planes(), "adam", 5.5),
    ],
)
def test_the_host_side_of_a_call_is_of_the_order_of_attention(calls: Calls, direction: str, most: float) -> None:
    # A third of slack for noise; on a GPU, where it matters, all of them were under 1.6 times.
    standard = attention()["backward" if direction == "backward" else "forward"]
    # Others on the machine can only spoil a measurement.
    found = []
    while len(found) < 4 and min(found, default=most) >= most:
        found.append(ratio(calls[direction], standard))
    assert min(found) < most, f"the median of turns took {found} times attention's"
