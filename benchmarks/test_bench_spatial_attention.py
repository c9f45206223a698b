"""Spatial attention against the same layer put together from PyTorch's own operators.

    pytest benchmarks/test_bench_spatial_attention.py

Every case checks its result before it is timed. All sides run in turn in one process; medians make the ratio. The
rate of a large matrix product is measured in between, as the higher of torch's and numpy's, which call different
libraries: a layer that is nearly all products can be no faster. ``SIMMST_BENCH_THREADS`` sets the team (1),
``SIMMST_BENCH_ROUNDS`` the rounds (11).
"""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from simmst.nn import SpatialAttention

_cpu = pytest.importorskip("simmst._cpu", reason="the compiled module is not installed")
pytest.importorskip("pytest_benchmark", reason="pytest-benchmark comes with the bench extra")

THREADS = int(os.environ.get("SIMMST_BENCH_THREADS", "1"))
ROUNDS = int(os.environ.get("SIMMST_BENCH_ROUNDS", "11"))
MAPS, CHANNELS, HEADS = 96, 64, 4
SIDES = [11, 15, 20]  # N = 121, 225, 400
FLOORS = {"forward": 2.0, "attention": 3.0, "backward": 1.5}
_MATRIX = 768
_TABLE: list[dict[str, Any]] = []


@pytest.fixture(autouse=True, scope="module")
def team() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)
    if _TABLE:
        print("\n" + "\n".join(_rows()))


def _rows() -> list[str]:
    head = f"{'case':48} {'peer ms':>9} {'ours ms':>9} {'ratio':>6} {'floor':>6} {'GFLOP/s':>8} {'of product':>11}"
    return [head] + [
        f"{row['case']:48} {row['peer_ms']:9.2f} {row['ours_ms']:9.2f} {row['ratio']:6.2f} {row['floor']:6.1f} "
        f"{row['gflop_per_s']:8.1f} {row['percent_of_product']:10.0f}%"
        for row in _TABLE
    ]


class Layers(nn.Module):
    """The same weights in nn.MultiheadAttention with residual and LayerNorm, in its parts, and in our layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.theirs = nn.MultiheadAttention(CHANNELS, HEADS, batch_first=True)
        nn.init.normal_(self.theirs.in_proj_bias)
        self.norm = nn.LayerNorm(CHANNELS)
        self.ours = SpatialAttention(CHANNELS, HEADS, residual=True, norm=True, backend="cpp")
        self.ours.load_state_dict(self.theirs.state_dict(), strict=False)
        self.eval()

    def multihead_attention(self, x: Tensor) -> Tensor:
        return self.norm(self.theirs(x, x, x, need_weights=False)[0] + x)

    def chain(self, x: Tensor) -> Tensor:
        batch, positions, channels = x.shape
        packed = F.linear(x, self.theirs.in_proj_weight, self.theirs.in_proj_bias)
        query, key, value = packed.view(batch, positions, 3, HEADS, channels // HEADS).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(x.shape)
        return self.norm(F.linear(heads, self.theirs.out_proj.weight, self.theirs.out_proj.bias) + x)


class Case(NamedTuple):
    """Two sides of a comparison; flops and bytes are what the layer has to compute and move at least."""

    name: str
    ours: Callable[[], Any]
    peer: Callable[[], Any]
    flops: int
    bytes: int
    floor: float


def _timed(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _compare(benchmark: Any, case: Case) -> None:
    """Time both sides in turn, hand ours to pytest-benchmark, and hold the ratio to its floor."""
    square = torch.ones(_MATRIX, _MATRIX)
    array = np.ones((_MATRIX, _MATRIX), dtype=np.float32)
    sides: dict[str, Callable[[], Any]] = {
        "ours": case.ours,
        "peer": case.peer,
        "torch": lambda: square @ square,
        "numpy": lambda: array @ array,
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    peaks = {}
    for name, function in sides.items():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        function()
        peaks[name] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    for _ in range(ROUNDS):
        for name, function in sides.items():
            seconds[name].append(_timed(function))
    median = {name: statistics.median(times) for name, times in seconds.items()}
    best = {name: min(times) for name, times in seconds.items()}
    product = 2 * _MATRIX**3 / min(median["torch"], median["numpy"])
    info = {
        "case": case.name,
        "peer_ms": 1e3 * median["peer"],
        "ours_ms": 1e3 * median["ours"],
        "ratio": median["peer"] / median["ours"],
        "ratio_of_best": best["peer"] / best["ours"],
        "floor": case.floor,
        "flops": case.flops,
        "bytes": case.bytes,
        "gflop_per_s": case.flops / median["ours"] / 1e9,
        "product_gflop_per_s": product / 1e9,
        "percent_of_product": 100 * case.flops / median["ours"] / product,
        "peak_kib_over_what_ran_before": {name: peaks[name] for name in ("ours", "peer")},
        "threads": torch.get_num_threads(),
        "isa": _cpu.instruction_set(),
        "torch": torch.__version__,
    }
    _TABLE.append(info)
    benchmark.extra_info.update(info)
    benchmark.pedantic(case.ours, rounds=3, iterations=1, warmup_rounds=1)
    assert info["ratio"] >= case.floor, f"{case.name}: {info['ratio']:.2f} times the peer, at least {case.floor}"


def _flops(positions: int, *, backward: bool) -> int:
    """Of the products alone: the projections, and two products of N x N x D per head forward, five backward.

    Backward counts what the gradients need, not that projections and attention are computed again.
    """
    projections, scores = 8 * positions * CHANNELS**2, 4 * positions**2 * CHANNELS
    return MAPS * (projections + scores + (2 * projections + scores * 5 // 2 if backward else 0))


def _assert_close(ours: Tensor, peer: Tensor, exact: Tensor) -> None:
    """The error is at most twice the peer's, which computes the same in float32, plus a rounding."""
    error, allowed = (ours - exact).abs().max(), (peer - exact).abs().max()
    assert error <= 2 * allowed + 1e-6 * exact.abs().max(), (error.item(), allowed.item())


