"""The public cutting-plane functions: checks, backends, compilation, and the library operators behind them."""

import importlib
import re

import pytest
import torch

from simmst.errors import BackendUnavailableError
from simmst.ops.cutting_plane import (
    PackedSigns,
    cutting_plane_lagrangian,
    cutting_plane_penalty,
    cutting_plane_step_,
    cutting_plane_values,
    pack_signs,
)

F64 = torch.float64
OPS = torch.ops.simmst


def problem(shape=(2, 3, 13), dtype=F64, packed=False):
    """Return planes, offsets, multipliers and point."""
    generator = torch.Generator().manual_seed(4)
    rows, point = shape[:-1], (*shape[:-2], shape[-1])
    planes = torch.randn(shape, generator=generator, dtype=F64).to(dtype)
    offsets, multipliers = (torch.rand(rows, generator=generator, dtype=F64).to(dtype) - 0.2 for _ in range(2))
    if packed:
        planes = pack_signs(planes, torch.rand(rows, generator=generator, dtype=F64) + 0.5)
    return planes, offsets, multipliers, torch.randn(point, generator=generator, dtype=F64).to(dtype)


def flat(planes):
    return (planes.bits, planes.scale) if isinstance(planes, PackedSigns) else (planes, None)


def adam_state(point):
    return torch.rand_like(point), torch.rand_like(point), torch.tensor(3.0)


@pytest.fixture
def seam(monkeypatch):
    """Make backend "cpu" run the reference, behind the library operators."""
    oracle = importlib.import_module("simmst.reference.cutting_plane")
    monkeypatch.setattr("simmst.ops.cutting_plane.api.choose", lambda *args, **kwargs: "cpu")
    monkeypatch.setattr("simmst.ops.dispatch.implementation", lambda operator, backend: oracle)


PACKED = pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])


@PACKED
@pytest.mark.parametrize("shape", [(3, 13), (2, 3, 13)])
def test_backends_agree(seam, packed, shape):
    planes, offsets, multipliers, point = problem(shape, packed=packed)
    arguments = [multipliers.requires_grad_(), point.requires_grad_()]
    for function in (cutting_plane_penalty, cutting_plane_lagrangian):
        inline = getattr(importlib.import_module("simmst.reference.cutting_plane"), function.__name__.split("_")[-1])
        results = [f(planes, offsets, multipliers, point) for f in (function, inline)]
        torch.testing.assert_close(*results)
        weights = torch.rand_like(results[0])
        first = [torch.autograd.grad(r, arguments, weights, create_graph=True) for r in results]
        torch.testing.assert_close(*first)
        second = [torch.autograd.grad(sum(g.square().sum() for g in gs), arguments) for gs in first]
        torch.testing.assert_close(*second)
    out = cutting_plane_values(planes, offsets, point)
    gradient = torch.autograd.grad(out.square().sum(), point)[0]
    matrix = planes.unpack() if packed else planes
    torch.testing.assert_close(gradient, 2 * torch.einsum("...l,...ln->...n", out, matrix))


@PACKED
@pytest.mark.parametrize("adam", [False, True])
def test_the_step_updates_in_place_behind_the_seam(seam, packed, adam):
    planes, anchor_values, coefficients, point = problem(packed=packed)
    gradient = torch.randn_like(point)
    state = adam_state(point) if adam else None
    copies = [point.clone(), None if state is None else tuple(tensor.clone() for tensor in state)]
    anchor = point.clone()
    out = cutting_plane_step_(planes, coefficients, gradient, point, anchor, anchor_values, lr=0.1, adam_state=state)
    inline = importlib.import_module("simmst.reference.cutting_plane").step_
    expected = inline(planes, coefficients, gradient, copies[0], anchor, anchor_values, lr=0.1, adam_state=copies[1])
    assert torch.equal(out, expected)
    assert torch.equal(point, copies[0])
    assert not torch.equal(point, anchor)
    if adam:
        assert all(torch.equal(a, b) for a, b in zip(state, copies[1], strict=True))
        assert state[2].item() == 4.0


