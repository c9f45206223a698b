"""The two attention operators at the network's sizes, where calls take a millisecond and no product is large.

    pytest benchmarks/cpu/test_small_shapes.py

384 maps of 25 positions and 128 sequences of 72 tokens, 32 channels, heads of 8 and 16, against linear, SDPA, linear,
residual and LayerNorm; 768 heads of 24, 36 and 60 tokens, 8 and 16 wide, against `scaled_dot_product_attention`. One
thread, float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

pytest.importorskip("simmst._cpu", reason="the compiled module is not installed")
pytest.importorskip("pytest_benchmark", reason="pytest-benchmark comes with the bench extra")

from cpu.gate import Case, compare
from cpu.test_spatial_attention import Layers
from harness.checks import excess
from harness.machine import team
from simmst.core.prob_sparse_attention import informer_count
from simmst.ops import prob_sparse_attention
from simmst.reference import prob_sparse_attention as reference

CHANNELS, ROUNDS = 32, 25
SPATIAL = [(384, 25, 2), (384, 25, 4), (128, 72, 2), (128, 72, 4)]  # sequences, positions, heads
TOKENS, WIDTHS, SEQUENCES, HEADS = (24, 36, 60), (8, 16), 384, 2
FLOORS = {"spatial forward": 1.7, "spatial both": 1.4, "ProbSparse forward": 1.0, "ProbSparse both": 0.8}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with team(1):
        yield


@pytest.fixture(params=SPATIAL, ids=lambda shape: "maps={} N={} heads={}".format(*shape))
def spatial(request: pytest.FixtureRequest) -> tuple[Layers, Tensor, str]:
    maps, positions, heads = request.param
    tokens = torch.randn(maps, positions, CHANNELS, generator=torch.Generator().manual_seed(1))
    return Layers(CHANNELS, heads), tokens, f"{maps} x N={positions}, C={CHANNELS}, {heads} heads, chain"


def spatial_flops(tokens: Tensor) -> float:
    """Return the operations of the products alone, forward."""
    maps, positions, channels = tokens.shape
    return float(maps * (8 * positions * channels**2 + 4 * positions**2 * channels))


def test_spatial_forward(benchmark: Any, spatial: tuple[Layers, Tensor, str]) -> None:
    layers, tokens, name = spatial
    with torch.inference_mode():
        exact = layers.double().chain(tokens.double())
        layers.float()
        assert not excess("the output", layers.ours(tokens), layers.chain(tokens), exact)
        case = Case(
            f"small spatial forward, {name}",
            lambda: layers.ours(tokens),
            lambda: layers.chain(tokens),
            FLOORS["spatial forward"],
            bytes=2 * tokens.nbytes,
            flops=spatial_flops(tokens),
            rounds=ROUNDS,
        )
        compare(benchmark, case)


def test_spatial_forward_and_backward(benchmark: Any, spatial: tuple[Layers, Tensor, str]) -> None:
    layers, tokens, name = spatial
    tokens = tokens.requires_grad_()
    gradient = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(2))

    def gradients(layer: Callable[[Tensor], Tensor], parameters: list[nn.Parameter]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(layer(tokens), [tokens, *parameters], gradient)

    theirs, ours = [*layers.theirs.parameters(), *layers.norm.parameters()], list(layers.ours.parameters())
    wide = tokens.detach().double().requires_grad_()
    layers.double()
    exact = torch.autograd.grad(layers.chain(wide), [wide, *theirs], gradient.double())
    layers.float()
    for one, two, three in zip(gradients(layers.ours, ours), gradients(layers.chain, theirs), exact, strict=True):
        assert not excess("a gradient", one, two, three)
    case = Case(
        f"small spatial forward + backward, {name}",
        lambda: gradients(layers.ours, ours),
        lambda: gradients(layers.chain, theirs),
        FLOORS["spatial both"],
        bytes=5 * tokens.nbytes,
        flops=3 * spatial_flops(tokens),
        rounds=ROUNDS,
    )
    compare(benchmark, case)


class Work:
    """Query, key, value and sample for a number of tokens."""

    def __init__(self, length: int, width: int) -> None:
        torch.manual_seed(length)
        self.tensors = [torch.randn(SEQUENCES, HEADS, length, width) for _ in range(3)]
        self.sample = torch.randint(length, (length, informer_count(length, 5)))
        self.name = f"{SEQUENCES * HEADS} x L={length}, D={width}, SDPA"
        selected, heads = informer_count(length, 5), SEQUENCES * HEADS
        self.flops = float(heads * 2 * length * width * (self.sample.shape[-1] + 2 * selected))

    def ours(self) -> Tensor:
        return prob_sparse_attention(*self.tensors, sample=self.sample, backend="cpu")

    def check(self) -> None:
        """Check two sequences against the reference in float64, with the same selection."""
        part = [tensor[:2] for tensor in self.tensors]
        out, aux = prob_sparse_attention(*part, sample=self.sample, return_aux=True, backend="cpu")
        exact = reference.attend(*(tensor.double() for tensor in part), aux.top)[0]
        torch.testing.assert_close(out.double(), exact, rtol=0, atol=1e-5)
        torch.testing.assert_close(self.ours()[:2], out)


@pytest.fixture(params=[(length, width) for length in TOKENS for width in WIDTHS], ids=str)
def work(request: pytest.FixtureRequest) -> Work:
    made = Work(*request.param)
    made.check()
    return made


def test_prob_sparse_forward(benchmark: Any, work: Work) -> None:
    case = Case(
        f"small ProbSparse forward, {work.name}",
        work.ours,
        lambda: F.scaled_dot_product_attention(*work.tensors),
        FLOORS["ProbSparse forward"],
        bytes=4.0 * work.tensors[0].nbytes,
        flops=work.flops,
        rounds=ROUNDS,
    )
    with torch.inference_mode():
        compare(benchmark, case)


def test_prob_sparse_forward_and_backward(benchmark: Any, work: Work) -> None:
    inputs = [tensor.requires_grad_() for tensor in work.tensors]
    gradient = torch.randn_like(inputs[0])
    case = Case(
        f"small ProbSparse forward + backward, {work.name}",
        lambda: torch.autograd.grad(work.ours(), inputs, gradient),
        lambda: torch.autograd.grad(F.scaled_dot_product_attention(*inputs), inputs, gradient),
        FLOORS["ProbSparse both"],
        bytes=8.0 * inputs[0].nbytes,
        flops=3 * work.flops,
        rounds=ROUNDS,
    )
    compare(benchmark, case)
