"""The compiled cutting planes against plain PyTorch, for every format, instruction set and team size."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simmst.ops.cutting_plane import (
    PackedSigns,
    cutting_plane_lagrangian,
    cutting_plane_penalty,
    cutting_plane_step_,
    cutting_plane_values,
    pack_signs,
)
from simmst.reference import cutting_plane as reference

_cpu = pytest.importorskip("simmst._cpu", reason="the compiled module is not installed")
if "cutting_plane" not in _cpu.operators():
    pytest.skip("this build has no cutting_plane kernel", allow_module_level=True)
native = importlib.import_module("simmst.native.cpu.cutting_plane")

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
FORMATS = {"float32": F32, "float64": F64, "bfloat16": BF16, "float16": F16, "signs": None}
ISAS = _cpu.instruction_sets()
NAMES = ["values", "penalty", "lagrangian", "combine"]


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    monkeypatch.setenv("SIMMST_CPU_ISA", request.param)
    return request.param


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def poison():
    """Fill new tensors with NaN, so that an entry that is never written is noticed."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before)


def problem(shape, fmt="float32", dtype=F64, seed=0, inactive=0.25):
    """Return planes, offsets, multipliers (some zero), point, gradient, anchor."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=F64)

    rows, vector = shape[:-1], (*shape[:-2], shape[-1])
    planes = draw(*shape)
    scale = draw(*rows).abs() + 0.1
    planes = pack_signs(planes, scale) if fmt == "signs" else planes.to(FORMATS[fmt])
    offsets, multipliers = draw(*rows).to(dtype), draw(*rows).abs().to(dtype)
    multipliers[torch.rand(rows, generator=generator) < inactive] = 0.0
    return planes, offsets, multipliers, *(draw(*vector).to(dtype) for _ in range(3))


def wide(planes):
    """Return the stored entries as float64."""
    return planes.unpack(F64) if isinstance(planes, PackedSigns) else planes.double()


def outputs(module, planes, offsets, multipliers, point, gradient, anchor, adam=None):
    """Return every function's results by name, for the same problem."""
    results = {"values": module.values(planes, offsets, point)}
    for name in ("penalty", "lagrangian"):
        total, values = getattr(module, f"{name}_and_values")(planes, offsets, multipliers, point)
        results |= {name: total, f"{name} values": values}
    results["combine"] = module.combine(planes, multipliers, point.dtype)
    for kind in ("sgd", "adam"):
        moved = point.clone()
        state = None
        if kind == "adam":
            state = (gradient.clone() * 0.1, gradient.square(), torch.tensor(2.0))
        results[f"{kind} values"] = module.step_(
            planes, multipliers, gradient, moved, anchor, offsets, lr=0.03, adam_state=state
        )
        results[f"{kind} point"] = moved
        for name, tensor in zip(("exp_avg", "exp_avg_sq", "step"), state or (), strict=False):
            results[name] = tensor
    return results


def assert_exact(ours, expected):
    for name, tensor in expected.items():
        assert ours[name].shape == tensor.shape, name
        assert not ours[name].isnan().any(), name
        scale = max(1.0, tensor.abs().max().item()) if tensor.numel() else 1.0
        assert torch.allclose(ours[name].double(), tensor.double(), rtol=1e-10, atol=1e-10 * scale), name


def assert_twice_plain(ours, plain, exact):
    """Assert the 2x rule: at most twice the error of the computation in plain PyTorch, plus a rounding of a result."""
    for name, tensor in exact.items():
        assert ours[name].dtype == plain[name].dtype, name
        assert ours[name].shape == tensor.shape, name
        assert not ours[name].isnan().any(), name
        if tensor.numel() == 0:
            continue
        error, allowed = ((got[name].double() - tensor).abs().max() for got in (ours, plain))
        unit = torch.finfo(ours[name].dtype).eps
        assert error <= 2 * allowed + 2 * unit * tensor.abs().max() + 1e-30, (name, error.item(), allowed.item())


SHAPES = [(3, 13), (2, 9, 1029), (17, 2100), (1, 1), (0, 4), (3, 0), (2, 0, 5), (0, 3, 5)]


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("shape", [*SHAPES, (5, 9001)], ids=str)
def test_float64_agrees_with_the_reference(isa, threads, fmt, shape):
    planes, *rest = problem(shape, fmt)
    assert_exact(outputs(native, planes, *rest), outputs(reference, wide(planes), *rest))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("shape", [(2, 9, 1029), (17, 9001)], ids=str)
