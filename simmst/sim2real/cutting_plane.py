"""The solver of Sim-MSTNet's Algorithm 1, resolved so that it converges, and the algorithm as it is printed."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from simmst.errors import ConfigError
from simmst.sim2real.polyhedron import AdamState, Polyhedron
from simmst.sim2real.problem import Problem, Record

_NO_MULTIPLIER = 1e-12
_QP_SWEEPS = 6
_PATIENCE = 10  # refreshes without a new plane before a warning


class Distance(NamedTuple):
    """h = |phi - psi| with its gradient u for phi, and epsilon, the value it may have."""

    value: float
    direction: Tensor
    allowed: float


class CuttingPlane:
    """Keeps phi near psi(w) by cutting planes, and moves w by their multipliers.

    Each step: the multipliers follow the planes' values (projected ascent, or the dual of the step's quadratic
    problem); w and phi move along the gradients of G plus the planes, which gives the values at the new point in the
    same pass. Every `refresh_every` steps: planes without multiplier and old ones are dropped, psi takes K steps, the
    planes are lifted to admit (w, psi), and where phi is too far from psi a plane is added that touches h there.

    Args:
        problem: model, loss, samples and settings.

    Source: Sim-MSTNet, Algorithm 1, Eq. 1-8; multipliers projected and planes normalised, lifted and aged.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem, self.config = problem, problem.config
        model = problem.model
        if self.config.inner_lr <= 0:
            raise ConfigError(f"inner_lr is {self.config.inner_lr!r}; it must be above 0")
        self.phi = model.flatten()
        self.theta = self.phi.clone()
        self.w = torch.zeros(problem.num_weights, device=model.device)
        self.adam: AdamState = (
            torch.zeros_like(self.w),
            torch.zeros_like(self.w),
            torch.zeros((), device=model.device),
        )
        self.polyhedron = Polyhedron(
            len(self.w),
            len(self.phi),
            max_planes=self.config.max_planes,
            storage=self.config.storage,
            device=model.device,
        )
        self.pace = 1.0
        self.idle = 0  # refreshes since a plane was added
        self.distance = 0.0
        problem.inner.check_derivative(self.phi)
        uniform = torch.zeros(len(problem.simulated), device=model.device)
        for number in range(self.config.warmup_steps):
            index = (
                problem.inner.draws(-1 - number) if problem.inner.draws.size is None else problem.inner.draws(number)
            )
            self.theta = self.theta - self.config.inner_lr * problem.inner.gradient(self.theta, uniform, index)[0]
        if self.config.warmup_steps:
            self.phi = self.theta.clone()

    def step(self, number: int) -> Record:
        """Take one outer step, and refresh the planes when it is time."""
        gradient, value = self.problem.outer.gradient(self.phi, number)
        planes, cosine = self.polyhedron, 0.0
        phase1 = self.config.phase1_steps is None or number < self.config.phase1_steps
        if len(planes):
            self._update_multipliers(gradient, phase1=phase1)
            coefficients = planes.multipliers if phase1 else 2 * planes.multipliers * planes.values.clamp(min=0).float()
            cosine = self._move(gradient, coefficients)
        else:
            self.phi = self.phi - self.pace * self.config.lr_model * gradient
        highest = float(planes.values.max()) if len(planes) else 0.0
        if phase1 and (number + 1) % self.config.refresh_every == 0:
            self._refresh(number)
        share = torch.sigmoid(self.w)
        low, middle, high = torch.quantile(
            share[:1_000_000].float(), torch.tensor([0.05, 0.5, 0.95]).to(share)
        ).tolist()
        return {
            "G": value,
            "h": self.distance,
            "highest_plane": highest,
            "sum_multipliers": float(planes.multipliers.sum()),
            "planes": float(len(planes)),
            "weight_q05": low,
            "weight_q50": middle,
            "weight_q95": high,
            "cosine": cosine,
        }

    def weights(self) -> Tensor:
        """Return w."""
        return self.w

    def candidates(self) -> dict[str, Tensor]:
        """Return phi, which follows the real data, and theta, which follows the weighted simulated ones."""
        return {"phi": self.phi, "theta": self.theta}

    def slow_down(self) -> None:
        """Halve the steps of phi and of the multipliers."""
        self.pace /= 2

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that the next step depends on."""
        own = {"phi": self.phi, "theta": self.theta, "w": self.w}
        own |= dict(zip(("adam_exp_avg", "adam_exp_avg_sq", "adam_step"), self.adam, strict=True))
        own["scalars"] = torch.tensor([self.pace, self.idle, self.distance], dtype=torch.float64)
        planes = {f"planes.{name}": tensor for name, tensor in self.polyhedron.state_dict().items()}
        return {name: tensor.clone() for name, tensor in own.items()} | planes

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up `state_dict`."""
        self.phi, self.theta, self.w = (state[name].to(self.phi.device).clone() for name in ("phi", "theta", "w"))
        exp_avg, exp_avg_sq, step = (
            state[name].to(self.phi.device).clone() for name in ("adam_exp_avg", "adam_exp_avg_sq", "adam_step")
        )
        self.adam = exp_avg, exp_avg_sq, step
        pace, idle, self.distance = state["scalars"].tolist()
        self.pace, self.idle = pace, int(idle)
        self.polyhedron.load_state_dict(
            {name.removeprefix("planes."): tensor for name, tensor in state.items() if name.startswith("planes.")}
        )

    def _update_multipliers(self, gradient: Tensor, *, phase1: bool) -> None:
        planes = self.polyhedron
        if not phase1:
            return
        if self.config.multipliers == "qp":
            lr = self.pace * self.config.lr_model
            target = planes.values - lr * planes.along(gradient)
            planes.multipliers = nonnegative_least_squares(lr * self.gram, target, planes.multipliers.double()).float()
            return
        ascent = planes.values.float() - self.config.multiplier_decay * planes.multipliers
        planes.multipliers = (planes.multipliers + self.pace * self.config.lr_multipliers * ascent).clamp(min=0)

    def _move(self, gradient: Tensor, coefficients: Tensor) -> float:
        """Move w and phi; return the cosine between what the planes and what the real data ask of phi."""
        config, before = self.config, self.phi.clone()
        adam = config.weight_optimizer == "adam"
        self.polyhedron.step_(
            coefficients,
            self.w,
            config.weight_decay / len(self.w) * self.w,
            self.phi,
            gradient,
            lr_weights=config.lr_weights * (1.0 if adam else len(self.w)),
            lr_model=self.pace * config.lr_model,
            adam_state=self.adam if adam else None,
        )
        pull = (self.phi - before) / (-self.pace * config.lr_model) - gradient  # B^T s
        return float(torch.nn.functional.cosine_similarity(-pull, gradient, dim=0))

    def _refresh(self, number: int) -> None:
        problem, config, planes = self.problem, self.config, self.polyhedron
        planes.drop(tolerance=_NO_MULTIPLIER, max_age=config.max_age)
        per_sample = problem.spread(self.w)
        path = problem.inner.unroll(per_sample, self.theta if config.start == "tracker" else self.phi, number)
        psi = path.end
        self.theta = psi
        planes.lift(self.w, psi)
        found = self._distance(psi)
        self.distance = found.value
        self.idle += 1
        if found.value > found.allowed:
            pulled = problem.gather(problem.inner.pull_back(path, per_sample, found.direction))
            size = float(found.direction.norm()) if config.normalize else 1.0
            value = (found.value - found.allowed) / size
            planes.add(pulled.float() / size, found.direction / size, value=value, weights=self.w, phi=self.phi)
            self.idle = 0
        elif self.idle == _PATIENCE:
            warnings.warn(
                f"step {number + 1}: no plane was added in {_PATIENCE} refreshes, since phi lies within the tolerance "
                f"of psi (h = {found.value:.3g}, allowed {found.allowed:.3g}); the weights stand still. Lower "
                "tolerance",
                stacklevel=4,
            )
        planes.anchor(self.w, self.phi)
        if config.multipliers == "qp":
            self.gram = planes.gram()

    def _distance(self, psi: Tensor) -> Distance:
        rest = self.phi - psi
        size, tolerance = len(rest), self.config.tolerance
        if self.config.norm == "l1":
            # sign(0) = +1 is a subgradient too, and makes every entry one bit
            direction = torch.where(rest < 0, -1.0, 1.0).to(rest)
            return Distance(float(rest.abs().sum()), direction, tolerance * size)
        norm = float(rest.norm())
        return Distance(norm, rest / max(norm, 1e-12), tolerance * size**0.5)