@pytest.fixture(scope="module")
def layers() -> Layers:
    return Layers()


@pytest.fixture(params=SIDES, ids=[f"N={side * side}" for side in SIDES])
def maps(request: pytest.FixtureRequest) -> Tensor:
    """(B, C, H, W)"""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(MAPS, CHANNELS, request.param, request.param, generator=generator)


@pytest.mark.parametrize("layout", ["tokens", "maps"])
@pytest.mark.parametrize("peer", ["chain", "multihead_attention"])
def test_forward(benchmark: Any, layers: Layers, maps: Tensor, peer: str, layout: str) -> None:
    """The peers get tokens in either case; for maps they would have to permute twice, which is not counted."""
    tokens = maps.flatten(2).mT.contiguous()
    x = tokens if layout == "tokens" else maps
    theirs = getattr(layers, peer)
    with torch.inference_mode():
        exact = layers.double().chain(tokens.double())
        layers.float()
        ours = layers.ours(x)
        _assert_close(ours if layout == "tokens" else ours.flatten(2).mT, theirs(tokens), exact)
        case = Case(
            f"forward, {layout}, N={tokens.shape[1]}, {peer}",
            lambda: layers.ours(x),
            lambda: theirs(tokens),
            _flops(tokens.shape[1], backward=False),
            2 * x.nbytes,
            FLOORS["forward" if peer == "chain" else "attention"],
        )
        _compare(benchmark, case)


def test_forward_and_backward(benchmark: Any, layers: Layers, maps: Tensor) -> None:
    tokens = maps.flatten(2).mT.contiguous().requires_grad_()
    gradient = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(2))

    def gradients(layer: Callable[[Tensor], Tensor], parameters: list[nn.Parameter]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(layer(tokens), [tokens, *parameters], gradient)

    their_parameters = [*layers.theirs.parameters(), *layers.norm.parameters()]
    our_parameters = list(layers.ours.parameters())
    wide = tokens.detach().double().requires_grad_()
    layers.double()
    exact = torch.autograd.grad(layers.chain(wide), [wide, *their_parameters], gradient.double())
    layers.float()
    both = gradients(layers.ours, our_parameters), gradients(layers.chain, their_parameters)
    for one, two, three in zip(*both, exact, strict=True):
        _assert_close(one, two, three)
    case = Case(
        f"forward + backward, tokens, N={tokens.shape[1]}, chain",
        lambda: gradients(layers.ours, our_parameters),
        lambda: gradients(layers.chain, their_parameters),
        _flops(tokens.shape[1], backward=True),
        5 * tokens.nbytes,
        FLOORS["backward"],
    )
    _compare(benchmark, case)