def test_lower_precisions_keep_the_rule(isa, fmt, dtype, shape):
    planes, *rest = problem(shape, fmt, dtype)
    exact = outputs(reference, wide(planes), *(tensor.double() for tensor in rest))
    assert_twice_plain(outputs(native, planes, *rest), outputs(reference, planes, *rest), exact)


@settings(
    max_examples=min(120, settings.default.max_examples),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)
@given(
    problems=st.sampled_from([None, 0, 1, 2, 5]),
    planes=st.one_of(st.integers(0, 20), st.just(300)),
    size=st.one_of(st.integers(0, 140), st.integers(1000, 1100), st.just(4161)),
    fmt=st.sampled_from(list(FORMATS)),
    isa=st.sampled_from(ISAS),
    layout=st.sampled_from(["plain", "rows apart", "transposed", "expanded"]),
    seed=st.integers(0, 3),
)
def test_any_shape_and_stride(problems, planes, size, fmt, isa, layout, seed):
    shape = (planes, size) if problems is None else (problems, planes, size)
    stored, *vectors = problem(shape, fmt, seed=seed)
    expected = outputs(reference, wide(stored), *vectors)

    def lay(tensor):
        if layout == "rows apart":
            return torch.nn.functional.pad(tensor, (3, 5), value=float("nan") if tensor.is_floating_point() else 255)[
                ..., 3 : 3 + tensor.shape[-1]
            ]
        if layout == "transposed":
            return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor.repeat_interleave(2)[::2]
        return tensor

    if layout == "expanded" and problems:
        stored = PackedSigns(stored.bits[:1], stored.scale[:1], size) if fmt == "signs" else stored[:1]
        expected = outputs(reference, wide(stored).expand(shape), *vectors)
        if fmt == "signs":
            stored = PackedSigns(stored.bits.expand(problems, -1, -1), stored.scale.expand(problems, -1), size)
        else:
            stored = stored.expand(shape)
    elif fmt == "signs":
        stored = PackedSigns(lay(stored.bits), lay(stored.scale), size)
    else:
        stored = lay(stored)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIMMST_CPU_ISA", isa)
        assert_exact(outputs(native, stored, *(lay(vector) for vector in vectors)), expected)


@pytest.mark.parametrize("layout", ["columns apart", "rows apart"])
def test_the_step_writes_through_strides(layout):
    planes, offsets, multipliers, point, gradient, anchor = problem((2, 3, 13))
    buffer = torch.full((2, 40), 7.0, dtype=F64)
    part = slice(1, 39, 3) if layout == "columns apart" else slice(5, 18)
    buffer[:, part] = point
    expected = point.clone()
    arguments = (multipliers, gradient), (anchor, offsets)
    out = native.step_(planes, *arguments[0], buffer[:, part], *arguments[1], lr=0.1)
    assert_exact(
        {"values": out}, {"values": reference.step_(planes.double(), *arguments[0], expected, *arguments[1], lr=0.1)}
    )
    torch.testing.assert_close(buffer[:, part], expected)
    untouched = torch.ones(40, dtype=torch.bool)
    untouched[part] = False
    assert (buffer[:, untouched] == 7.0).all()


def test_more_problems_than_65535(threads):
    planes, *rest = problem((70_001, 2, 3))
    assert_exact(outputs(native, planes, *rest), outputs(reference, wide(planes), *rest))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", ["penalty", "lagrangian"])
