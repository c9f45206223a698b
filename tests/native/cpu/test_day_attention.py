"""Day attention in C++ against plain PyTorch: every instruction set, shape, layout and thread count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from simmst.ops import day_attention
from simmst.ops.backends import implementation
from simmst.reference.day_attention import day_attention as reference

_cpu = pytest.importorskip("simmst._cpu", reason="this installation has no compiled CPU module")
cpu = implementation("day_attention", "cpu")

ISAS = _cpu.instruction_sets()
LEARNED = (0, 1, 2, 4)  # query, key, bias, alike_weight


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SIMMST_CPU_ISA", request.param)
    name: str = request.param
    return name


def case(series: int, slots: int, days: int, heads: int, width: int) -> list[Tensor]:
    """Return operands in float32; no day is known for the first slot of the first series."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    known = draw(series, days, slots) > -0.5
    known[:1, :, :1] = False
    alike = (draw(series, days, slots, 2) > 0).float()
    query, key = draw(series, slots, heads, width), draw(series, days, heads, width)
    learned = draw(heads, days), alike, draw(heads, 2)
    return [query, key, *learned, known, draw(series, days, slots), draw(series, days)]


def both_ways(function: Callable[..., Tensor], operands: list[Tensor]) -> list[Tensor]:
    """Return the result and the gradients of the learned operands."""
    leaves = [each.detach().requires_grad_(i in LEARNED) for i, each in enumerate(operands)]
    out = function(*leaves)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, [leaves[i] for i in LEARNED], grad)]


def ours(*operands: Tensor) -> Tensor:
    return day_attention(*operands, backend="cpu")


def compare(operands: list[Tensor]) -> None:
    """Assert that errors are at most twice those of plain PyTorch in float32, plus a tiny term."""
    wide = [each if each.dtype == torch.bool else each.double() for each in operands]
    sides = both_ways(ours, operands), both_ways(reference, operands), both_ways(reference, wide)
    for one, two, three in zip(*sides, strict=True):
        assert one.shape == three.shape
        if one.numel():
            allowed = 2 * (two - three).abs().max() + 1e-6 * max(1.0, float(three.abs().max()))
            assert (one - three).abs().max() <= allowed  # False for NaN


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (6, 6, 28, 8, 8), (3, 2, 7, 2, 5), (5, 17, 33, 3, 20)])
def test_it_is_as_exact_as_plain_pytorch(isa, sizes) -> None:
    compare(case(*sizes))


@settings(
    max_examples=min(40, settings.default.max_examples),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(data=st.data())
def test_any_shape_and_layout(monkeypatch: pytest.MonkeyPatch, data: st.DataObject) -> None:
    sizes = [data.draw(st.integers(low, high)) for low, high in ((0, 4), (0, 9), (0, 40), (1, 4), (1, 20))]
    monkeypatch.setenv("SIMMST_CPU_ISA", data.draw(st.sampled_from(ISAS)))
    operands = case(*sizes)
    if data.draw(st.booleans()):
        operands = [torch.stack([each, torch.ones_like(each)], dim=-1)[..., 0] for each in operands]
    compare(operands)


def test_a_slot_of_which_no_day_is_known_recalls_zero(isa) -> None:
    out = ours(*case(2, 3, 5, 2, 4))
    assert torch.equal(out[0, 0], torch.zeros(4))
    assert bool((out[1] != 0).all())


def test_large_scores_do_not_overflow(isa) -> None:
    operands = case(2, 3, 5, 2, 4)
    operands[0] = operands[0] * 300
    assert bool(ours(*operands).isfinite().all())
    compare(operands)


def test_runs_and_thread_counts_agree_to_the_bit(isa) -> None:
    operands, before = case(300, 6, 28, 8, 8), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            results.append(both_ways(ours, operands))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_opcheck() -> None:
    operands = [each.requires_grad_(i in LEARNED) for i, each in enumerate(case(2, 3, 5, 2, 4))]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.simmst.day_attention, (*operands, "cpu"), test_utils=tests)
    constants = [each.detach() for each in operands]
    arguments = (torch.ones(2, 3, 4), *constants, "cpu")
    torch.library.opcheck(torch.ops.simmst.day_attention_backward, arguments, test_utils=tests)


def test_compiles_without_a_break() -> None:
    operands = case(2, 3, 5, 2, 4)
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for one, two in zip(both_ways(compiled, operands), both_ways(ours, operands), strict=True):
        torch.testing.assert_close(one, two)


def raw(**changes: Any) -> None:
    buffers = [(each.data_ptr(), each.nbytes) for each in case(2, 3, 5, 2, 4)]
    out = torch.empty(2, 3, 4)
    values = {"sizes": [2, 3, 5, 2, 4], "inputs": buffers, "out": (out.data_ptr(), out.nbytes), "threads": 1}
    _cpu.day_attention_forward(*{**values, **changes}.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": [2, 3, 5, 2]}, "five sizes are needed, got 4"),
        ({"sizes": [2, 3, 0, 2, 4]}, "a size is too small: 0"),
        ({"sizes": [2, 3, 5, 2, 5]}, "query must hold 240 bytes, got 192"),
        ({"inputs": []}, "eight inputs are needed, got 0"),
        ({"out": (0, 0)}, "out must hold 96 bytes, got 0"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
    ],
)
def test_bad_calls_are_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        raw(**changes)


def test_other_dtypes_are_refused() -> None:
    operands = case(2, 3, 5, 2, 4)
    operands[5] = operands[5].float()
    with pytest.raises(TypeError, match=r"expected torch.bool on cpu, got torch.float32 \(2, 5, 3\)"):
        cpu.forward(*operands)