@PACKED
@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("operator", ["cutting_plane_penalty", "cutting_plane_lagrangian"])
def test_library_operator_gradcheck(packed, operator, with_gradient):
    planes, offsets, multipliers, point = problem((2, 3, 5), packed=packed)
    arguments = (multipliers.requires_grad_(), point.requires_grad_())

    def call(m, x):
        return getattr(OPS, operator)(*flat(planes), offsets, m, x, with_gradient, "reference")[:2]

    assert torch.autograd.gradcheck(call, arguments)
    assert torch.autograd.gradgradcheck(call, arguments)
    assert torch.autograd.gradcheck(lambda x: OPS.cutting_plane_values(*flat(planes), offsets, x, "reference"), point)
    assert torch.autograd.gradcheck(
        lambda m: OPS.cutting_plane_combine(*flat(planes), m, 5, F64, "reference"), multipliers
    )


@PACKED
@pytest.mark.parametrize("dtypes", [(F64, F64), (torch.float32, torch.bfloat16)])
def test_opcheck(packed, dtypes):
    planes, offsets, multipliers, point = problem(packed=packed)
    row_dtype, point_dtype = dtypes
    offsets, multipliers, point = offsets.to(row_dtype), multipliers.to(row_dtype), point.to(point_dtype)
    stored, grads = flat(planes), [multipliers.clone().requires_grad_(), point.clone().requires_grad_()]
    torch.library.opcheck(OPS.cutting_plane_values, (*stored, offsets, grads[1], "reference"))
    for operator in (OPS.cutting_plane_penalty, OPS.cutting_plane_lagrangian):
        for with_gradient in (False, True):
            torch.library.opcheck(operator, (*stored, offsets, *grads, with_gradient, "reference"))
    torch.library.opcheck(OPS.cutting_plane_combine, (*stored, grads[0], 13, point_dtype, "reference"))
    for state in ((None, None, None), adam_state(point)):
        step = (*stored, multipliers, torch.ones_like(point), point, point.double(), offsets, *state, 0.1, "reference")
        torch.library.opcheck(OPS.cutting_plane_step_, step)


