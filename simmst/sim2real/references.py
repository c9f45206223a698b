"""Methods to compare re-weighting with: plain training on simulated, real or both, and other hypergradients."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from simmst.errors import ConfigError
from simmst.sim2real.inner import move
from simmst.sim2real.problem import MakeSolver, Mean, Problem, Record

_EXACT_LIMIT = 5000  # parameters; the Hessian is dense
_NEWTON_STEPS = 50


class Plain:
    """Adam on the mean loss of simulated, real, or both kinds of samples, in stages.

    Args:
        problem: model, loss, samples and settings.
        stages: kinds of samples that each stage sees; the steps are divided evenly among the stages.
    """

    strided: frozenset[str] = frozenset()
    blocked: frozenset[str] = frozenset()

    def __init__(self, problem: Problem, stages: tuple[tuple[str, ...], ...]) -> None:
        self.problem, self.config = problem, problem.config
        sizes = {"simulated": self.config.simulated_batch, "real": self.config.real_batch}
        samples = {"simulated": problem.simulated, "real": problem.real}
        self.stages = [[problem.mean(samples[kind], sizes[kind], kind) for kind in kinds] for kinds in stages]
        self.phi = problem.model.flatten()
        self.rate = self.config.lr_plain
        self.adam = Adam(self.phi)

    def step(self, number: int) -> Record:
        """Take one step of Adam."""
        stage = min(number * len(self.stages) // self.config.steps, len(self.stages) - 1)
        if number == -(-stage * self.config.steps // len(self.stages)):
            self.adam = Adam(self.phi)
        gradient, value = self._gradient(self.stages[stage], number)
        self.phi = self.phi - self.adam.step(gradient + self.config.ridge * self.phi, self.rate)
        return {"G": value}

    def _gradient(self, means: list[Mean], number: int) -> tuple[Tensor, float]:
        """Return gradient and value of the mean loss over all samples of the stage, as if they were one set."""
        found = [mean.gradient(self.phi, number) for mean in means]
        total = sum(len(mean.samples) for mean in means)
        shares = [len(mean.samples) / total for mean in means]
        gradient = torch.stack([part * share for (part, _), share in zip(found, shares, strict=True)]).sum(0)
        return gradient, sum(value * share for (_, value), share in zip(found, shares, strict=True))

    def weights(self) -> Tensor:
        """Return zeros, because nothing is weighted."""
        return torch.zeros(self.problem.num_weights, device=self.phi.device)

    def candidates(self) -> dict[str, Tensor]:
        """Return the model."""
        return {"phi": self.phi}

    def slow_down(self) -> None:
        """Halve the step size."""
        self.rate /= 2

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that the next step depends on."""
        return {
            "phi": self.phi.clone(),
            **self.adam.state("adam"),
            "rate": torch.tensor(self.rate, dtype=torch.float64),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the result of `state_dict`."""
        self.phi, self.rate = state["phi"].to(self.phi.device).clone(), float(state["rate"])
        self.adam.load("adam", state)


class Online:
    """The hypergradient of one step, as in Meta-Weight-Net: w follows G after a weighted step, then phi takes a step.

    Source: Shu et al. 2019, "Meta-Weight-Net: Learning an Explicit Mapping For Sample Weighting".
    """

    strided = frozenset({"w", "adam_first", "adam_second"})
    blocked: frozenset[str] = frozenset()

    def __init__(self, problem: Problem) -> None:
        self.problem, self.config = problem, problem.config
        self.phi = problem.model.flatten()
        self.w = torch.zeros(problem.num_weights, device=self.phi.device)
        self.adam = Adam(self.w)
        self.pace = 1.0
        problem.inner.check_derivative(self.phi)

    def step(self, number: int) -> Record:
        """Move w by the hypergradient, then phi by a weighted step."""
        inner, outer = self.problem.inner, self.problem.outer
        weights = self.problem.spread(self.w)
        path = inner.unroll(weights, self.phi, number, pace=self.pace)
        gradient, value = outer.gradient(path.end, number)
        hyper = -self.problem.gather(inner.pull_back(path, weights, gradient))
        self.w = self.w - self.adam.step(hyper + self.problem.decay(self.w), self.config.lr_weights)
        self.phi = inner.unroll(self.problem.spread(self.w), self.phi, number, pace=self.pace).end
        return {"G": value}

    def weights(self) -> Tensor:
        """Return w."""
        return self.w

    def candidates(self) -> dict[str, Tensor]:
        """Return the model."""
        return {"phi": self.phi}

    def slow_down(self) -> None:
        """Halve the step sizes of phi and psi."""
        self.pace /= 2

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that the next step depends on."""
        pace = torch.tensor(self.pace, dtype=torch.float64)
        return {"phi": self.phi.clone(), "w": self.w.clone(), "pace": pace, **self.adam.state("adam")}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the result of `state_dict`."""
        self.phi, self.w = (state[name].to(self.phi.device).clone() for name in ("phi", "w"))
        self.pace = float(state["pace"])
        self.adam.load("adam", state)


class Exact:
    """The exact hypergradient at the minimiser of the inner problem, found by Newton's method; for small models.

    Raises:
        ConfigError: the model has more parameters than a dense Hessian is made for or is not in float64, batches are
            asked for, or there are several processes.
    """

    strided: frozenset[str] = frozenset()
    blocked: frozenset[str] = frozenset()

    def __init__(self, problem: Problem) -> None:
        if problem.processes.world_size > 1:
            raise ConfigError("solver 'exact' runs in one process; start it without torchrun")
        if problem.model.size > _EXACT_LIMIT:
            raise ConfigError(
                f"solver 'exact' inverts a Hessian of {problem.model.size} parameters; it takes at most "
                f"{_EXACT_LIMIT}; choose 'cutting-plane'"
            )
        if problem.config.simulated_batch is not None:
            raise ConfigError("solver 'exact' minimises over all simulated samples; set simulated_batch=None")
        if problem.model.dtype != torch.float64:
            raise ConfigError(
                f"solver 'exact' solves in float64, but the module is of {problem.model.dtype}; call module.double() "
                "and give samples in float64"
            )
        self.problem, self.config = problem, problem.config
        self.phi = problem.model.flatten()
        self.w = torch.zeros(problem.num_weights, device=self.phi.device, dtype=torch.float64)
        self.adam = Adam(self.w)

    def step(self, number: int) -> Record:
        """Minimise the inner problem, and move w by the hypergradient there."""
        share = torch.sigmoid(self.problem.spread(self.w))
        hessian = self._minimise(share)
        gradient, value = self.problem.outer.gradient(self.phi, number)
        direction = torch.linalg.solve(hessian, gradient)
        index = torch.arange(len(share))
        slopes = self.problem.inner.directional(self.phi, direction, index)
        hyper = self.problem.gather(-share * (1 - share) * slopes / len(share))
        self.w = self.w - self.adam.step(hyper + self.problem.decay(self.w), self.config.lr_weights)
        return {"G": value}

    def _minimise(self, share: Tensor) -> Tensor:
        """Minimise by Newton's method with steps that are halved until the value falls; return the Hessian at the end.

        The Hessian is shifted to be positive definite where it is not.
        """
        samples = move(self.problem.simulated.batch(torch.arange(len(share))), self.phi.device)
        model, ridge = self.problem.model, self.config.ridge

        def value(phi: Tensor) -> Tensor:
            return share @ model.losses(phi, samples) / len(share) + 0.5 * ridge * (phi @ phi)

        damping = 0.0
        identity = torch.eye(len(self.phi), dtype=torch.float64, device=self.phi.device)
        for _ in range(_NEWTON_STEPS):
            gradient = torch.func.grad(value)(self.phi)
            hessian: Tensor = torch.func.hessian(value)(self.phi).detach()
            lowest = float(torch.linalg.eigvalsh(hessian)[0])
            shifted = hessian + max(damping, 1e-6 - lowest if lowest < 1e-6 else 0.0) * identity
            if float(gradient.norm()) < 1e-9 * max(1.0, float(self.phi.norm())):
                return shifted
            step = torch.linalg.solve(shifted, gradient)
            size = 1.0
            while float(value(self.phi - size * step)) > float(value(self.phi)) and size > 1e-6:
                size /= 2
            self.phi = self.phi - size * step
        return shifted

    def weights(self) -> Tensor:
        """Return w."""
        return self.w.float()

    def candidates(self) -> dict[str, Tensor]:
        """Return the minimiser."""
        return {"phi": self.phi}

    def slow_down(self) -> None:
        """Do nothing, because Newton's method searches along its steps."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that the next step depends on."""
        return {"phi": self.phi.clone(), "w": self.w.clone(), **self.adam.state("adam")}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the result of `state_dict`."""
        self.phi, self.w = state["phi"].clone(), state["w"].clone()
        self.adam.load("adam", state)


class Adam:
    """Adam for one vector, as a function from gradient to step; Kingma and Ba 2015.

    Example:
        >>> adam = Adam(torch.zeros(2))
        >>> adam.step(torch.tensor([3.0, -0.1]), 0.05)
        tensor([ 0.0500, -0.0500])
    """

    def __init__(self, like: Tensor) -> None:
        self.first, self.second, self.taken = torch.zeros_like(like), torch.zeros_like(like), 0

    def step(self, gradient: Tensor, rate: float) -> Tensor:
        """Return the step to subtract."""
        self.taken += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient.square()
        first, second = self.first / (1 - 0.9**self.taken), self.second / (1 - 0.999**self.taken)
        return rate * first / (second.sqrt() + 1e-8)

    def state(self, name: str) -> dict[str, Tensor]:
        """Return the state, with keys that begin with `name`."""
        taken = torch.tensor(self.taken)
        return {f"{name}_first": self.first.clone(), f"{name}_second": self.second.clone(), f"{name}_taken": taken}

    def load(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Restore the result of `state`."""
        self.first, self.second = (state[f"{name}_{part}"].to(self.first).clone() for part in ("first", "second"))
        self.taken = int(state[f"{name}_taken"])


def plain(*stages: tuple[str, ...]) -> MakeSolver:
    """Return the solver that trains in stages, each on the kinds of samples that it names."""
    return lambda problem: Plain(problem, stages)