def nonnegative_least_squares(gram: Tensor, target: Tensor, start: Tensor) -> Tensor:
    """Minimise x'Qx/2 - t'x over x >= 0 by coordinate descent; Q is positive semi-definite, (L, L).

    Example:
        >>> target = torch.tensor([1.0, -1.0], dtype=torch.float64)
        >>> nonnegative_least_squares(torch.eye(2).double(), target, torch.zeros_like(target))
        tensor([1., 0.], dtype=torch.float64)
    """
    rows, solution = gram.tolist(), start.tolist()
    rest = (target - gram @ start).tolist()
    for _ in range(_QP_SWEEPS):
        for number, row in enumerate(rows):
            old = solution[number]
            solution[number] = max(0.0, old + rest[number] / (row[number] + 1e-12))
            moved = solution[number] - old
            if moved:
                rest = [value - moved * entry for value, entry in zip(rest, row, strict=True)]
    return target.new_tensor(solution)


def cutting_plane(problem: Problem) -> CuttingPlane:
    """The default solver, with the settings as given."""
    return CuttingPlane(problem)


def qp(problem: Problem) -> CuttingPlane:
    """The same with multipliers from the dual of each step's quadratic problem: no step size for them, most robust."""
    return CuttingPlane(with_settings(problem, multipliers="qp"))


def paper(problem: Problem) -> CuttingPlane:
    """Algorithm 1 as printed, with its multipliers projected: raw L1 planes, plain gradient steps, two phases. Fragile.

    Phase 1 takes half the steps unless `phase1_steps` says otherwise.
    """
    config = problem.config
    return CuttingPlane(
        with_settings(
            problem,
            norm="l1",
            normalize=False,
            weight_optimizer="sgd",
            multipliers="ascent",
            phase1_steps=config.phase1_steps or max(config.steps // 2, 1),
        )
    )


def with_settings(problem: Problem, **changes: object) -> Problem:
    """Return the problem with other settings."""
    return dataclasses.replace(problem, config=dataclasses.replace(problem.config, **changes))  # type: ignore[arg-type]
