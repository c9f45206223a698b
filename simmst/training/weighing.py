"""The stage that weighs simulated windows by what they teach about the real ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from simmst.data import Batch, CityWindows
from simmst.distributed import ProcessGroup
from simmst.errors import ConfigError
from simmst.foundation.progress import Progress
from simmst.models import TaskWeights, task_losses
from simmst.sim2real import Reweighted, reweight
from simmst.training.chosen_windows import ChosenWindows, choose_windows
from simmst.training.city_features import rank_features
from simmst.training.config import TrainingConfig
from simmst.training.history import History
from simmst.training.run_folder import RunFolder
from simmst.training.seeds import derive_seed, seeded
from simmst.training.stage import Stage, StageState
from simmst.training.task_weighting import refuse_changing_weights

STAGE = "reweight"
_EVEN = 1024  # real windows whose losses set the weights of the tasks


@dataclass(frozen=True)
class WindowWeights:
    """The weights of simulated windows that a solver has learned.

    Attributes:
        weights: float32 (n,), between 0 and 1; all start at 0.5.
        cities: int64 (n,), city of each window.
        windows: windows that the weights belong to.
        num_cities: number of cities.

    Example:
        >>> given = WindowWeights(np.array([0.5, 0.5, 0.2], np.float32), np.array([0, 0, 2]), None, 3)
        >>> given.by_city().tolist()
        [0.5, 0.0, 0.20000000298023224]
    """

    weights: np.ndarray
    cities: np.ndarray
    windows: ChosenWindows | None
    num_cities: int

    def by_city(self) -> np.ndarray:
        """Return the mean weight of each city's windows, float64 (C,); 0 for a city without any."""
        count = np.bincount(self.cities, minlength=self.num_cities)
        total = np.bincount(self.cities, weights=self.weights, minlength=self.num_cities)
        return total / np.maximum(count, 1)


def weigh(
    solver: str,
    model: nn.Module,
    simulated: CityWindows,
    real: CityWindows,
    validation: CityWindows | None,
    config: TrainingConfig,
    *,
    parameters: Sequence[Mapping[str, Any]] | None = None,
    run: RunFolder | None,
    progress: Progress,
    processes: ProcessGroup,
) -> tuple[History, WindowWeights]:
    """Weigh simulated windows, and leave the solver's model in `model`.

    The loss of a window is that of its tasks without missing targets, weighted by Sim-MSTNet's Eq. 13 at the start.
    These task weights stay fixed, so only the weights of the windows are learned. A loss of "quantile" or "mae" is
    replaced by "huber", because kinks have no second derivative. Dropout is off. Everything is computed in float32,
    regardless of `config.precision`.

    Args:
        solver: name of a solver of `simmst.sim2real`.
        model: model called as ``model(values, marks, mask=mask)``; its operators need forward-mode derivatives.
        simulated: windows of the simulated cities; `config.samples_per_city` of each city are weighed.
        real: windows of the real city to train on.
        validation: windows that choose among the solver's models; they are never trained on.
        config: training settings.
        parameters: parameters of each simulated city, by name, for ``config.weights == "parameter"``.
        run: run folder for metrics and checkpoints; a killed run resumes from its last checkpoint.
        progress: function called after each step.
        processes: processes that share the work; all end with the same model. Rank 0 writes the run folder, all read
            it.

    Raises:
        ConfigError: the model is bound to a backend without forward-mode derivatives, its task weights change at every
            step, or weights by parameter were asked for and the cities' parameters are not known.
        DataError: the windows have no target, or a loss that is not finite.
        CheckpointError: the run folder's checkpoint is damaged, or was made with other settings or data.
    """
    _refuse_backend(model)
    weighing = _Weighing(solver, model, simulated, real, validation, config, run, processes)
    if config.weights == "parameter":
        weighing.features = _features(parameters, len(simulated.lengths))
    with seeded(derive_seed(config.seed, STAGE), weighing.device):
        return weighing.to_end(progress)


@dataclasses.dataclass
class _WeighingState(StageState):
    """What the checkpoint of the re-weighting holds besides its tensors."""

    numbers: dict[str, Any]


