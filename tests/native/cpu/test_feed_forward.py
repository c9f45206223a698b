"""The feed-forward part in C++ against plain PyTorch: every instruction set, option, width, layout and thread count."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from simmst.core.feed_forward import Options
from simmst.ops import feed_forward
from simmst.ops.backends import implementation
from simmst.ops.feed_forward import library
from simmst.reference.feed_forward import feed_forward as reference

_cpu = pytest.importorskip("simmst._cpu", reason="this installation has no compiled CPU module")
cpu = implementation("feed_forward", "cpu")

F64 = torch.float64
ISAS = _cpu.instruction_sets()
NAMES = ("x", "in_weight", "in_bias", "out_weight", "out_bias", "norm_weight", "norm_bias", "addend", "scale")


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SIMMST_CPU_ISA", request.param)
    name: str = request.param
    return name


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def poison() -> Iterator[None]:
    """Fill every torch.empty with NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def case(
    shape: tuple[int, ...], hidden: int, outputs: int | None = None, *, without: tuple[str, ...] = (), **options: Any
) -> tuple[list[Tensor | None], Options]:
    """Return operands in float32, except those named in `without`, and options.

    A large eps keeps the LayerNorm of a few similar numbers from magnifying the rounding of both sides.
    """
    generator = torch.Generator().manual_seed(0)
    inputs, series = shape[-1], shape[:-2]
    outputs = inputs if outputs is None else outputs
    chosen = Options(**{"residual": inputs == outputs, "norm_first": True, "eps": 0.1, **options})
    normed = inputs if chosen.norm_first else outputs
    sizes = [shape, (hidden, inputs), (hidden,), (outputs, hidden), (outputs,), (normed,), (normed,)]
    sizes += [(*series, hidden), (*series, outputs)]
    factors = [1.0, inputs**-0.5, 1.0, hidden**-0.5, *[1.0] * 5]
    drawn = [torch.randn(size, generator=generator) * factor for size, factor in zip(sizes, factors, strict=True)]
    drawn[8] = (drawn[8] > 0).float() * 2
    return [None if name in without else tensor for name, tensor in zip(NAMES, drawn, strict=True)], chosen


def named(operands: list[Tensor | None], options: Options) -> dict[str, Any]:
    return {**dict(zip(NAMES, operands, strict=True)), **options._asdict()}


def both_ways(function: Callable[..., Tensor], operands: Any, options: Options, grad: Tensor) -> list[Tensor]:
    """Return the result and the gradients of all given operands except the scale."""
    leaves = [None if each is None else each.detach().requires_grad_(i < 8) for i, each in enumerate(operands)]
    out = function(**named(leaves, options))
    return [out.detach(), *torch.autograd.grad(out, [leaf for leaf in leaves[:8] if leaf is not None], grad)]


def compare(operands: list[Tensor | None], options: Options) -> None:
    """Assert that errors are at most twice those of plain PyTorch in float32, plus a tiny term."""
    grad = torch.randn(cpu.forward(*operands, options).shape, generator=torch.Generator().manual_seed(1))
    ours = both_ways(lambda **given: feed_forward(**given, backend="cpu"), operands, options, grad)
    plain = both_ways(reference, operands, options, grad)
    wide = [None if each is None else each.double() for each in operands]
    exact = both_ways(reference, wide, options, grad.double())
    for one, two, three in zip(ours, plain, exact, strict=True):
        assert one.shape == three.shape
        assert one.is_contiguous()
        if one.numel() == 0:
            continue
        allowed = 2 * (two - three).abs().max() + 1e-6 * max(1.0, float(three.abs().max()))
        assert (one - three).abs().max() <= allowed  # False for NaN


