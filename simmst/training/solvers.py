"""The ways to learn from real and simulated windows together, by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import nn

from simmst.data import CityWindows, WindowSource
from simmst.distributed import ALONE, Distribution
from simmst.errors import ConfigError
from simmst.foundation.progress import Progress, quiet
from simmst.training.config import TrainingConfig
from simmst.training.history import History
from simmst.training.loop import train_stage
from simmst.training.mixing import MixedWindows, WeightedWindows
from simmst.training.overlap import refuse_overlap
from simmst.training.reweighting import STAGE, WindowWeights, reweight_stage
from simmst.training.run_folder import RunFolder
from simmst.training.validation import validation_losses


@dataclass(frozen=True)
class Problem:
    """What a solver is given beside the model.

    Args:
        real_train: training windows of the real city.
        real_validation: windows of its validation split; None where there is none.
        simulated: windows of the simulated cities; None where there are none.
        config: the settings.
        run: where metrics and checkpoints go; None writes nothing.
        progress: called after each step.
        distribution: the processes that share the re-weighting.
    """

    real_train: CityWindows | None
    real_validation: CityWindows | None
    simulated: CityWindows | None
    config: TrainingConfig
    run: RunFolder | None = None
    progress: Progress = quiet
    distribution: Distribution = ALONE

    def stage(
        self,
        name: str,
        model: nn.Module,
        windows: WindowSource,
        config: TrainingConfig | None = None,
        *,
        keep_initial: bool = False,
    ) -> History:
        """Train the model for one stage on some windows, validating on the real ones.

        With `keep_initial` the stage goes on from a trained model: its weights compete, and its autoregression stays.
        """
        return train_stage(
            model,
            windows,
            self.real_validation,
            config or self.config,
            stage=name,
            run=self.run,
            keep_initial=keep_initial,
            fit_highway=self.config.fit_highway and not keep_initial,
            progress=self.progress,
        )


@dataclass(frozen=True)
class Result:
    """What a solver leaves beside the trained model.

    Args:
        histories: one a stage, in order.
        chosen: the stage whose weights are in the model.
        window_weights: what a solver that weighs simulated windows gave them.
        earlier_score: the validation score of the weights in the model where they are older than the last stage.

    Example:
        >>> Result((History("real", best_score=0.5),), "real").best_score
        0.5
    """

    histories: tuple[History, ...]
    chosen: str
    window_weights: WindowWeights | None = None
    earlier_score: float | None = None

    @property
    def best_score(self) -> float | None:
        """The validation score of the weights in the model; None without a validation split."""
        return self.histories[-1].best_score if self.earlier_score is None else self.earlier_score


class Rival:
    """The weights that a model has now, against which later ones compete on the validation windows."""

    def __init__(self, model: nn.Module, problem: Problem) -> None:
        self.model = model
        self.score: float | None = None
        self.weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        if problem.real_validation is not None:
            losses = validation_losses(model, problem.real_validation, problem.config, where=f"stage {STAGE!r}")
            self.score = float(np.nanmean(losses))

    def beats(self, score: float | None) -> bool:
        """Whether they have the better score; never without a validation split."""
        return self.score is not None and score is not None and self.score < score

    def restore(self) -> None:
        """Put them back into the model."""
        self.model.load_state_dict(self.weights)


Solver = Callable[[nn.Module, Problem], Result]


@dataclass(frozen=True)
class SolverEntry:
    """A solver and the windows it cannot do without ("real", "simulated")."""

    solver: Solver
    needs: tuple[str, ...]


def real_only(model: nn.Module, problem: Problem) -> Result:
    """Train on the real windows alone."""
    return Result((problem.stage("real", model, _given(problem.real_train)),), "real")


def joint(model: nn.Module, problem: Problem) -> Result:
    """Train on batches mixed from real and simulated windows, `config.real_share` of each batch real."""
    windows = MixedWindows(_given(problem.real_train), _given(problem.simulated), problem.config.real_share)
    return Result((problem.stage("joint", model, windows),), "joint")


def pretrain_finetune(model: nn.Module, problem: Problem) -> Result:
    """Train on the simulated windows, then on the real ones at a lower learning rate.

    Both stages are stopped by the real validation split. The second starts from the first one's score, so when no epoch
    of fine-tuning beats the pre-trained model there, the pre-trained model is kept.
    """
    pretrained = problem.stage("pretrain", model, _given(problem.simulated))
    finer = _finer(problem.config)
    finetuned = problem.stage("finetune", model, _given(problem.real_train), finer, keep_initial=True)
    return Result((pretrained, finetuned), "finetune" if finetuned.best_epoch > 0 else "pretrain")


def reweighting(name: str) -> Solver:
    """Return the solver that weighs simulated windows by a method of `simmst.sim2real`, and trains on with them.

    What follows the weighing is `config.after_reweighting`: by default the untrained model is trained anew on simulated
    windows drawn by their weights, and then on the real ones. The model that the weighing left is kept where the real
    validation split finds none of them better; without one the last is kept.
    """

    def solver(model: nn.Module, problem: Problem) -> Result:
        simulated, real, config = _given(problem.simulated), _given(problem.real_train), problem.config
        untrained = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        history, weights = reweight_stage(
            name,
            model,
            simulated,
            real,
            problem.real_validation,
            config,
            run=problem.run,
            progress=problem.progress,
            distribution=problem.distribution,
        )
        if problem.distribution.rank or config.after_reweighting == "nothing":  # what follows is the work of rank 0
            return Result((history,), STAGE, weights)
        found = Rival(model, problem)
        histories = [history]
        if config.after_reweighting == "retrain":
            model.load_state_dict(untrained)
            histories.append(problem.stage("pretrain", model, weighted_windows(simulated, weights, config)))
        histories.append(problem.stage("finetune", model, real, _finer(config), keep_initial=True))
        if found.beats(histories[-1].best_score):
            found.restore()
            return Result(tuple(histories), STAGE, weights, found.score)
        better = [later.stage for later in histories[1:] if later.best_epoch > 0]
        return Result(tuple(histories), better[-1] if better else STAGE, weights)

    return solver


def weighted_windows(simulated: CityWindows, weights: WindowWeights, config: TrainingConfig) -> WeightedWindows:
    """Return simulated windows to be drawn by their weights: those weighed, or all of cities weighed as wholes."""
    assert weights.windows is not None  # noqa: S101 - reweight_stage() sets it
    if config.weights == "sample" or not simulated.parts:
        return WeightedWindows(weights.windows, weights.weights)
    lengths = simulated.lengths
    return WeightedWindows(simulated, np.repeat(weights.by_city() / lengths, lengths))


def _finer(config: TrainingConfig) -> TrainingConfig:
    return dataclasses.replace(
        config,
        epochs=config.finetune_epochs or config.epochs,
        learning_rate=config.learning_rate * config.finetune_learning_rate,
    )


REWEIGHTING = ("cutting-plane", "qp", "paper", "online")
SOLVERS: dict[str, SolverEntry] = {
    "real-only": SolverEntry(real_only, ("real",)),
    "joint": SolverEntry(joint, ("real", "simulated")),
    "pretrain-finetune": SolverEntry(pretrain_finetune, ("real", "simulated")),
    **{name: SolverEntry(reweighting(name), ("real", "simulated")) for name in REWEIGHTING},
}


def solve(
    name: str,
    model: nn.Module,
    *,
    real_train: CityWindows | None,
    real_validation: CityWindows | None,
    simulated: CityWindows | None = None,
    config: TrainingConfig,
    run: RunFolder | None = None,
    progress: Progress = quiet,
    distribution: Distribution = ALONE,
) -> Result:
    """Train a model with the solver of a name; the best weights are in the model afterwards.

    Args:
        name: a key of `SOLVERS`.
        model: called as ``model(values, marks, mask=mask)``.
        real_train: training windows of the real city.
        real_validation: windows of its validation split, for early stopping and the choice between stages.
        simulated: windows of the simulated cities.
        config: the settings.
        run: where metrics and checkpoints go; None writes nothing. A run that was killed goes on when called again.
        progress: called after each step.
        distribution: the processes that share the re-weighting; what follows it is done by rank 0, whose result counts.

    Returns:
        The history of each stage, and which one the model's weights come from.

    Raises:
        ConfigError: no solver of this name, or the solver needs windows it was not given.
        DataError: the validation split has slots of the training split.

    Example:
        >>> solve("magic", nn.Linear(1, 1), real_train=None, real_validation=None, config=TrainingConfig())
        Traceback (most recent call last):
            ...
        simmst.errors.ConfigError: there is no solver 'magic'; there are: cutting-plane, joint, online, \
