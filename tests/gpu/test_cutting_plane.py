"""The cutting planes on a GPU against plain PyTorch: every format, shape and stride, in place and with gradients."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from drawn import Draw, drawn
from worlds import World

from simmst.ops.backends import implementation, why_not
from simmst.ops.cutting_plane import (
    PackedSigns,
    cutting_plane_lagrangian,
    cutting_plane_penalty,
    cutting_plane_step_,
    cutting_plane_values,
    pack_signs,
)
from simmst.reference import cutting_plane as reference

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
# Planes are only read, which every world does exactly, so bfloat16 is included for any dtypes of World.
FORMATS = {"float32": F32, "bfloat16": BF16, "float16": F16, "signs": None}
Results = dict[str, torch.Tensor]


@pytest.fixture
def kernels(world: World) -> ModuleType:
    """The backend's functions; skips the test if it has none."""
    reason = why_not("cutting_plane", world.backend, device=world.device, dtype=F32)
    if reason is not None:
        pytest.skip(reason)
    return implementation("cutting_plane", world.backend)


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Fill new tensors with NaN, so that an entry that is never written is noticed."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def poison(request: pytest.FixtureRequest) -> Iterator[None]:
    with contextlib.nullcontext() if "unpoisoned" in request.fixturenames else poisoned():
        yield


@pytest.fixture
def unpoisoned() -> None:
    """Turn the filling off for tests that capture graphs or compile, because it is not part of the program."""


def problem(shape, fmt="float32", dtype=F32, device="cpu", seed=0, inactive=0.25, values_dtype=F64):
    """Return planes, offsets, multipliers (some 0), point, gradient, anchor; offsets and anchor in the wider dtype."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=F64)

    rows, vector = shape[:-1], (*shape[:-2], shape[-1])
    planes, scale = draw(*shape), draw(*rows).abs() + 0.1
    if fmt == "signs":
        stored = pack_signs(planes.to(device), scale.float().to(device))
    else:
        stored = planes.to(device, FORMATS[fmt])
    multipliers = draw(*rows).abs()
    multipliers[torch.rand(rows, generator=generator) < inactive] = 0.0
    offsets, point, gradient, anchor = draw(*rows), draw(*vector), draw(*vector), draw(*vector)
    given = (multipliers, dtype), (point, dtype), (gradient, dtype), (anchor, values_dtype)
    return stored, offsets.to(device, values_dtype), *(tensor.to(device, kind) for tensor, kind in given)


def wide(planes):
    """Return the stored entries as float64."""
    return planes.unpack(F64) if isinstance(planes, PackedSigns) else planes.double()


def outputs(module, planes, offsets, multipliers, point, gradient, anchor, state_dtype=None) -> Results:
    """Return every function's results by name, for the same problem."""
    results = {"values": module.values(planes, offsets, point)}
    for name in ("penalty", "lagrangian"):
        total, values = getattr(module, f"{name}_and_values")(planes, offsets, multipliers, point)
        results |= {name: total, f"{name} values": values}
    results["combine"] = module.combine(planes, multipliers, point.dtype)
    for kind in ("sgd", "adam"):
        moved, state = point.clone(), None
        if kind == "adam":
            averages = (tensor.to(state_dtype or point.dtype) for tensor in (gradient * 0.1, gradient.square()))
            state = (*averages, torch.tensor(2.0, device=point.device))
        results[f"{kind} values"] = module.step_(
            planes, multipliers, gradient, moved, anchor, offsets, lr=0.03, adam_state=state
        )
        results[f"{kind} point"] = moved
        results |= dict(zip(("exp_avg", "exp_avg_sq", "step"), state or (), strict=False))
    return results


def assert_twice_plain(
    ours: Results, plain: Results, exact: Results, *, roundings: int = 2, terms: Results | None = None
) -> None:
    """Assert the 2x rule: at most twice the error of the same computation in plain PyTorch, plus roundings of results.

    If a result is one sum of `terms` that cancel, plain PyTorch may be right by luck. The roundings are then those of
    the terms, whose squared errors add up.
    """
    for name, tensor in exact.items():
        assert ours[name].dtype == plain[name].dtype, name
        assert ours[name].shape == tensor.shape, name
        assert not ours[name].isnan().any(), name
        if tensor.numel() == 0:
            continue
        error, plain_error = ((got[name].double() - tensor.double()).abs().max() for got in (ours, plain))
        # The sums are float32 in any dtype of the result.
        unit = max(torch.finfo(ours[name].dtype).eps, torch.finfo(F32).eps)
        size = tensor.abs().max()
        if terms is not None and name in terms:
            size = torch.maximum(size, terms[name].norm(dim=-1).max())
        allowed = 2 * plain_error + roundings * unit * size + 1e-30
        assert error <= allowed, (name, error.item(), allowed.item())


