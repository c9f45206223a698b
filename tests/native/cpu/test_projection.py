"""The projections in C++ against plain PyTorch: every instruction set, part, option, layout and thread count."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from simmst.core.projection import Options
from simmst.ops import merge_heads, split_heads
from simmst.ops.backends import implementation

_cpu = pytest.importorskip("simmst._cpu", reason="this installation has no compiled CPU module")
cpu = implementation("projection", "cpu")

ISAS = _cpu.instruction_sets()
Operands = list[Tensor | None]
Call = Callable[[Operands, str], Any]
# Series, steps, features of the tokens and of the layers, heads: tails, a whole block of rows, several chunks.
SIZES = [(1, 1, 1, 1, 1), (40, 24, 32, 32, 2), (3, 5, 6, 8, 4), (2, 7, 33, 20, 1), (5, 60, 12, 64, 8)]


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SIMMST_CPU_ISA", request.param)
    name: str = request.param
    return name


def draw(*size: int, factor: float = 1.0) -> Tensor:
    return torch.randn(size) * factor


def split_case(sizes: tuple[int, ...], parts: int, norm: bool, bias: bool) -> tuple[Operands, Call]:
    series, steps, inputs, outputs, heads = sizes
    torch.manual_seed(0)
    layers = [(draw(outputs, inputs, factor=inputs**-0.5), draw(outputs) if bias else None) for _ in range(parts)]
    norms = (draw(inputs), draw(inputs)) if norm else (None, None)
    operands = [draw(series, steps, inputs), *(each for layer in layers for each in layer), *norms]

    def call(t: Operands, backend: str) -> Any:
        last = {"norm_weight": t[-2], "norm_bias": t[-1], "eps": 0.1}
        return split_heads(t[0], t[1 : 1 + 2 * parts : 2], t[2 : 2 + 2 * parts : 2], heads, **last, backend=backend)

    return operands, call


def merge_case(sizes: tuple[int, ...], residual: bool, bias: bool, scale: bool) -> tuple[Operands, Call]:
    series, steps, outputs, inputs, heads = sizes
    torch.manual_seed(0)
    factors = (draw(series, outputs) > 0) * 2.0 if scale else None
    operands = [
        draw(series, heads, steps, inputs // heads),
        draw(outputs, inputs, factor=inputs**-0.5),
        draw(outputs) if bias else None,
        draw(series, steps, outputs) if residual else None,
    ]

    def call(t: Operands, backend: str) -> Any:
        own = None if factors is None else factors.to(t[0].dtype)
        return merge_heads(*t[:3], residual=t[3], scale=own, backend=backend)

    return operands, call


def both_ways(case: tuple[Operands, Call], dtype: torch.dtype, backend: str) -> list[Tensor]:
    """Return results and gradients of all operands."""
    operands, call = case
    leaves = [None if each is None else each.detach().to(dtype).requires_grad_() for each in operands]
    out = call(leaves, backend)
    out = out if isinstance(out, tuple) else (out,)
    torch.manual_seed(1)
    grads = [torch.randn(each.shape, dtype=torch.float64).to(dtype) for each in out]
    return [*(each.detach() for each in out), *torch.autograd.grad(out, [t for t in leaves if t is not None], grads)]


def compare(case: tuple[Operands, Call]) -> None:
    """Assert that errors are at most twice those of plain PyTorch in float32, plus a tiny term."""
    narrow = both_ways(case, torch.float32, "cpu"), both_ways(case, torch.float32, "reference")
    for one, two, three in zip(*narrow, both_ways(case, torch.float64, "reference"), strict=True):
        assert one.shape == three.shape
        if one.numel():
            allowed = 2 * (two - three).abs().max() + 1e-6 * max(1.0, float(three.abs().max()))
            assert (one - three).abs().max() <= allowed  # False for NaN


@pytest.mark.parametrize("sizes", SIZES)
def test_split_heads_is_as_exact_as_plain_pytorch(isa, sizes) -> None:
    for parts, norm, bias in itertools.product((1, 2, 3), (False, True), (False, True)):
        compare(split_case(sizes, parts, norm, bias))


@pytest.mark.parametrize("sizes", SIZES)
def test_merge_heads_is_as_exact_as_plain_pytorch(isa, sizes) -> None:
    for residual, bias, scale in itertools.product((False, True), repeat=3):
        compare(merge_case(sizes, residual, bias, scale))


@settings(
    max_examples=min(40, settings.default.max_examples),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(data=st.data())
def test_any_shape_and_layout(monkeypatch: pytest.MonkeyPatch, data: st.DataObject) -> None:
    series, steps, inputs = (data.draw(st.integers(low, high)) for low, high in ((0, 4), (0, 60), (1, 40)))
    heads, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 20))
    monkeypatch.setenv("SIMMST_CPU_ISA", data.draw(st.sampled_from(ISAS)))
    sizes, flags = (series, steps, inputs, heads * width, heads), [data.draw(st.booleans()) for _ in range(3)]
    case = split_case(sizes, data.draw(st.integers(1, 3)), *flags[:2])
    if data.draw(st.booleans()):
        case = merge_case(sizes, *flags)
    if data.draw(st.booleans()):
        spread = [None if each is None else torch.stack([each, each + 1], dim=-1)[..., 0] for each in case[0]]
        case = spread, case[1]
    compare(case)


def test_only_the_gradients_wanted() -> None:
    (x, *rest), _ = split_case((3, 5, 6, 8, 2), 2, norm=True, bias=True)
    operands = [x, *rest[:4], None, None, *rest[4:]]
    options = Options(0, 2, 1e-5)
    grads = [torch.randn(3, 2, 5, 4), torch.randn(3, 2, 5, 4), torch.empty(0)]
    there = [each is not None for each in operands]
    everything = cpu.backward(grads, *operands, None, options, [True] * 9)
    assert [each is not None for each in everything] == there
    for wanted in range(9):
        found = cpu.backward(grads, *operands, None, options, [place == wanted for place in range(9)])
        assert [place for place, each in enumerate(found) if each is not None] == [wanted] * there[wanted]
        if there[wanted]:
            torch.testing.assert_close(found[wanted], everything[wanted], rtol=1e-6, atol=1e-6)


def test_runs_and_thread_counts_agree_to_the_bit(isa) -> None:
    case, before = split_case((150, 12, 32, 32, 2), 3, norm=True, bias=True), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            results.append(both_ways(case, torch.float32, "cpu"))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("parts", [1, 3])
def test_opcheck(parts) -> None:
    (x, *rest), _ = split_case((3, 5, 6, 8, 2), parts, norm=True, bias=True)
    layers = [*rest[:-2], *[None] * (6 - 2 * parts)]
    operands = [each if each is None else each.requires_grad_() for each in (x, *layers, *rest[-2:])]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = (*operands, None, None, 0, 2, 1e-5, "cpu")
    torch.library.opcheck(torch.ops.simmst.projection, arguments, test_utils=tests)
    constants = [None if each is None else each.detach() for each in operands]
    grads = [torch.ones(3, 2, 5, 4) if place < parts else torch.empty(0) for place in range(3)]
    arguments = (*grads, *constants, None, 0, 2, 1e-5, [each is not None for each in operands], "cpu")
    torch.library.opcheck(torch.ops.simmst.projection_backward, arguments, test_utils=tests)


def test_compiles_without_a_break() -> None:
    for operands, call in (
        split_case((3, 5, 6, 8, 2), 2, norm=True, bias=True),
        merge_case((3, 5, 6, 8, 2), residual=True, bias=True, scale=True),
    ):
        torch._dynamo.reset()
        compiled = torch.compile(lambda t, backend, call=call: call(t, backend), fullgraph=True, backend="aot_eager")
        found = (both_ways((operands, each), torch.float32, "cpu") for each in (compiled, call))
        for one, two in zip(*found, strict=True):
            torch.testing.assert_close(one, two)


def raw(**changes: Any) -> None:
    x, weight, out = draw(2, 3, 4), draw(6, 4), torch.empty(2, 3, 6)
    values = {
        "sizes": [2, 3, 4, 6, 1, 0, 2],
        "eps": 1e-5,
        "x": (x.data_ptr(), x.nbytes),
        "weights": [(weight.data_ptr(), weight.nbytes), *[(0, 0)] * 5],
        "out": [(out.data_ptr(), out.nbytes)],
        "threads": 1,
    }
    _cpu.projection_forward(*{**values, **changes}.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": [2, 3, 4, 6, 1, 0]}, "seven sizes are needed, got 6"),
        ({"sizes": [2, 0, 4, 6, 1, 0, 2]}, "a size is too small: 0"),
        ({"sizes": [2, 3, 4, 6, 4, 0, 2]}, "there are at most three layers, got 4"),
        ({"sizes": [2, 3, 4, 6, 1, 0, 4]}, "6 features do not divide into 4 heads"),
        ({"sizes": [2, 3, 5, 6, 1, 0, 2]}, "x must hold 120 bytes, got 96"),
        ({"weights": []}, "6 weights are needed, got 0"),
        ({"out": [(0, 0)]}, "out must hold 144 bytes, got 0"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
    ],
)
def test_bad_calls_are_refused(changes, message) -> None:
    raw()
    with pytest.raises(ValueError, match=message):
        raw(**changes)