def test_gradients(isa, fmt, name):
    public = {"penalty": cutting_plane_penalty, "lagrangian": cutting_plane_lagrangian}[name]
    planes, offsets, multipliers, point, *_ = problem((3, 9, 1029), fmt)
    arguments = multipliers.requires_grad_(), point.requires_grad_()
    weights = torch.rand(3, dtype=F64)
    total = public(planes, offsets, *arguments, backend="cpu")
    expected = public(wide(planes), offsets, *arguments, backend="reference")
    ours = torch.autograd.grad(total, arguments, weights, retain_graph=True)
    theirs = torch.autograd.grad(expected, arguments, weights, create_graph=True)
    assert_exact(dict(enumerate(ours)), dict(enumerate(theirs)))
    # For a second derivative, the gradient comes from the library operators; it must be the same.
    again = torch.autograd.grad(total, arguments, weights, create_graph=True)
    assert_exact(dict(enumerate(again)), dict(enumerate(theirs)))
    second, second_expected = (
        torch.autograd.grad(sum(g.square().sum() for g in first), arguments) for first in (again, theirs)
    )
    torch.testing.assert_close(second, second_expected, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("packed", [False, True])
def test_gradcheck(packed):
    planes, offsets, multipliers, point, *_ = problem((2, 3, 5), "signs" if packed else "float64", inactive=0)
    multipliers.requires_grad_()
    point.requires_grad_()
    for function in (cutting_plane_penalty, cutting_plane_lagrangian):

        def call(m, x, function=function):
            return function(planes, offsets, m, x, backend="cpu")

        assert torch.autograd.gradcheck(call, (multipliers, point))
        assert torch.autograd.gradgradcheck(call, (multipliers, point))
        only = torch.autograd.grad(call(multipliers.detach(), point).sum(), point)[0]
        both = torch.autograd.grad(call(multipliers, point).sum(), [multipliers, point])[1]
        assert torch.equal(only, both)
    assert torch.autograd.gradcheck(lambda x: cutting_plane_values(planes, offsets, x, backend="cpu"), point)


@pytest.mark.parametrize("rows", [(12, 60_000), (40, 3, 2000)], ids=str)
def test_the_fused_gradient_is_the_one_of_the_library(rows, threads):
    planes, offsets, multipliers, point, *_ = problem(rows, dtype=F32)
    for name in ("penalty", "lagrangian"):
        total, values, gradient = getattr(native, f"{name}_and_gradient")(planes, offsets, multipliers, point)
        same, same_values = getattr(native, f"{name}_and_values")(planes, offsets, multipliers, point)
        assert torch.equal(total, same)
        assert torch.equal(values, same_values)
        slopes = multipliers if name == "lagrangian" else 2 * multipliers.double() * values.double().relu()
        torch.testing.assert_close(gradient, native.combine(planes, slopes, F32), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("adam", [False, True])
def test_many_steps_follow_torch_optim(isa, fmt, adam):
    planes, anchor_values, multipliers, point, gradient, anchor = problem((2, 11, 203), fmt)
    parameter = torch.nn.Parameter(point.clone())
    optimizer = torch.optim.Adam([parameter], lr=0.05) if adam else torch.optim.SGD([parameter], lr=0.05)
    state = (torch.zeros_like(point), torch.zeros_like(point), torch.tensor(0.0)) if adam else None
    matrix = wide(planes)
    for _ in range(30):
        parameter.grad = gradient + torch.einsum("pl,pln->pn", multipliers, matrix)
        optimizer.step()
        expected = anchor_values + torch.einsum("pln,pn->pl", matrix, parameter.detach() - anchor)
        values = cutting_plane_step_(
            planes, multipliers, gradient, point, anchor, anchor_values, lr=0.05, adam_state=state, backend="cpu"
        )
        assert_exact({"values": values, "point": point}, {"values": expected, "point": parameter.detach()})
        multipliers = (multipliers + 0.01 * values).clamp(min=0)
    if adam:
        assert state[2].item() == 30.0
        torch.testing.assert_close(state[0], optimizer.state[parameter]["exp_avg"], rtol=1e-10, atol=1e-10)


def test_half_precision_points_with_a_float32_state():
    planes, anchor_values, multipliers, point, gradient, anchor = problem((7, 203), dtype=BF16)
    results = []
    for module in (native, reference):
        moved, state = point.clone(), (torch.zeros(203), torch.zeros(203), torch.tensor(0, dtype=torch.int64))
        for _ in range(5):
            values = module.step_(planes, multipliers, gradient, moved, anchor, anchor_values, lr=0.1, adam_state=state)
        results.append((values.float(), moved.float(), *state))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=2e-2, atol=2e-2)
    assert results[0][-1] == 5


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_inactive_rows_are_skipped(isa, bad):
    planes, anchor_values, multipliers, point, gradient, anchor = problem((11, 1029), "float64")
    multipliers[4] = 0.0
    expected = native.combine(planes, multipliers, F64)
    poisoned = planes.clone()
    poisoned[4] = bad
    assert torch.equal(native.combine(poisoned, multipliers, F64), expected)
    clean, moved = point.clone(), point.clone()
    values = native.step_(planes, multipliers, gradient, clean, anchor, anchor_values, lr=0.1)
    spoilt = native.step_(poisoned, multipliers, gradient, moved, anchor, anchor_values, lr=0.1)
    assert torch.equal(moved, clean)
    assert not spoilt[4].isfinite()  # skipped only in the first product
    others = torch.arange(11) != 4
    assert torch.equal(spoilt[others], values[others])


def test_nan_and_infinity_are_passed_on(isa):
    planes, offsets, multipliers, point, *_ = problem((9, 77))
    point[3] = float("nan")
    assert native.values(planes, offsets, point).isnan().all()
    assert native.penalty(planes, offsets, multipliers, point).isnan()
    half = torch.tensor([[float("inf"), -0.0, 6e-8, 65504.0, -1.0]], dtype=F16)
    one_by_one = [native.values(half, torch.zeros(1), unit).item() for unit in torch.eye(5)[1:]]
    assert np.isnan(one_by_one).all()  # inf * 0
    assert native.combine(half, torch.ones(1), F32).tolist() == half.float().tolist()[0]


@pytest.mark.parametrize("fmt", ["float32", "bfloat16", "signs"])
def test_values_do_not_drift_from_the_anchor(fmt):
    """After 1000 steps the values are as exact as after one, although none is computed from scratch."""
    planes, _, multipliers, start, gradient, _ = problem((8, 6001), fmt, F32)
    matrix, anchor = wide(planes), start.double()
    anchor_values = matrix @ anchor
    point = start.clone()
    for _ in range(1000):
        values = native.step_(planes, multipliers, 1e-3 * gradient, point, anchor, anchor_values, lr=1e-4)
    exact = matrix @ point.double()
    # Only the differences are summed in float32, so the error is relative to what has moved, not to the values.
    moved = (matrix.abs() @ (point.double() - anchor).abs()).max()
    assert (values - exact).abs().max() <= 1e-6 * moved
    assert moved > 1.0


@pytest.mark.parametrize("fmt", FORMATS)
def test_two_runs_and_any_team_agree_to_the_bit(isa, fmt):
    planes, *rest = problem((2, 19, 20_011), fmt, F32)
    before = torch.get_num_threads()
    try:
        runs = []
        for team in (1, 1, 2, 3, 5):
            torch.set_num_threads(team)
            gradients = {  # 2 problems: one thread each; from 3 threads on, all threads on each in turn
                f"{name} gradient": getattr(native, f"{name}_and_gradient")(planes, *rest[:3])[2]
                for name in ("penalty", "lagrangian")
            }
            runs.append(outputs(native, planes, *rest) | gradients)
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(run[name], tensor) for name, tensor in runs[0].items())


