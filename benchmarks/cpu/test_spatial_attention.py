"""Spatial attention against the same layer built from PyTorch's own operators.

    pytest benchmarks/cpu/test_spatial_attention.py

Every case checks its result before it is timed. The roofline is the rate of matrix products, because the layer consists
almost only of them. ``SIMMST_BENCH_THREADS`` sets the team size (1).

``SIMMST_CPU_ISA=avx2 ATEN_CPU_CAPABILITY=avx2`` simulates a processor without AVX-512, on both sides.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

pytest.importorskip("simmst._cpu", reason="the compiled module is not installed")
pytest.importorskip("pytest_benchmark", reason="pytest-benchmark comes with the bench extra")

from cpu.gate import Case, compare
from harness.checks import excess
from harness.machine import instruction_set, team
from simmst.nn import SpatialAttention

THREADS = int(os.environ.get("SIMMST_BENCH_THREADS", "1"))
ROUNDS = 11
MAPS, CHANNELS, HEADS = 96, 64, 4
SIDES = [5, 11, 15, 20]  # N = 25, 121, 225, 400
# By positions, against the chain: the ratios aimed at, and those within reach (docs/results/speed.md says why).
GOALS = {
    "forward": {"avx512": {25: 5.0, 121: 3.5, 225: 3.2, 400: 3.0}, "avx2": {25: 4.0, 121: 3.0, 225: 2.5, 400: 2.2}},
    "backward": {"avx512": {25: 4.0, 121: 2.5, 225: 2.4, 400: 2.4}, "avx2": {25: 3.0, 121: 2.0, 225: 1.8, 400: 1.7}},
}
FLOORS = {
    "forward": {"avx512": {25: 1.5, 121: 1.8, 225: 1.8, 400: 1.8}, "avx2": {25: 1.4, 121: 1.7, 225: 1.7, 400: 1.6}},
    "backward": {"avx512": {25: 1.2, 121: 1.6, 225: 1.7, 400: 1.6}, "avx2": {25: 1.1, 121: 1.5, 225: 1.6, 400: 1.5}},
}
ATTENTION_FLOORS = {25: 1.5, 121: 2.2, 225: 3.0, 400: 3.0}  # against nn.MultiheadAttention


@pytest.fixture(autouse=True, scope="module")
def threads() -> Iterator[None]:
    with team(THREADS):
        yield


class Layers(nn.Module):
    """The same weights in nn.MultiheadAttention with residual and LayerNorm, in a chain, and in our layer."""

    def __init__(self, channels: int = CHANNELS, heads: int = HEADS) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.theirs = nn.MultiheadAttention(channels, heads, batch_first=True)
        nn.init.normal_(self.theirs.in_proj_bias)
        self.norm = nn.LayerNorm(channels)
        self.ours = SpatialAttention(channels, heads, residual=True, norm=True, backend="cpu")
        self.ours.load_state_dict(self.theirs.state_dict(), strict=False)
        self.eval()

    def multihead_attention(self, x: Tensor) -> Tensor:
        return self.norm(self.theirs(x, x, x, need_weights=False)[0] + x)

    def chain(self, x: Tensor) -> Tensor:
        batch, positions, _ = x.shape
        packed = F.linear(x, self.theirs.in_proj_weight, self.theirs.in_proj_bias)
        query, key, value = packed.view(batch, positions, 3, self.ours.num_heads, -1).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(x.shape)
        return self.norm(F.linear(heads, self.theirs.out_proj.weight, self.theirs.out_proj.bias) + x)


def _isa() -> str:
    return "avx512" if instruction_set().startswith("avx512") else "avx2"


def _flops(positions: int, *, backward: bool) -> int:
    """Return the operations of the products: the projections, and per head two of N x N x D forward, five backward.

    Backward counts what the gradients need, and not the recomputation of projections and attention.
    """
    projections, scores = 8 * positions * CHANNELS**2, 4 * positions**2 * CHANNELS
    return MAPS * (projections + scores + (2 * projections + scores * 5 // 2 if backward else 0))


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
    """The peers always get tokens; for maps they would have to permute twice, which is not counted."""
    tokens = maps.flatten(2).mT.contiguous()
    x = tokens if layout == "tokens" else maps
    theirs = getattr(layers, peer)
    with torch.inference_mode():
        exact = layers.double().chain(tokens.double())
        layers.float()
        ours = layers.ours(x)
        assert not excess("the output", ours if layout == "tokens" else ours.flatten(2).mT, theirs(tokens), exact)
        case = Case(
            f"spatial forward, {layout}, N={tokens.shape[1]}, {peer}",
            lambda: layers.ours(x),
            lambda: theirs(tokens),
            (FLOORS["forward"][_isa()] if peer == "chain" else ATTENTION_FLOORS)[tokens.shape[1]],
            bytes=2 * x.nbytes,
            flops=_flops(tokens.shape[1], backward=False),
            rounds=ROUNDS,
            goal=GOALS["forward"][_isa()][tokens.shape[1]] if peer == "chain" else 0.0,
        )
        compare(benchmark, case)


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
        assert not excess("a gradient", one, two, three)
    case = Case(
        f"spatial forward + backward, tokens, N={tokens.shape[1]}, chain",
        lambda: gradients(layers.ours, our_parameters),
        lambda: gradients(layers.chain, their_parameters),
        FLOORS["backward"][_isa()][tokens.shape[1]],
        bytes=5 * tokens.nbytes,
        flops=_flops(tokens.shape[1], backward=True),
        rounds=ROUNDS,
        goal=GOALS["backward"][_isa()][tokens.shape[1]],
    )
    compare(benchmark, case)
