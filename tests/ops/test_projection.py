"""The public projections: their results, checks, backends and transforms."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simmst.nn import ProbSparseAttention
from simmst.ops import merge_heads, split_heads

F64 = torch.float64


def splitting(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=F64).to(dtype)

    layers = {"weights": [draw(8, 6), draw(8, 6)], "biases": [draw(8), None]}
    return {"x": draw(2, 5, 6), **layers, "num_heads": 4, "norm_weight": draw(6), "norm_bias": draw(6)}


def merging(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    sizes = {"x": (2, 4, 5, 2), "weight": (6, 8), "bias": (6,), "residual": (2, 5, 6), "scale": (2, 6)}
    return {name: torch.randn(size, generator=generator, dtype=F64).to(dtype) for name, size in sizes.items()}


def test_split_heads_is_what_torchs_layers_compute() -> None:
    given = splitting(F64)
    tokens = nn.functional.layer_norm(given["x"], (6,), given["norm_weight"], given["norm_bias"])
    for found, weight, bias in zip(split_heads(**given), given["weights"], given["biases"], strict=True):
        expected = tokens @ weight.mT + (0.0 if bias is None else bias)
        torch.testing.assert_close(found, expected.reshape(2, 5, 4, 2).transpose(1, 2), rtol=0, atol=1e-12)
    for found, wide in zip(split_heads(**splitting()), split_heads(**given), strict=True):
        torch.testing.assert_close(found.double(), wide, rtol=0, atol=1e-5)


def test_merge_heads_is_what_torchs_layers_compute() -> None:
    given = merging(F64)
    tokens = given["x"].transpose(1, 2).reshape(2, 5, 8)
    expected = given["residual"] + given["scale"][:, None] * (tokens @ given["weight"].mT + given["bias"])
    torch.testing.assert_close(merge_heads(**given), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(merge_heads(**merging()).double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, F64])
@pytest.mark.parametrize("backend", [None, "cpu", "triton", "cuda"])
def test_other_dtypes_and_backends_run_by_the_reference(dtype, backend) -> None:
    for function, given in ((split_heads, splitting(dtype)), (merge_heads, merging(dtype))):
        found, expected = function(**given, backend=backend), function(**given, backend="reference")
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_reference_has_derivatives_of_any_order_and_follows_transforms() -> None:
    given = merging(F64)
    x, rest = given.pop("x").requires_grad_(), given
    call = lambda x: merge_heads(x, **rest, backend="reference").square()  # noqa: E731
    assert torch.autograd.gradgradcheck(call, x, fast_mode=True)
    split = splitting()
    x = split.pop("x")
    mapped = torch.func.vmap(lambda x: split_heads(x[None], **split)[0][0])(x)
    torch.testing.assert_close(mapped, split_heads(x, **split)[0])


def test_autocast_does_what_it_does_to_torchs_layers() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for function, given in ((split_heads, splitting()), (merge_heads, merging())):
            torch.testing.assert_close(function(**given), function(**given, backend="reference"), rtol=0, atol=0)


def test_second_derivatives_of_the_kernels_are_refused() -> None:
    pytest.importorskip("simmst._cpu", reason="this installation has no compiled CPU module")
    given = merging()
    given["x"].requires_grad_()
    out = merge_heads(**given, backend="cpu")
    (gradient,) = torch.autograd.grad(out.square().sum(), given["x"], create_graph=True)
    with pytest.raises(RuntimeError, match=r'first derivatives only.*backend="reference"'):
        gradient.sum().backward()


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("crossed", [False, True])
def test_the_layer_adds_its_attention_in_one_way_or_in_parts(crossed, hooked) -> None:
    torch.manual_seed(0)
    layer, norm = ProbSparseAttention(8, 2, factor=100).eval(), nn.LayerNorm(8)
    tokens, scale = torch.randn(3, 5, 8), torch.rand(3, 8)
    memory = torch.randn(3, 7, 8) if crossed else None
    calls: list[int] = []
    if hooked:
        layer.q_proj.register_forward_hook(lambda *args: calls.append(1))
    expected = tokens + scale[:, None] * layer(norm(tokens), memory)
    calls.clear()
    torch.testing.assert_close(layer.added(tokens, norm, memory, scale), expected, rtol=1e-5, atol=1e-5)
    assert len(calls) == hooked


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, "x must be a torch.Tensor, got list"),
        ({"x": torch.ones(2, 5, 6, dtype=F64)}, TypeError, "must have one dtype"),
        ({"x": torch.ones(2, 6)}, ValueError, "x must be (N, T, C)"),
        ({"weights": []}, ValueError, "one to 3 weights and as many biases are needed, got 0 and 2"),
        ({"weights": [torch.ones(8, 6), torch.ones(4, 6)]}, ValueError, "weights[1] must have shape (8, 6)"),
        ({"biases": [torch.ones(7), None]}, ValueError, "biases[0] must have shape (8,)"),
        ({"num_heads": 3}, ValueError, "num_heads=3 does not divide the 8 features"),
        ({"norm_weight": None}, ValueError, "norm_bias was given without norm_weight"),
        ({"norm_weight": torch.ones(5)}, ValueError, "norm_weight must have shape (6,)"),
        ({"eps": -1.0}, ValueError, "eps must be at least 0 and finite, got -1.0"),
    ],
)
def test_bad_input_of_split_heads(changes, error, message) -> None:
    with pytest.raises(error, match=re.escape(message)):
        split_heads(**{**splitting(), **changes})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"weight": torch.ones(6, 8, device="meta")}, ValueError, "must be on one device"),
        ({"x": torch.ones(2, 5, 8)}, ValueError, "x must be (N, heads, T, D)"),
        ({"residual": torch.ones(2, 5, 7)}, ValueError, "residual must have shape (2, 5, 6)"),
        ({"scale": torch.ones(2, 7)}, ValueError, "scale must have shape (2, 6)"),
        ({"scale": torch.ones(2, 6, requires_grad=True)}, ValueError, "scale requires a gradient"),
    ],
)
def test_bad_input_of_merge_heads(changes, error, message) -> None:
    with pytest.raises(error, match=re.escape(message)):
        merge_heads(**{**merging(), **changes})
