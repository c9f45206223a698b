"""The cutting-plane solver: its planes, the point where it settles, and its phases."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sim2real.problems import curved, half_square, linear
from simmst.sim2real import ReweightingConfig, TensorSamples, reweight
from simmst.sim2real.cutting_plane import CuttingPlane, nonnegative_least_squares, qp
from simmst.sim2real.flat_model import FlatModel
from simmst.sim2real.inner import Inner
from simmst.sim2real.problem import Problem

CPU = torch.device("cpu")


def constant(start=0.0):
    """A model of one number, whose loss on a sample y is (phi - y)^2 / 2."""
    module = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(module.weight, start)
    return module


def labelled(*targets):
    return torch.ones(len(targets), 1).double(), torch.tensor(targets).double()


def made(small, make=CuttingPlane, **settings):
    return make(Problem(small.module, half_square, small.simulated, small.real, ReweightingConfig(**settings)))


@pytest.mark.filterwarnings("ignore:.*no plane was added")  # once the solver is at rest
@pytest.mark.parametrize("start", ["tracker", "current"])
@pytest.mark.parametrize("solver", ["cutting-plane", "qp", "online", "exact"])
def test_two_samples_whose_weights_have_a_ratio_of_three(solver, start):
    """Simulated samples say 2 and 6, the real one 3: phi*(w) = (2 s_1 + 6 s_2) / (s_1 + s_2) = 3 where s_1 = 3 s_2."""
    module = constant()
    rate = {"lr_weights": 0.05, "steps": 60} if solver == "exact" else {"lr_weights": 0.02, "steps": 800}
    config = ReweightingConfig(ridge=0.0, start=start, **rate)
    found = reweight(module, half_square, labelled(2.0, 6.0), labelled(3.0), solver=solver, config=config)
    assert abs(float(module.weight.detach()) - 3) < 0.03
    one, two = found.weights.tolist()
    assert abs((2 * one + 6 * two) / (one + two) - 3) < 0.03
    assert abs(one / two - 3) < 0.12  # the same tolerance of one per cent: d phi / d ratio = -1/4


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_planes_are_valid_where_h_is_convex(norm):
    """h >= u . (phi - psi(w)), and that is convex in w_j for w_j < 0 where <grad L_j, u> > 0, else for w_j > 0."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    features, number = 6, 40
    model = FlatModel(nn.Linear(features, 1, bias=False).double(), half_square)
    samples = TensorSamples(randn(number, features), randn(number))
    inner = Inner(model, samples, ReweightingConfig(derivative="forward", ridge=0.01))
    theta = randn(features)
    direction = randn(features)
    direction = direction / direction.norm() if norm == "l2" else direction.sign()
    bend = -inner.directional(theta, direction, torch.arange(number)).sign()

    def drawn():
        return bend * randn(number).abs() * 2

    def h(weights, phi):
        return float((phi - inner.unroll(weights, theta, 0).end).norm(p=2 if norm == "l2" else 1))

    w = drawn()
    path = inner.unroll(w, theta, 0)
    phi = path.end + 0.3 * (direction if norm == "l2" else direction * randn(features).abs())
    slope = inner.pull_back(path, w, direction)
    touches, gaps = h(w, phi), []
    for _ in range(300):
        other_w, other_phi = drawn(), phi + randn(features)
        plane = touches + float(slope @ (other_w - w)) + float(direction @ (other_phi - phi))
        gaps.append(h(other_w, other_phi) - plane)
    assert min(gaps) >= -1e-10
    assert min(gaps) < 1  # they are near the planes, so that a wrong sign would show
    near = h(w + 1e-6 * drawn(), phi) - touches
    assert abs(near) < 1e-5


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "sign"])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_new_plane_touches_h_less_its_tolerance(storage, normalize):
    norm = "l1" if storage == "sign" else "l2"
    solver = made(linear(0), storage=storage, norm=norm, normalize=normalize, steps=50)
    for number in range(30):
        solver.step(number)
        rest = solver.phi - solver.theta
        size = {"l1": len(rest) ** 0.5, "l2": 1.0}[norm] if normalize else 1.0
        allowed = 1e-4 * len(rest) if norm == "l1" else 1e-4 * len(rest) ** 0.5
        expected = (float(rest.norm(p=1 if norm == "l1" else 2)) - allowed) / size
        assert solver.polyhedron.age[-1] == 0
        assert abs(float(solver.polyhedron.evaluate(solver.w, solver.phi)[-1]) - expected) < 1e-9