# Tails of vectors, panels, register blocks and blocks of rows; more rows than a chunk; widths that differ.
SHAPES = [((1, 1, 1), 1, 1), ((3, 24, 32), 128, 32), ((5, 7, 12), 32, 64), ((40, 13, 33), 47, 33), ((2, 3, 5), 70, 19)]


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("without", [(), ("norm_weight", "norm_bias", "addend", "scale")], ids=["all", "plain"])
@pytest.mark.parametrize(("shape", "hidden", "outputs"), SHAPES)
def test_it_is_as_exact_as_plain_pytorch(isa, poison, shape, hidden, outputs, without, norm_first) -> None:
    compare(*case(shape, hidden, outputs, without=without, norm_first=norm_first))


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_every_option(isa, residual, norm_first) -> None:
    optional = ("in_bias", "out_bias", "norm_bias", "addend", "scale")
    for without in itertools.chain(itertools.combinations(optional, 1), itertools.combinations(optional, 4)):
        compare(*case((4, 5, 6), 20, without=without, residual=residual, norm_first=norm_first))


@settings(
    max_examples=min(60, settings.default.max_examples),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(data=st.data())
def test_any_shape_and_layout(monkeypatch: pytest.MonkeyPatch, data: st.DataObject) -> None:
    series = data.draw(st.lists(st.integers(0, 4), max_size=3))
    steps, inputs, hidden, outputs = (data.draw(st.integers(low, 40)) for low in (0, 1, 1, 1))
    monkeypatch.setenv("SIMMST_CPU_ISA", data.draw(st.sampled_from(ISAS)))
    same, first = data.draw(st.booleans()), data.draw(st.booleans())
    operands, options = case((*series, steps, inputs), hidden, inputs if same else outputs, norm_first=first)
    if data.draw(st.booleans()):
        operands = [None if each is None else apart(each) for each in operands]
    compare(operands, options)


def apart(tensor: Tensor) -> Tensor:
    """Return the same values, with an entry of NaN after each."""
    return torch.stack([tensor, torch.full_like(tensor, torch.nan)], dim=-1)[..., 0]


@pytest.mark.parametrize("shape", [(7,), (6, 7)])
def test_tokens_without_a_series(shape) -> None:
    compare(*case(shape, 10, without=("addend", "scale")))


def test_a_gradient_of_any_strides() -> None:
    operands, options = case((2, 6, 9), 20)
    grad, wanted = torch.randn(9, 6, 2).permute(2, 1, 0), [True] * 8
    for one, two in zip(
        cpu.backward(grad, *operands, options, wanted),
        cpu.backward(grad.contiguous(), *operands, options, wanted),
        strict=True,
    ):
        assert torch.equal(one, two)


def test_the_tails_of_gelu(isa) -> None:
    x = torch.tensor([-torch.inf, -1e38, -100.0, -5.41, -5.39, -0.0, 1e-30, 5.39, 5.41, 100.0, 1e38, torch.nan])[
        :, None
    ]
    one = torch.ones(1, 1)
    out = feed_forward(x, one, None, one, None, residual=False, backend="cpu")
    torch.testing.assert_close(out, torch.nn.functional.gelu(x), equal_nan=True, rtol=1e-6, atol=3e-7)


def test_runs_and_thread_counts_agree_to_the_bit(isa, threads) -> None:
    operands, options = case((150, 12, 32), 128)
    grad = torch.randn(150, 12, 32)
    results = []
    for count in (1, 2, 1, 2):
        threads(count)
        results.append((cpu.forward(*operands, options), *cpu.backward(grad, *operands, options, [True] * 8)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("wanted", range(8))
def test_only_the_gradients_wanted(wanted, norm_first) -> None:
    operands, options = case((3, 6, 8), 20, norm_first=norm_first)
    grad = torch.randn(3, 6, 8)
    everything = cpu.backward(grad, *operands, options, [True] * 8)
    mask = [index == wanted for index in range(8)]
    found = cpu.backward(grad, *operands, options, mask)
    assert [gradient is not None for gradient in found] == mask
    torch.testing.assert_close(found[wanted], everything[wanted], rtol=1e-6, atol=1e-6)


# --- through the public operator ------------------------------------------------------------------------------------


def leaves() -> tuple[list[Tensor], Options]:
    operands, options = case((2, 5, 6), 12)
    return [tensor.requires_grad_(i < 8) for i, tensor in enumerate(operands)], options


def public(operands: Any, options: Options) -> Tensor:
    return feed_forward(**named(operands, options), backend="cpu")


def test_it_is_the_automatic_choice() -> None:
    operands, options = leaves()
    assert "feed_forward" in _cpu.operators()
    assert torch.equal(feed_forward(**named(operands, options)), public(operands, options))


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def test_all_ways_to_the_kernel_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    operands, options = leaves()
    with Watching():
        through_the_library = public(operands, options)
        gradients = torch.autograd.grad(through_the_library.square().sum(), operands[:8])
    for operator in (library.forward, library.backward):
        monkeypatch.setattr(operator, "_overload", None)  # removed
    with torch.no_grad():
        assert torch.equal(public(operands, options), through_the_library)
    out = public(operands, options)
    assert torch.equal(out, through_the_library)
    for a, b in zip(torch.autograd.grad(out.square().sum(), operands[:8]), gradients, strict=True):
        assert torch.equal(a, b)
    with Watching(), pytest.raises(TypeError):
        public(operands, options)


@pytest.mark.parametrize("full", [True, False])
def test_opcheck(full) -> None:
    operands, options = leaves()
    if not full:
        operands = [each if i in (0, 1, 3) else None for i, each in enumerate(operands)]
    arguments = (*operands, *options, "cpu")
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.simmst.feed_forward, arguments, test_utils=tests)
    constants = [None if each is None else each.detach() for each in operands]
    wanted = [full or i in (0, 1, 3) for i in range(8)]
    backward = (torch.ones(2, 5, 6), *constants, *options, wanted, "cpu")
    torch.library.opcheck(torch.ops.simmst.feed_forward_backward, backward, test_utils=tests)


def test_compiles_without_a_break() -> None:
    operands, options = leaves()
    torch._dynamo.reset()
    compiled = torch.compile(lambda *t: public(t, options), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*operands), public(operands, options))
    found = [
        torch.autograd.grad(out.square().sum(), operands[:8])
        for out in (compiled(*operands), public(operands, options))
    ]
    torch.testing.assert_close(*found)


# --- bad input, checked in C++ in addition to Python --------------------------------------------------------------


def raw(**changes: Any) -> None:
    operands, _ = case((2, 3, 4), 5)
    buffers = [(tensor.data_ptr(), tensor.nbytes) for tensor in operands]
    out = torch.empty(2, 3, 4)
    values = {
        "sizes": [2, 3, 4, 5, 4],
        "norm": 1,
        "residual": True,
        "eps": 1e-5,
        "x": buffers[0],
        "weights": buffers[1:],
        "out": (out.data_ptr(), out.nbytes),
        "threads": 1,
    }
    _cpu.feed_forward_forward(*{**values, **changes}.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": [2, 3, 4, 5]}, "five sizes are needed, got 4"),
        ({"sizes": [2, 3, 0, 5, 4]}, "a size is too small: 0"),
        ({"sizes": [2, 3, 4, 5, 6]}, "a residual needs as many outputs as inputs, got 6 and 4"),
        ({"sizes": [2, 4, 4, 5, 4]}, "x must hold 128 bytes, got 96"),
        ({"sizes": [2, 3, 4, 6, 4]}, "in_weight must hold 96 bytes, got 80"),
        ({"norm": 3}, "norm must be from 0 to 2, got 3"),
        ({"weights": []}, "eight weights are needed, got 0"),
        ({"out": (0, 0)}, "out must hold 96 bytes, got 0"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
    ],
)
def test_bad_calls_are_refused(changes, message) -> None:
    raw()
    with pytest.raises(ValueError, match=message):
        raw(**changes)


def test_other_dtypes_are_refused() -> None:
    operands, options = case((2, 3, 4), 5)
    with pytest.raises(TypeError, match=r"expected float32 on cpu, got torch.float64 \(5, 4\)"):
        cpu.forward(operands[0], operands[1].double(), *operands[2:], options)