def check(kernels, planes, /, *rest, state_dtype=None, **strided) -> None:
    """Check the rule for every function; `strided` replaces arguments by equal ones in another layout."""
    names = ("planes", "offsets", "multipliers", "point", "gradient", "anchor")
    plain = dict(zip(names, (planes, *rest), strict=True))
    exact = outputs(reference, wide(planes), *(tensor.double() for tensor in rest))
    multipliers, values = rest[1].double(), exact["lagrangian values"]
    terms = {"lagrangian": multipliers * values, "penalty": multipliers * values.relu().square()}
    expected = outputs(reference, *plain.values(), state_dtype=state_dtype)
    found = outputs(kernels, *(plain | strided).values(), state_dtype=state_dtype)
    assert_twice_plain(found, expected, exact, terms=terms)


SHAPES = [(3, 13), (2, 9, 200), (17, 300), (1, 1), (0, 4), (3, 0), (2, 0, 5), (0, 3, 5)]


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_function_keeps_the_rule(world, kernels, shape, fmt):
    for dtype in world.dtypes:
        check(kernels, *problem(shape, fmt, dtype, world.device))


@drawn(60, slow=16)
def test_any_shape_dtype_and_stride(world: World, kernels, draw: Draw) -> None:
    problems = draw.choice((None, 1, 2, 5))
    planes, size = draw.integer(1, 20 if world.slow else 200), draw.integer(1, 300 if world.slow else 20_000)
    shape = (planes, size) if problems is None else (problems, planes, size)
    fmt, dtype = draw.choice(list(FORMATS)), draw.choice(world.dtypes)
    values_dtype, state_dtype = draw.choice((F64, F32, dtype)), draw.choice((dtype, F32))
    stored, *rest = problem(shape, fmt, dtype, world.device, draw.seed, values_dtype=values_dtype)
    lay = LAYOUTS[draw.choice(list(LAYOUTS))]
    names = ("offsets", "multipliers", "point", "gradient", "anchor")
    strided: dict[str, Any] = dict(zip(names, map(lay, rest), strict=True))
    if fmt == "signs":
        strided["planes"] = PackedSigns(lay(stored.bits), lay(stored.scale), size)
    else:
        strided["planes"] = lay(stored)
    check(kernels, stored, *rest, state_dtype=state_dtype, **strided)


def _rows_apart(tensor):
    odd = float("nan") if tensor.is_floating_point() else 255
    return torch.nn.functional.pad(tensor, (3, 6), value=odd)[..., 3 : 3 + tensor.shape[-1]]


def _transposed(tensor):
    return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor.repeat_interleave(2)[::2]


LAYOUTS = {"plain": lambda tensor: tensor, "rows apart": _rows_apart, "columns apart": _transposed}


@pytest.mark.parametrize("fmt", ["float32", "signs"])
def test_planes_shared_by_all_problems(world, kernels, fmt):
    stored, *rest = problem((3, 5, 77), fmt, F32, world.device)
    if fmt == "signs":
        bits, scale = stored.bits[:1].expand(3, -1, -1), stored.scale[:1].expand(3, -1)
        check(
            kernels, PackedSigns(bits.contiguous(), scale.contiguous(), 77), *rest, planes=PackedSigns(bits, scale, 77)
        )
    else:
        shared = stored[:1].expand(3, -1, -1)
        check(kernels, shared.contiguous(), *rest, planes=shared)


