"""The public day attention: its result, checks, backends and transforms."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from simmst.ops import day_attention

F64 = torch.float64


def inputs(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = {
        "query": (2, 3, 2, 4),
        "key": (2, 5, 2, 4),
        "bias": (2, 5),
        "alike": (2, 5, 3, 2),
        "alike_weight": (2, 2),
        "known": (2, 5, 3),
        "values": (2, 5, 3),
        "apart": (2, 5),
    }
    drawn = {name: torch.randn(size, generator=generator, dtype=F64).to(dtype) for name, size in sizes.items()}
    return {**drawn, "known": drawn["known"] > -0.5}


def test_it_is_the_softmax_over_the_days_that_are_known() -> None:
    given = inputs(F64)
    out = day_attention(**given)
    for series, slot, head in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(2)).tolist():
        score = given["key"][series, :, head] @ given["query"][series, slot, head] / 2 + given["bias"][head]
        score = score + given["alike"][series, :, slot] @ given["alike_weight"][head]
        weights = torch.where(given["known"][series, :, slot], score, -torch.inf).softmax(0)
        torch.testing.assert_close(out[series, slot, head], weights @ given["values"][series, :, slot])
        torch.testing.assert_close(out[series, slot, 2 + head], weights @ given["apart"][series])


def test_the_reference_has_derivatives_of_any_order() -> None:
    given = inputs(F64)
    known = given.pop("known")
    names, tensors = list(given), [tensor.requires_grad_() for tensor in given.values()]

    def call(*t: Tensor) -> Tensor:
        return day_attention(**dict(zip(names, t, strict=True)), known=known, backend="reference")

    assert torch.autograd.gradcheck(call, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, tensors, fast_mode=True)


@pytest.mark.parametrize("name", ["alike", "values", "apart"])
def test_what_the_kernels_have_no_gradient_of_goes_by_the_reference(name) -> None:
    given = inputs()
    given[name].requires_grad_()
    (gradient,) = torch.autograd.grad(day_attention(**given, backend="cpu").sum(), given[name])
    (expected,) = torch.autograd.grad(day_attention(**given, backend="reference").sum(), given[name])
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, F64])
def test_other_dtypes_backends_and_transforms_run_by_the_reference(dtype) -> None:
    given = inputs(dtype)
    expected = day_attention(**given, backend="reference")
    for backend in (None, "cpu", "triton", "cuda"):
        assert torch.equal(day_attention(**given, backend=backend), expected)
    wide = inputs(F64)
    (gradient,) = torch.func.grad(lambda bias: day_attention(**{**wide, "bias": bias}).sum(), argnums=(0,))(
        wide["bias"]
    )
    assert gradient.shape == wide["bias"].shape


def test_autocast_does_what_it_does_to_torchs_layers() -> None:
    given = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = day_attention(**given, backend="cpu")
        assert torch.equal(out, day_attention(**given, backend="reference"))


def test_second_derivatives_of_the_kernels_are_refused() -> None:
    pytest.importorskip("simmst._cpu", reason="this installation has no compiled CPU module")
    given = inputs()
    given["query"].requires_grad_()
    out = day_attention(**given, backend="cpu")
    (gradient,) = torch.autograd.grad(out.square().sum(), given["query"], create_graph=True)
    with pytest.raises(RuntimeError, match=r'first derivatives only.*backend="reference"'):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"query": [1.0]}, TypeError, "query must be a torch.Tensor, got list"),
        ({"key": torch.ones(2, 5, 2, 4, dtype=F64)}, TypeError, "must have one dtype"),
        ({"query": torch.ones(2, 3, 8)}, ValueError, "query must be (N, T, heads, E)"),
        ({"key": torch.ones(2, 5, 2, 3)}, ValueError, "key must have shape (2, 5, 2, 4)"),
        ({"bias": torch.ones(2, 4)}, ValueError, "bias must have shape (2, 5)"),
        ({"known": torch.ones(2, 5, 3)}, TypeError, "known must be a bool tensor, got float32 (2, 5, 3)"),
        ({"known": torch.ones(2, 5, 2).bool()}, ValueError, "known must have shape (2, 5, 3)"),
        ({"values": torch.ones(2, 5, 3, device="meta")}, ValueError, "must be on one device"),
        ({"known": torch.ones(2, 5, 3, device="meta").bool()}, ValueError, "known must be on the device of query"),
    ],
)
def test_bad_input(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        day_attention(**{**inputs(), **changes})
