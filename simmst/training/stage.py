"""A stage of training: its history, its checkpoint, and what a checkpoint must share with the run that resumes it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn

from simmst.data import WindowSource
from simmst.distributed import ALONE, ProcessGroup
from simmst.errors import CheckpointError, SimmstError
from simmst.foundation.documents import DocumentError, checked
from simmst.models import TaskWeights
from simmst.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from simmst.training.config import TrainingConfig, resolve_device
from simmst.training.history import History
from simmst.training.run_folder import RunFolder, flattened
from simmst.training.validation import BestWeights, snapshot, validation_score

_HIGHWAY_WINDOWS = 4096
_RIDGES = (1e-3, 1e-1, 10.0)  # choices for fewer windows, which a weak penalty overfits


@dataclass
class StageState:
    """What the checkpoint of any stage holds besides its tensors."""

    identity: dict[str, Any]
    epoch: int


State = TypeVar("State")


class Stage:
    """One stage of a run, for any kind of training.

    Args:
        name: name in metrics and checkpoints, such as ``"pretrain"``.
        model: model called as ``model(values, marks, mask=mask)``; it is moved to the config's device.
        config: training settings.
        run: run folder for metrics and checkpoints; None writes nothing.
        processes: processes that share the stage; rank 0 writes, all read.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        config: TrainingConfig,
        run: RunFolder | None,
        processes: ProcessGroup = ALONE,
    ) -> None:
        self.device = resolve_device(config.device)
        self.model = model.to(self.device)
        self.config, self.run, self.processes = config, run, processes
        self.writes = processes.rank == 0
        self.history = History(name)

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.history.stage

    @property
    def checkpoint_path(self) -> Path | None:
        """The file with the stage's last state."""
        return None if self.run is None else self.run.checkpoint_path(self.name)

    def identity(self) -> dict[str, Any]:
        """Return the settings and data that a checkpoint must have in common with the stage that resumes from it."""
        return {"stage": self.name, "config": self.config.to_dict()}

    def resume(self) -> Checkpoint | None:
        """Load the stage's checkpoint and the metrics up to it; without one, drop metrics that a killed run left.

        Raises:
            CheckpointError: the checkpoint is damaged, or was made with other settings or data; it is left unchanged.
        """
        path = self.checkpoint_path
        if self.run is None or path is None:
            return None
        checkpoint = load_checkpoint(path) if path.exists() else None
        if checkpoint is not None:
            self._compare(checkpoint)
        if self.writes:
            self.run.drop_metrics(self.name, after_epoch=-1 if checkpoint is None else checkpoint.state["epoch"])
            self.history.records = self.run.metrics(self.name)
        return checkpoint

    def record(self, record: dict[str, Any]) -> None:
        """Add a record to the history and to the run folder's metrics."""
        self.history.records.append(record)
        if self.run is not None and self.writes:
            self.run.log(record)

    def save(self, tensors: Mapping[str, Tensor], *, epoch: int, **state: Any) -> None:
        """Write the checkpoint of an epoch whose record is on disk already."""
        path = self.checkpoint_path
        if path is not None and self.writes:
            save_checkpoint(path, tensors, {"identity": self.identity(), "epoch": epoch, **state})

    @staticmethod
    def state_of(checkpoint: Checkpoint, schema: type[State]) -> State:
        """Read the state of a checkpoint against a schema.

        Raises:
            CheckpointError: the state does not fit the schema.
        """
        try:
            return checked(checkpoint.state, schema)
        except DocumentError as error:
            raise CheckpointError(
                f"checkpoint {checkpoint.path} has no state that training can resume from ({error}); delete it and "
                "train again"
            ) from error

    @contextmanager
    def restoring(self, checkpoint: Checkpoint) -> Iterator[None]:
        """Put tensors of a checkpoint back inside the block, and blame the checkpoint if they do not fit.

        Raises:
            CheckpointError: the tensors do not fit.
        """
        try:
            yield
        except SimmstError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"checkpoint {checkpoint.path} does not fit stage {self.name!r} ({type(error).__name__}: {error}); "
                "delete it and train again"
            ) from error

    def _compare(self, checkpoint: Checkpoint) -> None:
        """Refuse a checkpoint made with other settings or other data."""
        common = self.state_of(checkpoint, StageState)
        has, wanted = (flattened(values, " ") for values in (common.identity, self.identity()))
        different = [
            f"{key} is {has.get(key)!r}, wanted {value!r}" for key, value in wanted.items() if has.get(key) != value
        ]
        if different:
            more = f" (and {len(different) - 6} more)" if len(different) > 6 else ""
            raise CheckpointError(
                f"checkpoint {checkpoint.path} is of another run: {'; '.join(different[:6])}{more}; resume with the "
                "settings and data it was made with, or choose another run folder"
            )

    def fit_highway(self, windows: WindowSource, validation: WindowSource | None, config: TrainingConfig) -> None:
        """Start the model's linear autoregression, where it has one, at its least-squares solution.

        The solution is found on at most 4,096 of the windows. With fewer windows, validation chooses the penalty.

        Args:
            windows: windows to train on.
            validation: windows of the real validation split; None takes the model's own penalty.
            config: settings with the seed and the loss that scores the validation.
        """
        fit = getattr(self.model, "fit_highway", None)
        if fit is None or getattr(self.model, "highway", None) is None:
            return
        # epoch 0 is never trained on, so this sample may take its order
        sample = windows.batches(_HIGHWAY_WINDOWS, seed=config.seed, epoch=0, limit=_HIGHWAY_WINDOWS)
        batch = next(sample).to(self.device)
        if validation is None or len(windows) >= _HIGHWAY_WINDOWS:
            fit(batch.values, batch.marks, batch.target, memory=batch.memory)
            return
        before, best = snapshot(self.model), BestWeights(self.model)
        for ridge in _RIDGES:
            self.model.load_state_dict(before)
            fit(batch.values, batch.marks, batch.target, memory=batch.memory, ridge=ridge)
            where = f"stage {self.name!r}"
            best.offer(validation_score(self.model, validation, config, where=where, processes=self.processes))
        best.restore()

    def new_task_weights(self, num_services: int) -> TaskWeights:
        """Return the model's own task weights, or new ones in the mode its config names ("average" without one)."""
        own = getattr(self.model, "task_weights", None)
        if not isinstance(own, TaskWeights):
            own = TaskWeights(
                num_services, mode=getattr(getattr(self.model, "config", None), "task_weights", "average")
            )
        return own.to(self.device)

    def by_service(self, values: np.ndarray) -> dict[str, float | None]:
        """Return the values by the names of the services; NaN and infinity become None."""
        names = getattr(getattr(self.model, "config", None), "services", None)
        names = names or [f"service {number}" for number in range(len(values))]
        return {name: float(v) if math.isfinite(v) else None for name, v in zip(names, values, strict=True)}