@pytest.mark.parametrize("inner_steps", [1, 3])
def test_where_phi_rests_the_planes_hold_the_hypergradient(inner_steps):
    """On a quadratic, with w held: grad G + B^T mu = 0 makes A^T mu the gradient of G through the K steps."""
    small = linear(3, features=3, simulated=30, real=12)
    solver = made(small, inner_steps=inner_steps, inner_lr=0.9, lr_weights=1e-12, tolerance=1e-3)
    for number in range(100):
        solver.step(number)
    problem, planes = solver.problem, solver.polyhedron
    # Planes in all directions around the point where the tracker is now, and the multipliers that keep phi at rest.
    path = problem.inner.unroll(solver.w, solver.theta, 0)
    for direction in torch.cat([torch.eye(3), -torch.eye(3)]).double():
        slope = problem.inner.pull_back(path, solver.w, direction)
        planes.add(slope.float(), direction, value=0.0, weights=solver.w, phi=solver.phi)
    planes.keep(torch.arange(len(planes) - 6, len(planes)))
    gradient, _ = problem.outer.gradient(solver.phi, 0)
    rows = planes.model_rows.dense().double()
    multipliers = (rows @ -gradient).clamp(min=0)
    assert float((gradient + rows.T @ multipliers).norm()) < 1e-12
    planes.multipliers = multipliers.float()

    def after(change):
        end = problem.inner.unroll(solver.w + change, solver.theta, 0).end
        return float(gradient @ end)

    held = planes.weight_rows.dense().T @ planes.multipliers
    for number in range(0, 30, 7):
        change = torch.zeros(30)
        change[number] = 0.01
        assert (after(change) - after(-change)) / 0.02 == pytest.approx(float(held[number]), rel=1e-3, abs=1e-7)


def test_multipliers_are_never_negative_and_the_projection_is_needed():
    solver = made(curved(50), lr_multipliers=0.5)
    held, unprojected = [], []
    for number in range(40):
        unprojected += (solver.polyhedron.multipliers + 0.5 * solver.polyhedron.values.float()).tolist()
        solver.step(number)
        held += solver.polyhedron.multipliers.tolist()
    assert min(held) >= 0
    assert min(unprojected) < 0


def test_multipliers_of_the_dual_are_never_negative():
    solver = made(curved(50), qp)
    held = []
    for number in range(40):
        solver.step(number)
        held += solver.polyhedron.multipliers.tolist()
    assert min(held) >= 0
    assert max(held) > 0


def test_phase_2_freezes_planes_and_multipliers_and_penalises_squares():
    solver = made(linear(1), phase1_steps=20, refresh_every=2, lr_weights=0.01, weight_optimizer="sgd")
    for number in range(20):
        solver.step(number)
    planes = solver.polyhedron
    rows, offsets, multipliers = planes.model_rows.dense().clone(), planes.offsets.clone(), planes.multipliers.clone()
    theta, phi, w = solver.theta.clone(), solver.phi.clone(), solver.w.clone()
    gradient, _ = solver.problem.outer.gradient(phi, 20)
    force = 2 * multipliers * planes.evaluate(w, phi).clamp(min=0).float()
    solver.step(20)
    torch.testing.assert_close(
        phi - solver.phi, 0.05 * (gradient + rows.T.double() @ force.double()), rtol=1e-4, atol=1e-7
    )
    expected = 0.01 * len(w) * planes.weight_rows.dense().T @ force
    torch.testing.assert_close(w - solver.w, expected, rtol=1e-3, atol=1e-7)
    for number in range(21, 40):
        solver.step(number)
    assert torch.equal(planes.model_rows.dense(), rows)
    assert torch.equal(planes.offsets, offsets)
    assert torch.equal(planes.multipliers, multipliers)
    assert torch.equal(solver.theta, theta)
    assert not torch.equal(solver.phi, phi)


def test_there_are_at_most_max_planes():
    solver = made(linear(2), max_planes=3, max_age=2)
    counts = [solver.step(number)["planes"] for number in range(40)]
    assert max(counts) == 3
    assert int(solver.polyhedron.age.max()) <= 2


def test_says_when_the_weights_stand_still():
    solver = made(linear(0), tolerance=100.0)
    for number in range(9):
        solver.step(number)
    with pytest.warns(UserWarning, match=r"no plane was added in 10 refreshes.*Lower tolerance"):
        solver.step(9)
    assert float(solver.w.abs().max()) == 0


def test_every_step_is_logged():
    solver = made(linear(0))
    solver.step(0)
    record = solver.step(1)
    assert {"G", "h", "highest_plane", "sum_multipliers", "planes", "cosine", "weight_q05", "weight_q95"} <= set(record)
    for number in range(2, 60):
        record = solver.step(number)
    assert 0.3 < record["cosine"] <= 1  # the planes hold phi back from the real data
    assert record["weight_q05"] < record["weight_q50"] < record["weight_q95"]


def test_quadratic_over_the_nonnegative():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        rows = torch.randn(5, 9, generator=generator, dtype=torch.float64)
        target = torch.randn(5, generator=generator, dtype=torch.float64)
        gram, solution = rows @ rows.T, torch.zeros(5).double()
        for _ in range(20):
            solution = nonnegative_least_squares(gram, target, solution)
        slope = gram @ solution - target
        assert (solution >= 0).all()
        assert (slope > -1e-6).all()
        assert float((slope * solution).abs().max()) < 1e-6


def test_warm_up_leads_the_tracker_to_the_unweighted_minimiser():
    small = linear(0)
    solver = made(small, warmup_steps=300, lr_model=1e-9, lr_weights=1e-9)
    solver.step(0)
    x, y = small.simulated
    identity = torch.eye(x.shape[1]).double()
    expected = torch.linalg.solve(0.5 * x.T @ x / len(x) + 1e-3 * identity, 0.5 * x.T @ y / len(x))
    torch.testing.assert_close(solver.theta, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(solver.phi, expected, rtol=1e-4, atol=1e-5)