@pytest.mark.parametrize("behind_the_seam", [False, True])
@PACKED
def test_compiles_without_a_break(behind_the_seam, packed):
    planes, offsets, multipliers, point = problem(dtype=torch.float32, packed=packed)
    arguments = [multipliers.requires_grad_(), point.requires_grad_()]

    def call(m, x):
        if behind_the_seam:
            return OPS.cutting_plane_penalty(*flat(planes), offsets, m, x, True, "reference")[0]
        return cutting_plane_penalty(planes, offsets, m, x)

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), call(*arguments))
    gradients = [torch.autograd.grad(f(*arguments).sum(), arguments) for f in (compiled, call)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("behind_the_seam", [False, True])
@pytest.mark.parametrize("adam", [False, True])
def test_the_step_compiles_without_a_break(behind_the_seam, adam):
    planes, anchor_values, coefficients, start = problem(dtype=torch.float32)
    gradient = torch.randn_like(start)

    def call(point, state):
        if behind_the_seam:
            filled = state or (None, None, None)
            return OPS.cutting_plane_step_(
                planes, None, coefficients, gradient, point, start, anchor_values, *filled, 0.1, "reference"
            )
        return cutting_plane_step_(
            planes, coefficients, gradient, point, start, anchor_values, lr=0.1, adam_state=state
        )

    torch._dynamo.reset()
    results = []
    for function in (call, torch.compile(call, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        point, state = start.clone(), adam_state(start) if adam else None
        outs = [function(point, state) for _ in range(3)]
        results.append((outs, point, state))
    torch.testing.assert_close(*results)
    assert not torch.equal(results[0][1], start)


def test_packing_compiles():
    planes = torch.randn(2, 3, 13)
    torch._dynamo.reset()
    compiled = torch.compile(lambda p: pack_signs(p).bits, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(planes), pack_signs(planes).bits)


@pytest.mark.slow(of=("csrc/core", "csrc/cpu", "simmst/core", "simmst/native/cpu", "simmst/ops", "simmst/reference"))
def test_compiles_with_inductor():
    planes, offsets, multipliers, point = problem(dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(cutting_plane_penalty, fullgraph=True)
    expected = cutting_plane_penalty(planes, offsets, multipliers, point)
    torch.testing.assert_close(compiled(planes, offsets, multipliers, point), expected)


class Planes(torch.nn.Module):
    def __init__(self):
        super().__init__()
        planes, offsets, multipliers, self.example = problem((3, 13), torch.float32, packed=True)
        self.bits, self.scale, self.size = planes
        self.offsets, self.multipliers = offsets, multipliers

    def forward(self, point):
        planes = PackedSigns(self.bits, self.scale, self.size)
        penalty = cutting_plane_penalty(planes, self.offsets, self.multipliers, point, backend="reference")
        values = OPS.cutting_plane_values(self.bits, self.scale, self.offsets, point, "reference")
        return penalty + values.sum()


def test_exports():
    model = Planes()
    program = torch.export.export(model, (model.example,))
    torch.testing.assert_close(program.module()(2 * model.example), model(2 * model.example))


def test_autocast_leaves_the_planes_alone():
    planes, offsets, multipliers, point = problem(dtype=torch.float32)
    expected = cutting_plane_values(planes, offsets, point)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cutting_plane_values(planes, offsets, point), expected)
        stepped = point.clone()
        cutting_plane_step_(planes, multipliers, point, stepped, point, offsets, lr=0.1)
    again = point.clone()
    cutting_plane_step_(planes, multipliers, point, again, point, offsets, lr=0.1)
    assert torch.equal(stepped, again)


def test_shapes_on_the_meta_device():
    planes, offsets, multipliers, point = (tensor.to("meta") for tensor in problem())
    assert cutting_plane_values(planes, offsets, point).shape == (2, 3)
    assert cutting_plane_penalty(planes, offsets, multipliers, point).shape == (2,)


def test_the_step_takes_parameters():
    planes, anchor_values, coefficients, point = problem((3, 13), torch.float32)
    parameter = torch.nn.Parameter(point.clone())
    out = cutting_plane_step_(planes, coefficients, point, parameter, point, anchor_values, lr=0.1)
    assert not out.requires_grad
    assert parameter.requires_grad
    assert not torch.equal(parameter, point)


def test_backends_are_explicit(monkeypatch):
    planes, offsets, _, point = problem()
    with pytest.raises(BackendUnavailableError, match=r"backend 'cuda' .* cannot run cutting_plane: "):
        cutting_plane_values(planes, offsets, point, backend="cuda")
    with pytest.raises(ValueError, match="'fast'; it must be one of reference, cpu, triton, cuda"):
        cutting_plane_values(planes, offsets, point, backend="fast")
    monkeypatch.setenv("SIMMST_BACKEND", "triton")
    with pytest.raises(BackendUnavailableError, match="SIMMST_BACKEND"):
        cutting_plane_values(planes, offsets, point)


A, C, MU, X = problem((3, 13), torch.float32)
SIGNS = pack_signs(A)


def refusal(message):
    return re.escape(message).replace(r"\.\*", ".*")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"planes": [1.0]}, TypeError, "planes must be a torch.Tensor, got list"),
        ({"planes": A.long()}, TypeError, "planes must hold one of .*got int64 (3, 13) on cpu"),
        ({"planes": SIGNS.bits}, TypeError, "must come as PackedSigns (see pack_signs), got uint8 (3, 2)"),
        ({"planes": A[0]}, ValueError, "planes must have shape (L, N) or (P, L, N), got float32 (13,)"),
        (
            {"planes": A[:, :12]},
            ValueError,
            "point must have shape (12,) for planes float32 (3, 12) on cpu, got float32 (13,)",
        ),
        (
            {"planes": A.to("meta")},
            ValueError,
            "planes must be on the device of point, cpu, got float32 (3, 13) on meta",
        ),
        (
            {"planes": SIGNS._replace(size=17)},
            ValueError,
            "packed signs of size 17 take 3 bytes a row, got uint8 (3, 2)",
        ),
        (
            {"planes": SIGNS._replace(size=12)},
            ValueError,
            "point must have shape (12,) for planes packed signs of size 12",
        ),
        (
            {"planes": SIGNS._replace(bits=A)},
            TypeError,
            "bits of packed signs must be a uint8 tensor, got float32 (3, 13)",
        ),
        ({"planes": SIGNS._replace(scale=C.half())}, TypeError, "scale of packed signs must be .*got float16 (3,)"),
        (
            {"planes": SIGNS._replace(scale=C[:2])},
            ValueError,
            "scale of packed signs must have shape (3,).*got float32 (2,)",
        ),
        (
            {"planes": SIGNS._replace(scale=C.to("meta"))},
            ValueError,
            "packed signs must be on the device of point, cpu",
        ),
        ({"offsets": C[:2]}, ValueError, "offsets must have shape (3,), one entry a plane.*got float32 (2,)"),
        ({"offsets": None}, TypeError, "offsets must be a torch.Tensor, got NoneType"),
        ({"multipliers": MU[None]}, ValueError, "multipliers must have shape (3,).*got float32 (1, 3)"),
        ({"multipliers": MU.bool()}, TypeError, "multipliers must hold one of .*got bool (3,)"),
        ({"point": 1.0}, TypeError, "point must be a torch.Tensor, got float"),
        ({"point": X[None]}, ValueError, "point must have shape (13,).*got float32 (1, 13)"),
    ],
)
@pytest.mark.parametrize("function", [cutting_plane_penalty, cutting_plane_lagrangian, cutting_plane_values])
def test_bad_input(function, changes, error, message):
    arguments = {"planes": A, "offsets": C, "multipliers": MU, "point": X, **changes}
    if function is cutting_plane_values:
        del arguments["multipliers"]
        if "multipliers" in changes:
            return
    with pytest.raises(error, match=f"{function.__name__}: .*" + refusal(message)):
        function(**arguments)


