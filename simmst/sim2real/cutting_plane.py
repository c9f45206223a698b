"""The solver of Sim-MSTNet's Algorithm 1, modified so that it converges, and the algorithm as it is printed."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from simmst.sim2real.polyhedron import AdamState, Polyhedron
from simmst.sim2real.problem import Problem, Record

_NO_MULTIPLIER = 1e-12
_QP_SWEEPS = 6
_PATIENCE = 10  # refreshes without a new plane before a warning


class Distance(NamedTuple):
    """h = |phi - psi|, its gradient u for phi, and epsilon, the largest value allowed."""

    value: float
    direction: Tensor
    allowed: float


class CuttingPlane:
    """Solver that keeps phi near psi(w) by cutting planes, and moves w by their multipliers.

    In each step, the multipliers follow the planes' values (projected ascent, or the dual of the step's quadratic
    problem). Then w and phi move along the gradients of G plus those of the planes, and the same pass gives the values
    at the new point. Every `refresh_every` steps, planes without a multiplier and old planes are dropped, psi takes K
    steps, and the planes are lifted to admit (w, psi). If phi is too far from psi, a plane that touches h at phi is
    added.

    Args:
        problem: model, loss, samples and settings.

    Source: Sim-MSTNet, Algorithm 1, Eq. 1-8; multipliers projected and planes normalised, lifted and aged.
    """

    strided = frozenset({"w", "adam_exp_avg", "adam_exp_avg_sq", "planes.weight_rows", "planes.anchor_weights"})
    blocked = frozenset({"planes.model_rows", "planes.anchor_phi"})

    def __init__(self, problem: Problem) -> None:
        self.problem, self.config = problem, problem.config
        model = problem.model
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
            processes=problem.processes,
            weights_sharded=problem.groups is None,
        )
        self.gram = self.polyhedron.gram()  # of the planes, for "qp"
        self.pace = 1.0
        self.idle = 0  # refreshes since a plane was added
        self.distance, self.cosine = 0.0, 0.0  # as of the last refresh
        problem.inner.check_derivative(self.phi)

    def step(self, number: int) -> Record:
        """Take one outer step, and refresh the planes if they are due."""
        if number == 0:
            self._warm_up()
        gradient, value = self.problem.outer.gradient(self.phi, number)
        planes = self.polyhedron
        phase1 = self.config.phase1_steps is None or number < self.config.phase1_steps
        refreshes = phase1 and (number + 1) % self.config.refresh_every == 0
        if len(planes):
            if phase1:
                self._update_multipliers(gradient)
            coefficients = planes.multipliers if phase1 else 2 * planes.multipliers * planes.values.clamp(min=0).float()
            self._move(gradient, coefficients, log=refreshes)
        else:
            self.phi = self.phi - self.pace * self.config.lr_model * gradient
        highest = float(planes.values.max()) if len(planes) else 0.0
        if refreshes:
            self._refresh(number)
        low, middle, high = quantiles(self.problem.by_group(self.w))
        return {
            "G": value,
            "h": self.distance,
            "highest_plane": highest,
            "sum_multipliers": float(planes.multipliers.sum()),
            "planes": float(len(planes)),
            "weight_q05": low,
            "weight_q50": middle,
            "weight_q95": high,
            "cosine": self.cosine,
        }

    def weights(self) -> Tensor:
        """Return w."""
        return self.w

    def candidates(self) -> dict[str, Tensor]:
        """Return phi, which follows the real data, and theta, which follows the weighted simulated ones."""
        return {"phi": self.phi, "theta": self.theta}

    def slow_down(self) -> None:
        """Halve the step sizes of phi, of psi and of the multipliers."""
        self.pace /= 2

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that the next step depends on."""
        own = {"phi": self.phi, "theta": self.theta, "w": self.w}
        own |= dict(zip(("adam_exp_avg", "adam_exp_avg_sq", "adam_step"), self.adam, strict=True))
        own["scalars"] = torch.tensor([self.pace, self.idle, self.distance, self.cosine], dtype=torch.float64)
        planes = {f"planes.{name}": tensor for name, tensor in self.polyhedron.state_dict().items()}
        return {name: tensor.clone() for name, tensor in own.items()} | planes

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the result of `state_dict`."""
        self.phi, self.theta, self.w = (state[name].to(self.phi.device).clone() for name in ("phi", "theta", "w"))
        exp_avg, exp_avg_sq, step = (
            state[name].to(self.phi.device).clone() for name in ("adam_exp_avg", "adam_exp_avg_sq", "adam_step")
        )
        self.adam = exp_avg, exp_avg_sq, step
        self.pace, idle, self.distance, self.cosine = state["scalars"].tolist()
        self.idle = int(idle)
        self.polyhedron.load_state_dict(
            {name.removeprefix("planes."): tensor for name, tensor in state.items() if name.startswith("planes.")}
        )

        self.gram = self.polyhedron.gram() if self.config.multipliers == "qp" else self.gram

    def _warm_up(self) -> None:
        """Move theta down the inner problem with uniform weights, and start phi from its end."""
        inner = self.problem.inner
        uniform = self.problem.spread(torch.zeros_like(self.w))
        for number in range(self.config.warmup_steps):
            gradient, _ = inner.gradient(self.theta, uniform, inner.own_draws(number))
            self.theta = self.theta - self.pace * self.config.inner_lr * gradient
        self.phi = self.theta.clone()

    def _update_multipliers(self, gradient: Tensor) -> None:
        planes, decay = self.polyhedron, self.config.multiplier_decay
        if self.config.multipliers == "qp":
            lr = self.pace * self.config.lr_model
            target = planes.values - lr * planes.along(gradient)
            quadratic = lr * self.gram + decay * torch.eye(len(planes)).to(self.gram)
            planes.multipliers = nonnegative_least_squares(quadratic, target, planes.multipliers.double()).float()
            return
        ascent = planes.values.float() - decay * planes.multipliers
        planes.multipliers = (planes.multipliers + self.pace * self.config.lr_multipliers * ascent).clamp(min=0)

    def _move(self, gradient: Tensor, coefficients: Tensor, *, log: bool) -> None:
        """Move w and phi; with `log`, take the cosine between the moves of phi that planes and real data ask for."""
        config, before = self.config, self.phi.clone() if log else None
        adam = config.weight_optimizer == "adam"
        self.polyhedron.step_(
            coefficients,
            self.w,
            self.problem.decay(self.w),
            self.phi,
            gradient,
            lr_weights=config.lr_weights * (1.0 if adam else self.problem.total_weights),
            lr_model=self.pace * config.lr_model,
            adam_state=self.adam if adam else None,
        )
        if before is not None:
            pull = (before - self.phi) / (self.pace * config.lr_model) - gradient  # B^T s
            self.cosine = float(torch.nn.functional.cosine_similarity(-pull, gradient, dim=0))

    def _refresh(self, number: int) -> None:
        problem, config, planes = self.problem, self.config, self.polyhedron
        planes.drop(tolerance=_NO_MULTIPLIER, max_age=config.max_age)
        per_sample = problem.spread(self.w)
        start = self.theta if config.start == "tracker" else self.phi
        path = problem.inner.unroll(per_sample, start, number, pace=self.pace)
        self.theta = path.end
        planes.lift(self.w, path.end)
        found = self._distance(path.end)
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
                f"step {number + 1}: no plane was added in {_PATIENCE} refreshes, because phi is within the tolerance "
                f"of psi (h = {found.value:.3g}, allowed {found.allowed:.3g}), so the weights do not move. Lower "
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
            # sign(0) = +1 is a subgradient too, and lets every entry be one bit
            direction = torch.where(rest < 0, -1.0, 1.0).to(rest)
            return Distance(float(rest.abs().sum()), direction, tolerance * size)
        norm = float(rest.norm())
        return Distance(norm, rest / max(norm, 1e-12), tolerance * size**0.5)


def quantiles(w: Tensor) -> list[float]:
    """Return the 5 %, 50 % and 95 % quantiles of sigma(w), from at most 10,000 evenly spaced weights of this rank."""
    if not len(w):
        return [0.5] * 3
    few = torch.sigmoid(w[:: -(-len(w) // 10_000)].float())
    found: list[float] = torch.quantile(few, torch.tensor([0.05, 0.5, 0.95]).to(few)).tolist()
    return found


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
    """Return the default solver, with the settings as given."""
    return CuttingPlane(problem)


def qp(problem: Problem) -> CuttingPlane:
    """Return the default solver with multipliers from the dual of each step's quadratic problem.

    It is the most robust, and needs no step size for the multipliers.
    """
    return CuttingPlane(with_settings(problem, multipliers="qp"))


def paper(problem: Problem) -> CuttingPlane:
    """Return Algorithm 1 as printed, with its multipliers projected: raw L1 planes, plain gradient steps, two phases.

    It is fragile. Phase 1 takes half the steps unless `phase1_steps` says otherwise.
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