def test_every_configuration_computes_the_same(world, kernels):
    """Blocks of every size in the table, larger and smaller than the problem in either dimension."""
    if world.backend != "triton":
        pytest.skip("the configurations are Triton's")
    from simmst.kernels import configurations

    for kind, fmt in (("dense", "bfloat16"), ("signs", "signs")):
        held, tall = (configurations.named(f"cutting_plane.{name}{kind}") for name in ("", "tall_"))
        for index in range(max(len(held), len(tall))):
            chosen = {
                f"cutting_plane.{kind}": held[index % len(held)].name,
                f"cutting_plane.tall_{kind}": tall[index % len(tall)].name,
                "cutting_plane.finish": configurations.named("cutting_plane.finish")[index % 2].name,
            }
            for shape in ((2, 5, 300), (66, 140)):
                with configurations.trial(chosen):
                    check(kernels, *problem(shape, fmt, F32, world.device))


@pytest.mark.parametrize("layout", ["columns apart", "rows apart"])
def test_the_step_writes_through_strides(world, kernels, layout):
    planes, offsets, multipliers, point, gradient, anchor = problem((2, 3, 13), device=world.device)
    part = slice(1, 39, 3) if layout == "columns apart" else slice(5, 18)
    buffers = [torch.full((2, 40), 7.0, device=world.device) for _ in range(3)]
    for buffer, start in zip(buffers, (point, gradient, gradient.square()), strict=True):
        buffer[:, part] = start
    views = [buffer[:, part] for buffer in buffers]
    expected = [view.clone() for view in views]
    for module, (moved, *averages) in ((kernels, views), (reference, expected)):
        state = (*averages, torch.tensor(3.0, device=world.device))
        module.step_(planes, multipliers, gradient, moved, anchor, offsets, lr=0.1, adam_state=state)
    torch.testing.assert_close(views, expected, rtol=1e-5, atol=1e-6)
    untouched = torch.ones(40, dtype=torch.bool)
    untouched[part] = False
    assert all((buffer[:, untouched] == 7.0).all() for buffer in buffers)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", ["penalty", "lagrangian"])
def test_gradients(world, kernels, fmt, name):
    public = {"penalty": cutting_plane_penalty, "lagrangian": cutting_plane_lagrangian}[name]
    for shape in ((2, 6, 150), (19, 90)):
        planes, offsets, *leaves = problem(shape, fmt, device=world.device)[:4]
        weights = torch.rand(shape[:-2], device=world.device)
        grads = {}
        for kind, backend in (("ours", world.backend), ("plain", "reference"), ("exact", "reference")):
            exact = kind == "exact"
            matrix = wide(planes) if exact else planes
            arguments = [leaf.detach().to(F64 if exact else F32).requires_grad_() for leaf in leaves]
            total = public(matrix, offsets, *arguments, backend=backend)
            first = torch.autograd.grad(total, arguments, weights.to(total.dtype), retain_graph=True)
            # To be differentiated again, the gradient is made of library operators; it must be the same.
            again = torch.autograd.grad(total, arguments, weights.to(total.dtype), create_graph=True)
            second = torch.autograd.grad(sum(g.square().sum() for g in again), arguments)
            grads[kind] = {f"{i}": g.detach() for i, g in enumerate((*first, *again, *second))}
        # A second derivative is a product of several sums, each of which is rounded.
        assert_twice_plain(grads["ours"], grads["plain"], grads["exact"], roundings=6)


def test_the_gradient_of_values_and_of_its_gradient(world, kernels):
    planes, offsets, _, point, weights, _ = problem((5, 70), device=world.device)
    results = {}
    for backend in (world.backend, "reference"):
        x = point.clone().requires_grad_()
        values = cutting_plane_values(planes, offsets, x, backend=backend)
        slope = torch.ones_like(values).requires_grad_()
        gradient = torch.autograd.grad(values, x, slope, create_graph=True)[0]
        results[backend] = (gradient.detach(), torch.autograd.grad(gradient, slope, weights)[0])
    torch.testing.assert_close(results[world.backend], results["reference"], rtol=1e-5, atol=1e-5)


def test_one_pass_makes_value_and_gradient(world, kernels):
    for fmt in FORMATS:
        for shape in ((2, 5, 150), (19, 90), (0, 3, 5), (2, 0, 5)):
            planes, offsets, multipliers, point, *_ = problem(shape, fmt, device=world.device)
            for name in ("penalty", "lagrangian"):
                ours = getattr(kernels, f"{name}_and_gradient")(planes, offsets, multipliers, point)
                total, values = getattr(reference, f"{name}_and_values")(planes, offsets, multipliers, point)
                slopes = multipliers if name == "lagrangian" else 2 * multipliers * values.relu()
                expected = total, values, reference.combine(planes, slopes, F32)
                torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("adam", [False, True], ids=["sgd", "adam"])
