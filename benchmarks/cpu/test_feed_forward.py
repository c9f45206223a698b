"""The feed-forward part against LayerNorm, linear, GELU and linear of torch, at the network's sizes.

    pytest benchmarks/cpu/test_feed_forward.py

768 series of 24 and of 6 tokens, 32 -> 128 -> 32 and 128 -> 128 -> 128 features, normalised first. One thread, float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("simmst._cpu", reason="the compiled module is not installed")
pytest.importorskip("pytest_benchmark", reason="pytest-benchmark comes with the bench extra")

from cpu.gate import Case, compare
from harness.checks import excess
from harness.machine import team
from simmst.ops import feed_forward

ROUNDS, SERIES = 25, 768
SIZES = [(24, 32, 128), (6, 32, 128), (6, 128, 128)]  # tokens, width, hidden
FLOORS = {"forward": 1.2, "both": 1.1}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with team(1):
        yield


class Layers(nn.Module):
    """LayerNorm, linear, GELU, linear and the residual in torch, and ours with the same weights."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def theirs(self, x: Tensor) -> Tensor:
        branch: Tensor = self.second(nn.functional.gelu(self.first(self.norm(x))))
        return x + branch

    def ours(self, x: Tensor) -> Tensor:
        weights = self.first.weight, self.first.bias, self.second.weight, self.second.bias
        return feed_forward(x, *weights, norm_weight=self.norm.weight, norm_bias=self.norm.bias, backend="cpu")


@pytest.fixture(params=SIZES, ids=str)
def work(request: pytest.FixtureRequest) -> tuple[Layers, Tensor, str, float]:
    tokens, width, hidden = request.param
    torch.manual_seed(0)
    name = f"{SERIES} x {tokens} tokens, {width} -> {hidden} -> {width}"
    return Layers(width, hidden), torch.randn(SERIES, tokens, width), name, 4.0 * SERIES * tokens * width * hidden


def test_forward(benchmark: Any, work: tuple[Layers, Tensor, str, float]) -> None:
    layers, x, name, flops = work
    with torch.inference_mode():
        exact = layers.double().theirs(x.double())
        layers.float()
        assert not excess("the output", layers.ours(x), layers.theirs(x), exact)
        sides = lambda: layers.ours(x), lambda: layers.theirs(x)
        case = Case(f"feed-forward, {name}", *sides, FLOORS["forward"], 2.0 * x.nbytes, flops, rounds=ROUNDS)
        compare(benchmark, case)


def test_forward_and_backward(benchmark: Any, work: tuple[Layers, Tensor, str, float]) -> None:
    layers, x, name, flops = work
    grad, parameters = torch.randn_like(x), list(layers.parameters())
    x.requires_grad_()

    def gradients(layer: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(layer(x), [x, *parameters], grad)

    layers.double()
    exact = gradients(layers.theirs, x.detach().double().requires_grad_(), grad.double())
    layers.float()
    for one, two, three in zip(*(gradients(f, x, grad) for f in (layers.ours, layers.theirs)), exact, strict=True):
        assert not excess("a gradient", one, two, three)
    sides = lambda: gradients(layers.ours, x, grad), lambda: gradients(layers.theirs, x, grad)
    case = Case(f"feed-forward + backward, {name}", *sides, FLOORS["both"], 5.0 * x.nbytes, 3 * flops, rounds=ROUNDS)
    compare(benchmark, case)
