"""The operators on the compiled kernels under opcheck, torch.compile, torch.export and autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from simmst.ops import (
    cutting_plane_lagrangian,
    cutting_plane_penalty,
    cutting_plane_step_,
    cutting_plane_values,
    pack_signs,
    prob_sparse_attention,
    spatial_attention,
)

pytest.importorskip("simmst._cpu", reason="this installation has no compiled CPU module")
OPS = torch.ops.simmst


def attention_inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, length, 8, generator=generator) for length in (30, 25, 25)]


def sparse(query: Tensor, key: Tensor, value: Tensor, sample: Tensor) -> Tensor:
    return prob_sparse_attention(query, key, value, factor=2, sample=sample, backend="cpu")


def sample() -> Tensor:
    return torch.randint(25, (30, 8), generator=torch.Generator().manual_seed(1))


def spatial(x: Tensor, weight: Tensor, out_weight: Tensor) -> Tensor:
    return spatial_attention(x, weight, None, out_weight, None, num_heads=2, residual=True, backend="cpu")


def spatial_inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(*shape, generator=generator) for shape in ((3, 8, 4, 5), (24, 8), (8, 8))]


def plane_inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(*shape, generator=generator) for shape in ((2, 4, 37), (2, 4), (2, 4), (2, 37))]


def planes_together(planes: Tensor, offsets: Tensor, multipliers: Tensor, point: Tensor) -> tuple[Tensor, ...]:
    values = cutting_plane_values(planes, offsets, point, backend="cpu")
    penalty = cutting_plane_penalty(planes, offsets, multipliers, point, backend="cpu")
    return values, penalty, cutting_plane_lagrangian(planes, offsets, multipliers, point, backend="cpu")


CASES: list[Any] = [
    pytest.param(sparse, lambda: [*attention_inputs(), sample()], id="prob_sparse_attention"),
    pytest.param(spatial, spatial_inputs, id="spatial_attention"),
    pytest.param(planes_together, plane_inputs, id="cutting_plane"),
]


@pytest.mark.parametrize("causal", [False, True])
def test_opcheck_prob_sparse(causal: bool) -> None:
    query, key, value = (x[0].requires_grad_() for x in attention_inputs())
    top, measure = OPS.prob_sparse_select(query.detach(), key.detach(), sample(), 5, "keys", "cpu")
    assert measure.shape == (3, 30)
    torch.library.opcheck(OPS.prob_sparse_select.default, (query.detach(), key.detach(), sample(), 5, "keys", "cpu"))
    options = (None, causal, 0.3, "cumsum" if causal else "mean", 0.0, "cpu")
    torch.library.opcheck(OPS.prob_sparse_attend.default, (query, key, value, top, *options))


@pytest.mark.parametrize("packed", [False, True])
def test_opcheck_cutting_planes(packed: bool) -> None:
    planes, offsets, multipliers, point = plane_inputs()
    stored = tuple(pack_signs(planes))[:2] if packed else (planes, None)
    grads = multipliers.clone().requires_grad_(), point.clone().requires_grad_()
    torch.library.opcheck(OPS.cutting_plane_values, (*stored, offsets, grads[1], "cpu"))
    for operator in (OPS.cutting_plane_penalty, OPS.cutting_plane_lagrangian):
        for with_gradient in (False, True):
            torch.library.opcheck(operator, (*stored, offsets, *grads, with_gradient, "cpu"))
    step = (*stored, multipliers, torch.ones_like(point), point, point.clone(), offsets, None, None, None, 0.1, "cpu")
    torch.library.opcheck(OPS.cutting_plane_step_, step)


@pytest.mark.parametrize(("function", "inputs"), CASES)
def test_compiled_whole_gives_the_eager_result_and_gradients(function: Any, inputs: Any) -> None:
    def gradients(call: Any) -> tuple[Tensor, ...]:
        tensors = [x.requires_grad_() if x.is_floating_point() else x for x in inputs()]
        out = call(*tensors)
        leaves = [x for x in tensors if x.is_floating_point()]
        out = out if isinstance(out, tuple) else (out,)
        total = sum(one.square().sum() for one in out)
        return (*out, *(g for g in torch.autograd.grad(total, leaves, allow_unused=True) if g is not None))

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(gradients(compiled), gradients(function), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("function", "inputs"), CASES)
def test_exported_gives_the_eager_result(function: Any, inputs: Any) -> None:
    class Module(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Any:
            return function(*tensors)

    exported = torch.export.export(Module(), tuple(inputs()))
    torch.testing.assert_close(exported.module()(*inputs()), function(*inputs()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_runs_the_attentions_in_its_dtype(dtype: torch.dtype) -> None:
    for function, tensors in ((sparse, [*attention_inputs(), sample()]), (spatial, spatial_inputs())):
        with torch.autocast("cpu", dtype=dtype):
            out = function(*tensors)
        assert out.dtype == dtype
        torch.testing.assert_close(out, function(*(x.to(dtype) if x.is_floating_point() else x for x in tensors)))


def test_the_step_compiles_and_updates_in_place() -> None:
    planes, offsets, coefficients, point = plane_inputs()
    gradient = torch.ones_like(point)

    def step(point: Tensor) -> Tensor:
        return cutting_plane_step_(
            planes, coefficients, gradient, point, torch.zeros_like(point), offsets, lr=0.1, backend="cpu"
        )

    eager, compiled = point.clone(), point.clone()
    expected = step(eager)
    torch.testing.assert_close(torch.compile(step, fullgraph=True, backend="aot_eager")(compiled), expected)
    assert torch.equal(eager, compiled)
    assert not torch.equal(eager, point)
