"""Cutting planes against the same work in plain PyTorch: two products with the planes and the update between them.

    pytest benchmarks/cpu/test_cutting_plane.py

Every case checks its result before it is timed. The roofline is the machine's read bandwidth, because a pass over the
planes cannot be faster than reading them. ``SIMMST_BENCH_THREADS`` sets the team size (2).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("simmst._cpu", reason="the compiled module is not installed")
pytest.importorskip("pytest_benchmark", reason="pytest-benchmark comes with the bench extra")

from cpu.gate import Case, compare
from harness.checks import excess
from harness.machine import instruction_set, read_bandwidth, team
from simmst.core.cutting_plane import PackedSigns, Planes, pack_signs
from simmst.ops import cutting_plane_penalty, cutting_plane_step_, cutting_plane_values

THREADS = int(os.environ.get("SIMMST_BENCH_THREADS", "2"))
ROUNDS = 9
FORMATS = ["float32", "bfloat16", "signs"]
STEP_GOALS = {"float32": 2.2, "bfloat16": 3.3, "signs": 9.0}
# The look-ups of two threads vary by a fifth from run to run; a Zen 3 without AVX-512 has 6.0 with Adam.
STEP_FLOORS = STEP_GOALS | {"signs": 7.5 if instruction_set().startswith("avx512") else 6.0}


@pytest.fixture(autouse=True, scope="module")
def threads() -> Iterator[None]:
    with team(THREADS):
        yield


def _stored(planes: Tensor, fmt: str) -> Planes:
    return pack_signs(planes) if fmt == "signs" else planes.to(getattr(torch, fmt))


def _nbytes(planes: Planes) -> int:
    return planes.bits.nbytes + planes.scale.nbytes if isinstance(planes, PackedSigns) else planes.nbytes


@pytest.fixture(scope="module")
def large() -> dict[str, Tensor]:
    """One problem of 64 planes and 2.1 million columns, 538 MB of float32."""
    generator = torch.Generator().manual_seed(0)
    planes, size = 64, 2_100_000
    return {
        "planes": torch.randn(planes, size, generator=generator),
        "coefficients": torch.rand(planes, generator=generator),
        "gradient": torch.randn(size, generator=generator),
        "point": torch.randn(size, generator=generator),
        "offsets": torch.randn(planes, generator=generator),
    }


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("adam", [False, True], ids=["sgd", "adam"])
def test_step(benchmark: Any, large: dict[str, Tensor], fmt: str, adam: bool) -> None:
    """The peer holds the planes in float32 whatever ours stores, because torch is fastest with float32 on a CPU."""
    stored, matrix = _stored(large["planes"], fmt), large["planes"]
    coefficients, gradient, offsets = large["coefficients"], large["gradient"], large["offsets"]
    anchor, ours, peer = (large["point"].clone() for _ in range(3))
    lr = 1e-6
    state = (torch.zeros_like(ours), torch.zeros_like(ours), torch.tensor(0.0)) if adam else None
    parameter = torch.nn.Parameter(peer)
    optimizer = torch.optim.Adam([parameter], lr=lr) if adam else None

    def run_peer() -> Tensor:
        direction = torch.addmv(gradient, matrix.T, coefficients)
        if optimizer is None:
            peer.add_(direction, alpha=-lr)
        else:
            parameter.grad = direction
            optimizer.step()
        return torch.addmv(offsets, matrix, peer)

    def run_ours() -> Tensor:
        return cutting_plane_step_(
            stored, coefficients, gradient, ours, anchor, offsets, lr=lr, adam_state=state, backend="cpu"
        )

    values, lines = run_ours(), slice(0, 8)
    rows = stored.unpack()[lines] if isinstance(stored, PackedSigns) else stored[lines].float()
    exact = torch.stack([row.double() @ (ours.double() - anchor.double()) for row in rows]) + offsets[lines].double()
    assert not excess("the values", values[lines], torch.addmv(offsets[lines], rows, ours - anchor), exact)
    # Gradient, anchor and point (and both averages) are each read once and written at most once; the planes are read.
    vectors = 9 if adam else 5
    compare(
        benchmark,
        Case(
            name=f"step {'adam' if adam else 'sgd'} L=64 N=2.1e6 {fmt}",
            ours=run_ours,
            peer=run_peer,
            bytes=_nbytes(stored) + (vectors - 1) * ours.nbytes,
            flops=4.0 * matrix.numel(),
            floor=STEP_FLOORS[fmt],
            goal=STEP_GOALS[fmt],
            rounds=ROUNDS,
            bandwidth=read_bandwidth,
        ),
    )


@pytest.mark.parametrize("fmt", FORMATS)
def test_values(benchmark: Any, large: dict[str, Tensor], fmt: str) -> None:
    stored, matrix, offsets, point = _stored(large["planes"], fmt), large["planes"], large["offsets"], large["point"]
    rows = stored.unpack()[:8] if isinstance(stored, PackedSigns) else stored[:8].float()
    exact = torch.stack([row.double() @ point.double() for row in rows]) + offsets[:8].double()
    ours = cutting_plane_values(stored, offsets, point, backend="cpu")
    assert not excess("the values", ours[:8], torch.addmv(offsets[:8], rows, point), exact)
    compare(
        benchmark,
        Case(
            name=f"values L=64 N=2.1e6 {fmt}",
            ours=lambda: cutting_plane_values(stored, offsets, point, backend="cpu"),
            peer=lambda: torch.addmv(offsets, matrix, point),
            bytes=_nbytes(stored) + point.nbytes,
            flops=2.0 * matrix.numel(),
            floor=0.8,
            rounds=ROUNDS,
            bandwidth=read_bandwidth,
        ),
    )


@pytest.mark.parametrize("fmt", FORMATS)
def test_penalty_and_gradient(benchmark: Any, fmt: str) -> None:
    generator = torch.Generator().manual_seed(1)
    problems, planes, size = 16, 16, 100_000
    matrix = torch.randn(problems, planes, size, generator=generator)
    offsets, multipliers = (torch.rand(problems, planes, generator=generator) for _ in range(2))
    point = torch.randn(problems, size, generator=generator, requires_grad=True)
    stored = _stored(matrix, fmt)

    def torch_penalty(matrix: Tensor, offsets: Tensor, multipliers: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
        values = torch.baddbmm(offsets.unsqueeze(-1), matrix, point.unsqueeze(-1)).squeeze(-1).relu()
        total = (multipliers * values.square()).sum(-1)
        gradient = torch.bmm((2 * multipliers * values).unsqueeze(1), matrix).squeeze(1)
        return total, gradient

    def ours() -> tuple[Tensor, Tensor]:
        total = cutting_plane_penalty(stored, offsets, multipliers, point, backend="cpu")
        return total, torch.autograd.grad(total.sum(), point)[0]

    def peer() -> tuple[Tensor, Tensor]:  # written by hand: cheaper than autograd, and the same work
        with torch.no_grad():
            return torch_penalty(matrix, offsets, multipliers, point)

    with torch.no_grad():
        unpacked = stored.unpack() if isinstance(stored, PackedSigns) else stored.float()
        plain = torch_penalty(unpacked, offsets, multipliers, point)
        exact = torch_penalty(unpacked.double(), offsets.double(), multipliers.double(), point.double())
    for got, expected, allowed in zip(ours(), exact, plain, strict=True):
        assert not excess("the penalty or its gradient", got, allowed, expected)
    compare(
        benchmark,
        Case(
            name=f"penalty+gradient P=L=16 N=1e5 {fmt}",
            ours=ours,
            peer=peer,
            bytes=_nbytes(stored) + 3 * point.nbytes,
            flops=4.0 * matrix.numel(),
            floor=1.5,
            rounds=ROUNDS,
            bandwidth=read_bandwidth,
        ),
    )