def test_many_steps_follow_torch_optim(world, kernels, fmt, adam):
    planes, anchor_values, multipliers, point, gradient, anchor = problem((2, 5, 70), fmt, device=world.device)
    parameter = torch.nn.Parameter(point.double())
    optimizer = torch.optim.Adam([parameter], lr=0.05) if adam else torch.optim.SGD([parameter], lr=0.05)
    state = (torch.zeros_like(point), torch.zeros_like(point), torch.tensor(0.0, device=world.device))
    matrix = wide(planes)
    for _ in range(8):
        parameter.grad = gradient.double() + torch.einsum("pl,pln->pn", multipliers.double(), matrix)
        optimizer.step()
        values = cutting_plane_step_(
            *(planes, multipliers, gradient, point, anchor, anchor_values),
            lr=0.05, adam_state=state if adam else None, backend=world.backend,
        )  # fmt: skip
        expected = anchor_values + torch.einsum("pln,pn->pl", matrix, parameter.detach() - anchor)
        torch.testing.assert_close(point.double(), parameter.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-3)
        multipliers = (multipliers + 0.01 * values).clamp(min=0).float()
    assert state[2].item() == (8.0 if adam else 0.0)


@pytest.mark.parametrize("taken", [0, 1, 9, 999, 10**6])
def test_the_bias_corrections_are_exact(world, kernels, taken):
    """1 - beta^t cancels for small t: a power in float32 would be off by 6e-5 of it."""
    planes, anchor_values, coefficients, point, gradient, anchor = problem((1, 40), device=world.device, inactive=1.0)
    point.zero_()
    state = (gradient * 0.3, gradient.square() * 0.2, torch.tensor(float(taken), device=world.device))
    expected = [tensor.double() for tensor in (point, *state)]
    kernels.step_(planes, coefficients, gradient, point, anchor, anchor_values, lr=1.0, adam_state=state)
    reference.step_(
        planes.double(), coefficients.double(), gradient.double(), expected[0], anchor, anchor_values,
        lr=1.0, adam_state=(*expected[1:3], expected[3]),
    )  # fmt: skip
    assert state[2].item() == taken + 1
    torch.testing.assert_close(point.double(), expected[0], rtol=2e-6, atol=0.0)


@pytest.mark.parametrize("kind", [F32, F64, torch.int64, "cpu"], ids=str)
def test_the_count_of_steps_keeps_its_dtype_and_device(world, kernels, kind):
    planes, anchor_values, coefficients, point, gradient, anchor = problem((3, 40), device=world.device)
    device, dtype = ("cpu", F32) if kind == "cpu" else (world.device, kind)
    moved, expected = point.clone(), point.clone()
    counts = []
    for module, target in ((kernels, moved), (reference, expected)):
        state = (torch.zeros_like(point), torch.zeros_like(point), torch.tensor(0, dtype=dtype, device=device))
        for _ in range(3):
            module.step_(planes, coefficients, gradient, target, anchor, anchor_values, lr=0.1, adam_state=state)
        counts.append(state[2])
    assert counts[0].dtype == dtype
    assert counts[0].device == counts[1].device
    assert [count.item() for count in counts] == [3, 3]
    torch.testing.assert_close(moved, expected, rtol=1e-5, atol=1e-6)


def test_the_count_advances_without_problems(world, kernels):
    planes, values, coefficients, point, gradient, anchor = problem((0, 3, 5), device=world.device)
    state = (point.clone(), point.clone(), torch.tensor(4.0, device=world.device))
    kernels.step_(planes, coefficients, gradient, point, anchor, values, lr=0.1, adam_state=state)
    assert state[2].item() == 5.0