class _Weighing(Stage):
    """The inputs for a solver of `simmst.sim2real`, and its outputs in the run folder."""

    def __init__(
        self,
        solver: str,
        model: nn.Module,
        simulated: CityWindows,
        real: CityWindows,
        validation: CityWindows | None,
        config: TrainingConfig,
        run: RunFolder | None,
        processes: ProcessGroup,
    ) -> None:
        super().__init__(STAGE, model, config, run, processes)
        self.solver = solver
        seed = derive_seed(config.seed, STAGE, config.reweighting.seed)
        self.settings = dataclasses.replace(config.reweighting, seed=seed)
        self.loss = "huber" if config.loss in ("mae", "quantile") else config.loss
        self.source, self.held_out = simulated, validation
        self.features: Tensor | None = None  # of the cities, where features decide the weights
        self.simulated = choose_windows(simulated, per_city=config.samples_per_city, seed=seed, keep=True)
        self.real = choose_windows(real, per_city=None, seed=seed)
        self.validation = (
            None
            if validation is None
            else choose_windows(validation, per_city=None, seed=seed, limit=config.validation_samples)
        )

    def to_end(self, progress: Progress) -> tuple[History, WindowWeights]:
        """Resume from the run folder's state, and take the remaining steps."""
        checkpoint = self.resume()
        numbers = None if checkpoint is None else self.state_of(checkpoint, _WeighingState).numbers
        if self.config.fit_highway:
            self.fit_highway(self.source, self.held_out, dataclasses.replace(self.config, loss=self.loss))
        tasks = self.task_weights()
        found = reweight(
            self.model,
            per_sample_loss(tasks.weights, self.loss),
            self.simulated,
            self.real,
            validation=self.validation,
            solver=self.solver,
            config=self.settings,
            groups=None if self.config.weights == "sample" else torch.from_numpy(self.simulated.cities),
            features=self.features if self.features is None else self.features[: int(self.simulated.cities.max()) + 1],
            resume=None if checkpoint is None or numbers is None else (checkpoint.group("state"), numbers),
            save=lambda tensors, numbers: self.save_step(tensors, numbers, tasks),
            progress=lambda done, total, record: progress(STAGE, done, total, _shown(record)),
            processes=self.processes,
        )
        self.model.eval()
        self.history.best_epoch = -(-found.chosen_step // self.settings.checkpoint_every)
        self.history.best_score = min(found.scores.values()) if found.scores else None
        return self.history, self.weights_of(found)

    @torch.no_grad()
    def task_weights(self) -> TaskWeights:
        """Set the task weights by the losses on the real windows before the first step."""
        self.model.eval()
        spread = np.unique(np.linspace(0, len(self.real) - 1, _EVEN).round().astype(np.int64))
        losses, counts = [], []
        for part in np.array_split(spread, max(len(spread) // self.settings.chunk, 1)):
            batch = self.real.batch(part).to(self.device)
            losses.append(_losses(self.model, batch, self.loss).sum(0))
            counts.append((~torch.isnan(batch.target)).any(dim=1).sum(0))
        mean = torch.stack(losses).sum(0) / torch.stack(counts).sum(0).clamp(min=1)
        tasks = self.new_task_weights(len(mean))
        refuse_changing_weights(tasks.mode)
        tasks.update(mean)
        return tasks

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint must have in common with the stage that resumes from it."""
        config = {key: value for key, value in self.config.to_dict().items() if key != "reweighting"}
        return {
            **super().identity(),
            "config": config,
            "solver": self.solver,
            "reweighting": self.settings.to_dict(),
            "simulated_windows": len(self.simulated),
            "real_windows": len(self.real),
            "validation_windows": None if self.validation is None else len(self.validation),
        }

    def save_step(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], tasks: TaskWeights) -> None:
        """Write the metrics since the last checkpoint, then the checkpoint."""
        before = self.history.records[-1]["step"] if self.history.records else 0
        if before >= numbers["done"]:
            return  # these steps were repeated with a smaller size after a number that was not finite
        latest = numbers["history"][before:]
        scores = [score for score, _ in numbers["best"].values()]
        epoch = len(self.history.records) + 1
        self.record(
            {
                "stage": STAGE,
                "epoch": epoch,
                "step": numbers["done"],
                "train_loss": float(np.mean([record["G"] for record in latest])),
                "task_weights": self.by_service(tasks.weights.cpu().numpy()),
                **{key: value for key, value in latest[-1].items() if key not in ("step", "G")},
                **({"validation_loss": min(scores)} if scores else {}),
            }
        )
        self.save({f"state/{name}": tensor for name, tensor in tensors.items()}, epoch=epoch, numbers=numbers)

    def weights_of(self, found: Reweighted) -> WindowWeights:
        """Return the weights in the solver's result."""
        cities = self.simulated.cities
        return WindowWeights(found.weights.cpu().numpy(), cities, self.simulated, int(cities.max()) + 1)


def per_sample_loss(task_weights: Tensor, kind: str) -> Callable[[nn.Module, Batch], Tensor]:
    """Return a function for the loss of each window: its tasks' losses over observed targets, weighted and summed.

    Args:
        task_weights: constant weights of the tasks, (K,).
        kind: "huber", "mae" or "mse".

    Returns:
        Function of (model, batch) that returns (B,).

    Example:
        >>> loss = per_sample_loss(torch.tensor([0.25, 0.75]), "mae")
        >>> batch = Batch(*[torch.zeros(1)] * 3, torch.tensor([[[2.0, float("nan")], [4.0, 1.0]]]), torch.zeros(1))
        >>> loss(lambda values, marks, mask: torch.zeros(1, 2, 2), batch).tolist()
        [1.5]
    """
    frozen = task_weights.detach().clone()
    return lambda model, batch: _losses(model, batch, kind) @ frozen


def _losses(model: nn.Module, batch: Batch, kind: str) -> Tensor:
    return task_losses(model, batch.values, batch.marks, batch.mask, batch.memory, batch.target, kind, per_sample=True)


def _features(parameters: Sequence[Mapping[str, Any]] | None, number: int) -> Tensor:
    if parameters is None or len(parameters) != number:
        known = "are not known" if parameters is None else f"are known for {len(parameters)}"
        raise ConfigError(
            f"weights by parameter need the parameters of all {number} simulated cities, which {known}; use "
            "weights='city', or give the parameters that a prior drew"
        )
    return torch.from_numpy(rank_features(parameters))


def _refuse_backend(model: nn.Module) -> None:
    backend = getattr(getattr(model, "config", None), "backend", None)
    if backend not in (None, "reference"):
        raise ConfigError(
            f"the model is bound to backend {backend!r}, which has no forward-mode derivative, and re-weighting needs "
            "one; set backend to None or 'reference'"
        )


def _shown(record: Mapping[str, float]) -> dict[str, float]:
    return {name: record[name] for name in ("G", "h", "planes") if name in record}