paper, pretrain-finetune, qp, real-only
    """
    entry = SOLVERS.get(name)
    if entry is None:
        raise ConfigError(f"there is no solver {name!r}; there are: {', '.join(sorted(SOLVERS))}")
    for kind, windows in (("real", real_train), ("simulated", simulated)):
        if kind in entry.needs and windows is None:
            others = [other for other, its in sorted(SOLVERS.items()) if kind not in its.needs]
            instead = f", or choose a solver that needs none ({', '.join(others)})" if others else ""
            raise ConfigError(f"solver {name!r} needs {kind} windows and got none; give {kind} data{instead}")
    refuse_overlap(real_train, real_validation)
    refuse_processes(name, distribution)
    return entry.solver(model, Problem(real_train, real_validation, simulated, config, run, progress, distribution))


def refuse_processes(name: str, distribution: Distribution) -> None:
    """Raise where several processes were started for a solver that has work for one.

    Raises:
        ConfigError: says which solvers share theirs.

    Example:
        >>> refuse_processes("real-only", ALONE)
    """
    if distribution.world_size > 1 and name not in REWEIGHTING:
        raise ConfigError(
            f"solver {name!r} runs in one process, and {distribution.world_size} were started; "
            f"start it without torchrun, or choose one that shares its work: {', '.join(REWEIGHTING)}"
        )


def _given(windows: CityWindows | None) -> CityWindows:
    assert windows is not None  # noqa: S101 - solve() has checked what the solver needs
    return windows
