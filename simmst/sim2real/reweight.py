"""The entry point: weight simulated samples so that a model trained on them serves a small set of real data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from simmst.distributed import ALONE, ProcessGroup
from simmst.errors import ConfigError, SimmstError
from simmst.foundation.documents import DocumentError, checked
from simmst.foundation.modes import evaluating
from simmst.sim2real.config import ReweightingConfig
from simmst.sim2real.cutting_plane import cutting_plane, paper, qp
from simmst.sim2real.flat_model import PerSampleLoss
from simmst.sim2real.problem import MakeSolver, Mean, Problem, Record, Solver
from simmst.sim2real.references import Adam, Exact, Online, plain
from simmst.sim2real.samples import Samples, as_samples, refuse_overlap

SOLVERS: dict[str, MakeSolver] = {
    "cutting-plane": cutting_plane,
    "paper": paper,
    "qp": qp,
    "online": Online,
    "exact": Exact,
    "unweighted": plain(("simulated",)),
    "real-only": plain(("real",)),
    "joint": plain(("simulated", "real")),
    "pretrain-finetune": plain(("simulated",), ("real",)),
}
_SNAPSHOT_EVERY = 10
_MOST_RESTORES = 8

Save = Callable[[dict[str, Tensor], dict[str, Any]], None]


class DivergedError(SimmstError, ArithmeticError):
    """Raised if numbers become NaN or infinite again and again, even with ever smaller steps."""


@dataclass
class Reweighted:
    """Result of `reweight`; the chosen model is in the module.

    Attributes:
        weights: sigma(w), float32 (n,), of every simulated sample.
        raw_weights: w, with one entry per sample, group or feature.
        chosen: name of the chosen model: "phi", "theta" or "refit".
        chosen_step: step at which the chosen model was taken.
        scores: best loss over the steps on the validation samples, by candidate; empty without validation samples.
        history: logged records, one per step.
    """

    weights: Tensor
    raw_weights: Tensor
    chosen: str
    chosen_step: int
    scores: dict[str, float]
    history: list[Record] = field(repr=False)

    @property
    def effective_sample_size(self) -> float:
        """(sum sigma)^2 / sum sigma^2: n for uniform weights, 1 if one sample has all the weight."""
        return float(self.weights.sum().square() / self.weights.square().sum())


def reweight(
    module: nn.Module,
    per_sample_loss: PerSampleLoss,
    simulated: Any,
    real: Any,
    *,
    validation: Any = None,
    solver: str = "cutting-plane",
    config: ReweightingConfig | None = None,
    groups: Tensor | None = None,
    features: Tensor | None = None,
    resume: tuple[Mapping[str, Tensor], Mapping[str, Any]] | None = None,
    save: Save | None = None,
    progress: Callable[[int, int, Record], None] | None = None,
    processes: ProcessGroup = ALONE,
) -> Reweighted:
    r"""Weight simulated samples by what they teach about real ones, and train a model on both.

    .. math:: \min_w G(\phi^*(w)), \qquad \phi^*(w) = \arg\min_\phi \frac1n \sum_j \sigma(w_j) L_j(\phi)

    The algorithm assumes nothing about the model: it takes any module, any loss with one number per sample and any two
    data sets, so it can also clean noisy labels or adapt domains.

    Args:
        module: the model, which starts from its current parameters. An untrained model is best, because a model
            trained on all samples has memorised those that should count less. The module holds the chosen parameters
            afterwards, and its layers are in training or evaluation mode as before.
        per_sample_loss: called as ``per_sample_loss(module, batch)``, returns (B,).
        simulated: samples to be weighted: tensors, a torch data set of the map style, or an object with ``__len__`` and
            ``batch(indices)``.
        real: samples that decide the weights and are also trained on, in the same forms.
        validation: other real samples, which choose among the models and are never trained on. None chooses the last
            phi.
        solver: a key of `SOLVERS`.
        config: the settings.
        groups: int64 (n,): simulated samples of the same group (such as a city) share a weight.
        features: (G, P), known features of each group, best standardised. The weight of group g is then
            ``sigmoid(features[g] @ w)``, with P entries of w in all. Needs `groups`.
        resume: last arguments of `save` in the run to resume.
        save: called with tensors and numbers every `checkpoint_every` steps and at the end.
        progress: called as progress(steps done, steps, record) after each step.
        processes: processes that share the work, from `simmst.distributed.process_group`. All of them make the same
            call with the same data, `resume` included, and get the same result. Rank 0 calls `save` and `progress`.

    Returns:
        The weights, the choice and the log.

    Raises:
        ConfigError: the solver is unknown, settings, module, loss or groups do not fit, or the planes do not fit into
            memory.
        DataError: there are no simulated or no real samples, a sample's loss or its gradient is not finite, or real
            samples are validation samples as well; the message names the sample.
        DivergedError: a step is not finite, even after restarts with ever smaller steps.
        RankError: another rank ended, or did not answer in time.

    Source:
        Sim-MSTNet, section 2.1-2.2, Algorithm 1.

    Example:
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <...>
        >>> x, noise = torch.randn(200, 1), torch.randn(200)
        >>> wrong = torch.arange(200) < 80
        >>> y = torch.where(wrong, -x.squeeze(1), x.squeeze(1)) + 0.1 * noise
        >>> real = torch.randn(20, 1)
        >>> found = reweight(
        ...     nn.Linear(1, 1),
        ...     lambda module, batch: (module(batch[0]).squeeze(1) - batch[1]).square() / 2,
        ...     (x, y),
        ...     (real, real.squeeze(1)),
        ...     config=ReweightingConfig(steps=400),
        ... )
        >>> bool(found.weights[~wrong].mean() > 1.5 * found.weights[wrong].mean())
        True
    """
    if solver not in SOLVERS:
        raise ConfigError(f"there is no solver {solver!r}; there are: {', '.join(SOLVERS)}")
    with evaluating(module):
        chosen = config or ReweightingConfig()
        problem = Problem(module, per_sample_loss, simulated, real, chosen, groups, processes, features)
        chooses = None if validation is None else as_samples(validation, "validation")
        if chooses is not None:
            refuse_overlap(problem.real, chooses)
        start = problem.model.flatten()
        problem.refuse_bad_samples(start, chooses)
        run = _Run(solver, SOLVERS[solver](problem), chooses, save)
        if resume is not None:
            run.load(*resume)
        run.steps(progress)
        run.refit(start)
        return run.finish()


@dataclass
class RunNumbers:
    """State of a run, apart from its tensors, that another run needs to resume it."""

    settings: dict[str, Any]
    derivative: str
    done: int
    restores: int
    snapshot_step: int
    best: dict[str, tuple[float, int]]
    history: list[dict[str, float]]


class _Run:
    """The steps of a solver, with its guards, its log and the choice among its models."""

    def __init__(self, name: str, solver: Solver, validation: Samples | None, save: Save | None) -> None:
        self.name, self.solver, self.save = name, solver, save
        self.problem, self.config = solver.problem, solver.problem.config
        # All ranks take part in gathering the state that one of them writes.
        processes = self.problem.processes
        self.saves = processes.all_reduce_min(int(save is None), self.problem.model.device) == 0
        if processes.rank:
            self.save = None
        self.held_out: Mean | None = None
        if validation is not None:
            self.held_out = self.problem.mean(validation, None, "validation")
        self.done = 0
        self.restores = 0
        self.before: list[Tensor] = []  # the models before the current step, once a step has failed
        self.history: list[Record] = []
        self.best: dict[str, tuple[float, int, Tensor]] = {}
        self.snapshot = (0, solver.state_dict())

    def steps(self, progress: Callable[[int, int, Record], None] | None) -> None:
        """Take the remaining steps."""
        while self.done < self.config.steps:
            if self.restores:
                self.before = [phi.clone() for phi in self.solver.candidates().values()]
            record = self.solver.step(self.done)
            if not self._is_finite(record):
                self._restore(record)
                continue
            self.done += 1
            self.history.append({"step": float(self.done), **record})
            if self.done % self.config.validate_every == 0 or self.done == self.config.steps:
                self._score(self.solver.candidates())
            if self.done % _SNAPSHOT_EVERY == 0:
                self.snapshot = (self.done, self.solver.state_dict())
            if self.saves and (self.done % self.config.checkpoint_every == 0 or self.done == self.config.steps):
                state = self.state()
                if self.save:
                    self.save(*state)
            if progress and not self.problem.processes.rank:
                progress(self.done, self.config.steps, self.history[-1])

    def refit(self, start: Tensor) -> None:
        """Train a model from the start with the current weights, if there are validation samples to compare it on."""
        if self.held_out is None or not self.config.refit_steps or "theta" not in self.solver.candidates():
            return
        inner, adam, phi = self.problem.inner, Adam(start), start
        weights = self.problem.spread(self.solver.weights())
        for number in range(self.config.refit_steps):
            gradient, _ = inner.gradient(phi, weights, inner.own_draws(number))
            phi = phi - adam.step(gradient, self.config.lr_plain)
        self._score({"refit": phi})

    def finish(self) -> Reweighted:
        """Put the chosen model into the module."""
        name, step, phi = "phi", self.done, self.solver.candidates()["phi"]
        scores = {candidate: score for candidate, (score, _, _) in self.best.items()}
        if scores:
            name = min(scores, key=scores.__getitem__)
            _, step, phi = self.best[name]
        self.problem.model.store(phi)
        own, processes = self.solver.weights(), self.problem.processes
        raw = self.problem.weight_processes.all_gather(own, self.problem.total_weights)
        share = processes.all_gather(torch.sigmoid(self.problem.spread(own)).float(), len(self.problem.simulated))
        return Reweighted(share, raw, name, step, scores, self.history)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return everything that the rest of the run depends on."""
        tensors = {f"solver.{name}": tensor for name, tensor in self._gathered(self.solver.state_dict()).items()}
        tensors |= {f"best.{name}": phi for name, (_, _, phi) in self.best.items()}
        tensors |= {f"snapshot.{name}": tensor for name, tensor in self._gathered(self.snapshot[1]).items()}
        best = {name: [score, step] for name, (score, step, _) in self.best.items()}
        numbers = {
            "settings": self._settings(),
            "derivative": self.problem.inner.derivative,
            "done": self.done,
            "restores": self.restores,
            "snapshot_step": self.snapshot[0],
            "best": best,
            "history": list(self.history),
        }
        return tensors, numbers

    def _gathered(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return, on rank 0, a solver's state with the columns of all ranks, which any number of ranks can resume."""
        problem, whole = self.problem, dict(state)
        for name in sorted(self.solver.strided & state.keys()):
            whole[name] = problem.weight_processes.all_gather(state[name], problem.total_weights)
        for name in sorted(self.solver.blocked & state.keys()):
            unit = _unit(state[name])
            whole[name] = problem.processes.gather_block(state[name], -(-problem.model.size * unit // 8), unit=unit)
        return whole

    def _shards(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return this rank's columns of a solver's whole state."""
        problem, own = self.problem, dict(state)
        for name in self.solver.strided & state.keys():
            own[name] = problem.weight_processes.shard(state[name])
        for name in self.solver.blocked & state.keys():
            own[name] = problem.processes.shard_block(state[name], unit=_unit(state[name]))
        return own

    def _settings(self) -> dict[str, Any]:
        """Return the settings that a run must share with the run that it resumes."""
        problem = self.problem
        sizes = {"weights": problem.total_weights, "simulated samples": len(problem.simulated)}
        sizes |= {"real samples": len(problem.real), "parameters": problem.model.size}
        return {"solver": self.name, **sizes, **self.config.to_dict()}

    def load(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Restore the result of `state`.

        Raises:
            ConfigError: another solver saved it, with other settings, or for other data; the message names them.
        """
        try:
            found = checked(dict(numbers), RunNumbers)
        except DocumentError as error:
            raise ConfigError(f"the run to resume has no state of a re-weighting ({error})") from error
        saved, wanted = found.settings, self._settings()
        different = [
            f"{key} is {saved.get(key)!r}, wanted {wanted[key]!r}" for key in wanted if saved.get(key) != wanted[key]
        ]
        if different:
            raise ConfigError(f"the run to resume differs: {'; '.join(different)}")
        self.problem.inner.derivative = found.derivative

        def part(name: str) -> dict[str, Tensor]:
            return {key[len(name) + 1 :]: tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}

        try:
            self.solver.load_state_dict(self._shards(part("solver")))
            self.snapshot = (found.snapshot_step, self._shards(part("snapshot")))
            models = part("best")
            self.best = {name: (score, step, models[name]) for name, (score, step) in found.best.items()}
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ConfigError(f"the run to resume does not fit ({type(error).__name__}: {error})") from error
        self.done, self.restores = found.done, found.restores
        self.history = list(found.history)

    def _score(self, candidates: Mapping[str, Tensor]) -> None:
        if self.held_out is None:
            return
        for name, phi in candidates.items():
            score = self.held_out.value(phi)
            if name not in self.best or score < self.best[name][0]:
                self.best[name] = (score, self.done, phi.clone())

    def _is_finite(self, record: Record) -> bool:
        vectors = [self.solver.weights(), *self.solver.candidates().values()]
        finite = all(abs(value) < float("inf") for value in record.values()) and all(
            bool(torch.isfinite(vector).all()) for vector in vectors
        )
        return bool(self.problem.processes.all_reduce_min(int(finite), self.problem.model.device))

    def _restore(self, record: Record) -> None:
        """Return to the last snapshot with steps of half the size.

        Raises:
            DataError: a sample's gradient is not finite; the message names the sample.
            DivergedError: eight restarts did not help.
        """
        self.restores += 1
        step, state = self.snapshot
        failed = self.done + 1
        if self.restores > _MOST_RESTORES:
            self.problem.refuse_bad_gradients(self.before)
            raise DivergedError(
                f"step {failed} is not finite after {_MOST_RESTORES} restarts with ever smaller steps ({record}); "
                "lower inner_lr and lr_model, or look for extreme values in the data. The last checkpoint is unchanged"
            )
        self.solver.load_state_dict(state)
        if self.restores == 1:  # only once, because the search takes the gradients of all samples
            self.problem.refuse_bad_gradients(self.solver.candidates().values())
        self.solver.slow_down()
        self.snapshot = (step, self.solver.state_dict())  # keeps the slower pace in case a step fails again
        self.done = step
        del self.history[step:]
        warnings.warn(
            f"step {failed} gave a number that is not finite; continuing from step {step} with steps of half the size",
            stacklevel=4,
        )


def _unit(columns: Tensor) -> int:
    """Return how many of these columns hold eight parameters: one byte of packed signs, or eight entries."""
    return 1 if columns.dtype == torch.uint8 else 8