def array(tensor, **changes):
    given = dict(zip(("address", "type", "shape", "strides"), native._array(tensor), strict=True)) | changes
    return tuple(given.values())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"point": (1, 2, 3)}, TypeError, r"point must be \(address, dtype, shape, strides\)"),
        ({"point": {"shape": (6,)}}, ValueError, r"planes float32 \(3, 5\) must have 6 in its last dimension"),
        ({"point": {"type": 4}}, TypeError, r"point uint8 \(5\) must hold one of float32, float64, bfloat16, float16"),
        ({"point": {"type": 9}}, TypeError, "point has the unknown dtype 9"),
        ({"point": {"strides": (2,)}}, ValueError, r"point float32 \(5\) must have stride 1 .* got 2"),
        ({"point": {"strides": (1, 1)}}, ValueError, "a stride for each"),
        ({"point": {"address": 0}}, ValueError, r"point float32 \(5\) has no address"),
        (
            {"planes": {"shape": (5,), "strides": (1,)}},
            ValueError,
            r"planes float32 \(5\) must have shape \(L, N\) or \(P, L, N\)",
        ),
        ({"planes": {"shape": (-3, 5)}}, ValueError, "negative"),
        ({"planes": {"strides": (5, 2)}}, ValueError, r"planes float32 \(3, 5\) must have stride 1"),
        ({"planes": {"type": 4, "shape": (3, 1)}}, TypeError, "scale goes with packed signs"),
        ({"offsets": {"shape": (4,)}}, ValueError, r"offsets float32 \(4\) must have shape \(3\)"),
        ({"offsets": {"type": 2}}, TypeError, r"offsets bfloat16 \(3\) must hold one of float32, float64"),
        ({"out": {"shape": (3, 1), "strides": (1, 1)}}, ValueError, r"out float32 \(3, 1\) must have shape \(3\)"),
        ({"threads": 0}, ValueError, "threads must be at least 1, got 0"),
    ],
)
def test_the_compiled_module_checks_for_itself(changes, error, message):
    tensors = {"planes": torch.ones(3, 5), "offsets": torch.ones(3), "point": torch.ones(5), "out": torch.ones(3)}
    arguments = {name: array(tensor) for name, tensor in tensors.items()} | {"scale": None, "threads": 1}
    for name, change in changes.items():
        arguments[name] = array(tensors[name], **change) if isinstance(change, dict) else change
    with pytest.raises(error, match=message):
        _cpu.cutting_plane_values(**arguments)