@pytest.mark.parametrize("planes_held", [5, 11])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_inactive_rows_are_skipped(world, kernels, bad, planes_held):
    planes, anchor_values, multipliers, point, gradient, anchor = problem((planes_held, 150), device=world.device)
    multipliers[4] = 0.0
    poisoned_rows = planes.clone()
    poisoned_rows[4] = bad
    combined = (kernels.combine(each, multipliers, F32) for each in (planes, poisoned_rows))
    assert torch.equal(*combined)
    signs = pack_signs(planes)
    endless = PackedSigns(
        signs.bits, signs.scale.clone().index_fill_(0, torch.tensor(4, device=world.device), bad), 150
    )
    assert torch.equal(*(kernels.combine(each, multipliers, F32) for each in (signs, endless)))
    clean, moved = point.clone(), point.clone()
    values = kernels.step_(planes, multipliers, gradient, clean, anchor, anchor_values, lr=0.1)
    spoilt = kernels.step_(poisoned_rows, multipliers, gradient, moved, anchor, anchor_values, lr=0.1)
    assert torch.equal(moved, clean)
    assert not spoilt[4].isfinite()  # skipped only in the first product
    others = torch.arange(planes_held, device=world.device) != 4
    assert torch.equal(spoilt[others], values[others])


def test_nan_and_infinity_are_passed_on(world, kernels):
    planes, offsets, multipliers, point, *_ = problem((9, 77), device=world.device)
    point[3] = math.nan
    assert kernels.values(planes, offsets, point).isnan().all()
    assert kernels.penalty_and_values(planes, offsets, multipliers, point)[0].isnan()
    half = torch.tensor([[math.inf, -0.0, 6e-8, 65504.0, -1.0]], dtype=F16, device=world.device)
    units = torch.eye(5, device=world.device)[1:]
    zero = torch.zeros(1, device=world.device)
    assert all(kernels.values(half, zero, unit).isnan() for unit in units)  # inf * 0
    assert kernels.combine(half, zero + 1, F32).tolist() == half.float().tolist()[0]


@pytest.mark.parametrize("fmt", ["float32", "bfloat16", "signs"])
def test_values_do_not_drift_from_the_anchor(world, kernels, fmt):
    """After many steps the values are as exact as after one, although none is computed from scratch."""
    planes, _, multipliers, start, gradient, _ = problem((8, 400), fmt, device=world.device)
    matrix, anchor, point = wide(planes), start.double(), start.clone()
    anchor_values = matrix @ anchor
    for _ in range(20 if world.slow else 1000):
        values = kernels.step_(planes, multipliers, gradient, point, anchor, anchor_values, lr=1e-3)
    # Only the differences are summed in float32, so the error is relative to what has moved, not to the values.
    moved = (matrix.abs() @ (point.double() - anchor).abs()).max()
    assert (values - matrix @ point.double()).abs().max() <= 1e-6 * moved
    assert moved > 1.0


@pytest.mark.parametrize("fmt", FORMATS)
def test_two_runs_agree_to_the_bit(world, kernels, fmt):
    for shape in ((2, 6, 300), (19, 300)):
        arguments = problem(shape, fmt, device=world.device)
        first, second = outputs(kernels, *arguments), outputs(kernels, *arguments)
        assert all(torch.equal(second[name], tensor) for name, tensor in first.items())


def test_rows_that_begin_beyond_two_to_the_31(world, kernels, unpoisoned):
    """Three rows of bits 2^31 bytes apart; the space between them is never touched, so it takes no memory on a CPU."""
    stride, size = 2**31 + 16, 100
    planes, offsets, multipliers, point, gradient, anchor = problem((3, size), "signs", device=world.device)
    if world.device.type == "cpu":
        storage = torch.from_numpy(np.zeros(2 * stride + 64, dtype=np.uint8))
    else:
        storage = torch.zeros(2 * stride + 64, dtype=torch.uint8, device=world.device)
    far = storage.as_strided(planes.bits.shape, (stride, 1))
    far.copy_(planes.bits)
    distant = PackedSigns(far, planes.scale, size)
    check(kernels, planes, offsets, multipliers, point, gradient, anchor, planes=distant)


def test_through_the_public_functions(world, kernels):
    planes, offsets, multipliers, point, gradient, anchor = problem((2, 5, 70), device=world.device)
    for function, arguments in (
        (cutting_plane_values, (planes, offsets, point)),
        (cutting_plane_penalty, (planes, offsets, multipliers, point)),
        (cutting_plane_lagrangian, (planes, offsets, multipliers, point)),
        (cutting_plane_step_, (planes, multipliers, gradient, point.clone(), anchor, offsets)),
    ):
        options = {"lr": 0.1} if function is cutting_plane_step_ else {}
        expected = function(*(tensor.clone() for tensor in arguments), backend="reference", **options)
        found = function(*arguments, backend=world.backend, **options)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("adam", [None, "cpu", "device"])
