"""The public feed-forward part: checks, backends, autocast and transforms."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simmst.errors import BackendUnavailableError
from simmst.ops import backends, feed_forward

F64 = torch.float64


def inputs(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    sizes = {
        "x": (2, 5, 6),
        "in_weight": (12, 6),
        "in_bias": (12,),
        "out_weight": (6, 12),
        "out_bias": (6,),
        "norm_weight": (6,),
        "norm_bias": (6,),
        "addend": (2, 12),
        "scale": (2, 6),
    }
    return {name: torch.randn(size, generator=generator, dtype=F64).to(dtype) for name, size in sizes.items()}


def in_modules(given: dict[str, Any], norm_first: bool) -> Tensor:
    """Compute the same with torch's modules."""
    first, second, norm = nn.Linear(6, 12, dtype=F64), nn.Linear(12, 6, dtype=F64), nn.LayerNorm(6, dtype=F64)
    with torch.no_grad():
        for module, name in ((first, "in"), (second, "out"), (norm, "norm")):
            module.weight.copy_(given[f"{name}_weight"])
            module.bias.copy_(given[f"{name}_bias"])
    x = given["x"]
    hidden = first(norm(x) if norm_first else x) + given["addend"][:, None]
    out = x + given["scale"][:, None] * second(nn.functional.gelu(hidden))
    result: Tensor = out if norm_first else norm(out)
    return result


@pytest.mark.parametrize("norm_first", [True, False])
def test_it_is_what_torchs_modules_compute(norm_first) -> None:
    given = inputs(F64)
    expected = in_modules(given, norm_first)
    torch.testing.assert_close(feed_forward(**given, norm_first=norm_first), expected, rtol=0, atol=1e-12)
    narrow = feed_forward(**inputs(), norm_first=norm_first)
    torch.testing.assert_close(narrow.double(), expected, rtol=0, atol=1e-5)


def test_the_reference_has_derivatives_of_any_order() -> None:
    given = inputs(F64)
    scale = given.pop("scale")
    names, tensors = list(given), [tensor.requires_grad_() for tensor in given.values()]

    def call(*t: Tensor) -> Tensor:
        return feed_forward(**dict(zip(names, t, strict=True)), scale=scale, backend="reference")

    assert torch.autograd.gradcheck(call, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, tensors, fast_mode=True)


def test_under_transforms_the_reference_runs() -> None:
    given = inputs()
    expected = feed_forward(**given)
    x, addend, scale = (given.pop(name) for name in ("x", "addend", "scale"))
    for backend in (None, "cpu"):
        mapped = torch.func.vmap(
            lambda x, addend, scale, backend=backend: feed_forward(
                x, addend=addend, scale=scale, backend=backend, **given
            )
        )(x, addend, scale)
        torch.testing.assert_close(mapped, expected)
    tangents = torch.func.jvp(lambda x: feed_forward(x, addend=addend, scale=scale, **given), (x,), (x,))
    assert tangents[1].shape == x.shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, F64])
def test_other_dtypes_run_by_the_reference(dtype) -> None:
    given = inputs(dtype)
    expected = feed_forward(**given, backend="reference")
    for backend in (None, "cpu"):
        assert torch.equal(feed_forward(**given, backend=backend), expected)


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_a_backend_without_a_kernel_leaves_it_to_the_reference(backend, monkeypatch) -> None:
    given = inputs()
    expected = feed_forward(**given, backend="reference")
    assert torch.equal(feed_forward(**given, backend=backend), expected)
    monkeypatch.setenv("SIMMST_BACKEND", backend)
    assert torch.equal(feed_forward(**given), expected)
    assert "feed_forward" in backends.OPERATORS
    rows = [row for row in backends.availability() if row.operator == "feed_forward" and row.backend == backend]
    assert [row.available for row in rows] == [False]


def test_unknown_backends_are_refused() -> None:
    with pytest.raises(ValueError, match="'fast'; it must be one of reference, cpu, triton, cuda"):
        feed_forward(**inputs(), backend="fast")
    with pytest.raises(BackendUnavailableError, match="feed_forward"):
        backends.choose("feed_forward", None, device=torch.device("cpu"), dtype=torch.int64)


def test_autocast_does_what_it_does_to_torchs_layers() -> None:
    given = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = feed_forward(**given, backend="cpu")
        expected = feed_forward(**given, backend="reference")
    assert torch.equal(out, expected)
    assert not torch.equal(out, feed_forward(**given, backend="reference"))


def test_second_derivatives_of_the_kernels_are_refused() -> None:
    pytest.importorskip("simmst._cpu", reason="this installation has no compiled CPU module")
    given = inputs()
    given["x"].requires_grad_()
    out = feed_forward(**given, backend="cpu")
    (gradient,) = torch.autograd.grad(out.square().sum(), given["x"], create_graph=True)
    with pytest.raises(RuntimeError, match=r'first derivatives only.*backend="reference"'):
        gradient.sum().backward()


def test_it_exports() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            given = {name: tensor for name, tensor in inputs().items() if name not in ("x", "addend", "scale")}
            return feed_forward(x, **given)

    x = torch.randn(3, 5, 6)
    program = torch.export.export(Model(), (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch", min=2)}})
    other = torch.randn(4, 5, 6)
    torch.testing.assert_close(program.module()(other), Model()(other))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, "x must be a torch.Tensor, got list"),
        ({"x": torch.ones(2, 5, 6, dtype=F64)}, TypeError, "must have one dtype, got x float64"),
        ({"x": torch.ones(2, 5, 7)}, ValueError, "x must be (..., C), in_weight (H, C)"),
        ({"x": torch.tensor(1.0)}, ValueError, "x must be (..., C)"),
        ({"in_weight": torch.ones(12, 6, device="meta")}, ValueError, "must be on one device"),
        ({"out_weight": torch.ones(6, 11)}, ValueError, "out_weight (O, H)"),
        ({"out_weight": torch.ones(5, 12)}, ValueError, "residual=True needs as many outputs as inputs, got 5 and 6"),
        ({"in_bias": torch.ones(11)}, ValueError, "in_bias must have shape (12,)"),
        ({"norm_weight": None}, ValueError, "norm_bias was given without norm_weight"),
        ({"norm_weight": torch.ones(5)}, ValueError, "norm_weight must have shape (6,)"),
        ({"addend": torch.ones(3, 12)}, ValueError, "addend must have shape (2, 12)"),
        ({"scale": torch.ones(2, 5)}, ValueError, "scale must have shape (2, 6)"),
        ({"scale": torch.ones(2, 6, requires_grad=True)}, ValueError, "scale requires a gradient"),
        ({"residual": 1}, TypeError, "residual must be True or False, got 1"),
        ({"norm_first": None}, TypeError, "norm_first must be True or False, got None"),
        ({"eps": -1.0}, ValueError, "eps must be at least 0 and finite, got -1.0"),
    ],
)
def test_bad_input(changes, error, message) -> None:
    with pytest.raises(error, match=re.escape(message)):
        feed_forward(**{**inputs(), **changes})


def test_an_addend_needs_a_series() -> None:
    given = inputs()
    with pytest.raises(ValueError, match="addend belongs to a series of tokens"):
        feed_forward(given["x"][0, 0], given["in_weight"], None, given["out_weight"], None, addend=torch.ones(12))