def test_overlapping_outputs_are_refused():
    planes, coefficients, point = torch.ones(2, 3, 5), torch.ones(2, 3), torch.ones(2, 5)  # alive through the call
    arguments = {"planes": array(planes), "scale": None, "coefficients": array(coefficients)}
    with pytest.raises(ValueError, match="out is written to, but its problems overlap: stride 0 for 5 columns"):
        _cpu.cutting_plane_combine(**arguments, out=array(point, strides=(0, 1)), threads=1)


def test_an_unknown_instruction_set_is_an_error(monkeypatch):
    monkeypatch.setenv("SIMMST_CPU_ISA", "sse9")
    with pytest.raises(ValueError, match="SIMMST_CPU_ISA is 'sse9'; this machine can run: portable"):
        native.values(torch.ones(1, 1), torch.ones(1), torch.ones(1))


def test_the_public_functions_choose_the_cpu_backend(monkeypatch):
    called = []
    real = native.values
    monkeypatch.setattr(native, "values", lambda *args: called.append(True) or real(*args))
    cutting_plane_values(torch.ones(2, 3), torch.zeros(2), torch.ones(3))
    assert called


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_numpy_in_numpy_out(backend, dtype):
    planes, offsets, multipliers, point, gradient, anchor = (t.numpy().astype(dtype) for t in problem((2, 3, 13)))
    for function, arguments in (
        (cutting_plane_values, (planes, offsets, point)),
        (cutting_plane_penalty, (planes, offsets, multipliers, point)),
        (cutting_plane_lagrangian, (planes[:, :, ::-1], offsets, multipliers, point[:, ::-1])),
    ):
        result = function(*arguments, backend=backend)
        assert isinstance(result, np.ndarray)
        assert result.dtype == dtype
        tensors = [torch.from_numpy(argument.copy()) for argument in arguments]
        np.testing.assert_array_equal(result, function(*tensors, backend=backend).numpy())
    state = np.zeros_like(point), np.zeros_like(point), np.array(0.0)
    moved, planes_before = point.copy(), planes.copy()
    values = cutting_plane_step_(
        planes, multipliers, gradient, moved, anchor, offsets, lr=0.1, adam_state=state, backend=backend
    )
    assert isinstance(values, np.ndarray)
    assert not np.array_equal(moved, point)
    assert state[2] == 1.0
    assert np.array_equal(planes, planes_before)


def test_numpy_arrays_that_do_not_fit():
    planes, offsets, point = np.ones((2, 3)), np.zeros(2), np.ones(3)
    planes.flags.writeable = False
    assert cutting_plane_values(planes, offsets, point).tolist() == [3.0, 3.0]
    arguments = np.ones(2), np.ones(3), point, np.zeros(3), offsets
    point.flags.writeable = False
    with pytest.raises(ValueError, match=r"shape \(3,\) that is to be updated in place is read-only"):
        cutting_plane_step_(planes, *arguments, lr=0.1)
    with pytest.raises(ValueError, match="runs backwards through memory"):
        cutting_plane_step_(planes, *arguments[:2], np.ones(3)[::-1], *arguments[3:], lr=0.1)
    with pytest.raises(TypeError, match=r"offsets must be a torch\.Tensor, got ndarray"):
        cutting_plane_values(torch.ones(2, 3), offsets, torch.ones(3))
    with pytest.raises(ValueError, match="offsets must have shape"):
        cutting_plane_values(planes, np.zeros(3), point)