MOMENTS = torch.zeros(13)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"coefficients": MU[:2]}, ValueError, "coefficients must have shape (3,)"),
        ({"anchor_values": C[:2]}, ValueError, "anchor_values must have shape (3,)"),
        ({"gradient": X[:12]}, ValueError, "gradient must have the shape of point (13,), got float32 (12,)"),
        ({"anchor": X[:12]}, ValueError, "anchor must have the shape of point (13,), got float32 (12,)"),
        ({"lr": -0.1}, ValueError, "lr must be at least 0 and finite, got -0.1"),
        ({"lr": float("nan")}, ValueError, "lr must be a number, got NaN"),
        ({"lr": "0.1"}, TypeError, "lr must be a number, got '0.1'"),
        ({"adam_state": (MOMENTS, MOMENTS)}, TypeError, "adam_state must be (exp_avg, exp_avg_sq, step)"),
        ({"adam_state": (MOMENTS[:2], MOMENTS, torch.tensor(0.0))}, ValueError, "exp_avg must have the shape of point"),
        ({"adam_state": (MOMENTS.half(), MOMENTS.half(), torch.tensor(0.0))}, TypeError, "the dtype of point"),
        ({"adam_state": (MOMENTS, MOMENTS.clone(), 0)}, TypeError, "step must be a tensor of shape ().*got int"),
        ({"adam_state": (MOMENTS, MOMENTS.clone(), torch.zeros(1))}, ValueError, "step must be .*got float32 (1,)"),
    ],
)
def test_bad_step(changes, error, message):
    point = X.clone()
    arguments = {
        "planes": A,
        "coefficients": MU,
        "gradient": X,
        "point": point,
        "anchor": X,
        "anchor_values": C,
        "lr": 0.1,
        **changes,
    }
    with pytest.raises(error, match=refusal(message)):
        cutting_plane_step_(**arguments)
    assert torch.equal(point, X)  # refused before anything was updated


@pytest.mark.parametrize("alias", ["gradient", "anchor", "exp_avg"])
def test_memory_shared_with_the_point_is_refused(alias):
    point = X.clone()
    arguments = {"gradient": X, "anchor": X, "exp_avg": MOMENTS.clone(), alias: point.detach()}
    state = (arguments.pop("exp_avg"), MOMENTS.clone(), torch.tensor(0.0))
    with pytest.raises(ValueError, match=f"{alias} shares the memory of point.*clone"):
        cutting_plane_step_(A, MU, point=point, anchor_values=C, lr=0.1, adam_state=state, **arguments)
    assert torch.equal(point, X)