@pytest.mark.parametrize("fmt", FORMATS)
def test_a_call_that_was_seen_before_gives_the_same_bits(world, kernels, fmt, adam):
    """The first call goes through every check; the others may take a shorter path."""
    if world.slow and world.backend == "triton":
        pytest.skip("the interpreter has only one path")
    planes, offsets, multipliers, point, gradient, anchor = problem((2, 5, 70), fmt, device=world.device)
    runs = []
    for _ in range(3):
        moved, state = point.clone(), None
        if adam is not None:
            step = torch.tensor(3.0, device="cpu" if adam == "cpu" else world.device)
            state = torch.zeros_like(point), torch.zeros_like(point), step
        results = [cutting_plane_values(planes, offsets, moved, backend=world.backend)]
        for lr in (0.1, 0.2):
            given = planes, multipliers, gradient, moved, anchor, offsets
            results.append(cutting_plane_step_(*given, lr=lr, adam_state=state, backend=world.backend))
        runs.append([*results, moved, *(state or ())])
        with pytest.raises(ValueError, match="gradient shares the memory of point"):
            cutting_plane_step_(planes, multipliers, moved, moved, anchor, offsets, lr=0.1, backend=world.backend)
    for run in runs:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))
    assert adam is None or float(runs[0][-1]) == 5.0
    leaf = point.clone().requires_grad_()
    assert cutting_plane_values(planes, offsets, leaf, backend=world.backend).requires_grad


def needs_a_gpu(world: World) -> None:
    if world.device.type != "cuda":
        pytest.skip("needs a GPU")


@pytest.mark.parametrize("fmt", FORMATS)
def test_more_problems_than_65535(world, kernels, fmt):
    needs_a_gpu(world)
    check(kernels, *problem((70_001, 2, 3), fmt, device=world.device))


def test_a_step_is_captured_in_a_graph(world, kernels, unpoisoned):
    needs_a_gpu(world)
    planes, anchor_values, multipliers, point, gradient, anchor = problem((64, 10_001), device=world.device)

    def start():
        count = torch.tensor(0.0, device=world.device)
        return point.clone(), (torch.zeros_like(point), torch.zeros_like(point), count)

    def step(moved, state):
        arguments = planes, multipliers, gradient, moved, anchor, anchor_values
        return cutting_plane_step_(*arguments, lr=0.1, adam_state=state, backend=world.backend)

    moved, state = start()
    expected = [step(moved, state).clone() for _ in range(3)][-1]
    replayed, replayed_state = start()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        values = step(replayed, replayed_state)
    for _ in range(3):
        graph.replay()
    assert torch.equal(values, expected)
    assert torch.equal(replayed, moved)
    assert replayed_state[2].item() == 3.0


def test_compiled_without_a_break(world, kernels, unpoisoned):
    needs_a_gpu(world)
    planes, offsets, multipliers, point, gradient, anchor = problem((9, 333), device=world.device)

    def loss(multipliers, point):
        values = cutting_plane_penalty(planes, offsets, multipliers, point, backend=world.backend)
        return values + cutting_plane_lagrangian(planes, offsets, multipliers, point, backend=world.backend)

    leaves = multipliers.requires_grad_(), point.requires_grad_()
    eager = torch.autograd.grad(loss(*leaves), leaves)
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*leaves), leaves)
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-4)

    def step(point):
        return cutting_plane_step_(
            planes, multipliers.detach(), gradient, point, anchor, offsets, lr=0.1, backend=world.backend
        )

    one, other = point.detach().clone(), point.detach().clone()
    assert torch.equal(torch.compile(step, fullgraph=True)(one), step(other))
    assert torch.equal(one, other)


def test_on_a_stream_of_its_own(world, kernels):
    needs_a_gpu(world)
    arguments = problem((2, 33, 50_000), device=world.device)
    expected = outputs(kernels, *arguments)
    stream = torch.cuda.Stream(world.device)
    stream.wait_stream(torch.cuda.current_stream(world.device))
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        late = [tensor.clone() if isinstance(tensor, torch.Tensor) else tensor for tensor in arguments]
        found = outputs(kernels, *late)
    stream.synchronize()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
