"""The one training loop: every model and every solver goes through `train_stage`."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from simmst.data import WindowSource
from simmst.errors import CheckpointError, DataError, SimmstError
from simmst.foundation.progress import Progress, quiet
from simmst.models import TaskWeights
from simmst.training.checkpoint import (
    Checkpoint,
    grouped,
    load_checkpoint,
    load_into,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from simmst.training.config import TrainingConfig, learning_rate_at, resolve_device
from simmst.training.history import History
from simmst.training.run_folder import RunFolder
from simmst.training.seeds import derive_seed, generator_state, seeded, set_generator_state
from simmst.training.validation import batch_losses, validation_losses

_HIGHWAY_WINDOWS = 4096
_RIDGES = (1e-3, 1e-1, 10.0)  # to choose from where there are fewer windows, which a weak penalty lets follow by heart


class NonFiniteLossError(SimmstError, ArithmeticError):
    """The loss or its gradient became NaN or infinite; training stopped before it reached the weights."""


def train_stage(
    model: nn.Module,
    train_windows: WindowSource,
    validation_windows: WindowSource | None,
    config: TrainingConfig,
    *,
    stage: str,
    run: RunFolder | None = None,
    resume: bool = True,
    keep_initial: bool = False,
    fit_highway: bool = False,
    progress: Progress = quiet,
) -> History:
    """Train a model for one stage and leave its best weights in it.

    AdamW on the task losses, weighted by Sim-MSTNet's Eq. 13-14 (or as the model's config says), with a cosine or
    constant learning rate, gradient clipping and early stopping. The validation score is the mean over the services of
    the loss on the validation windows. Everything random derives from `config.seed` and the stage's name; torch's
    global generators are given back as they were.

    With a run folder, an epoch ends with a line in ``metrics.jsonl`` and then a checkpoint, so a run that was killed
    goes on from its last checkpoint to the numbers of an unbroken run; a finished stage is loaded, not repeated.

    Args:
        model: called as ``model(values, marks, mask=mask)``; moved to the config's device.
        train_windows: what to draw batches from.
        validation_windows: windows of the real validation split; None runs all epochs and keeps the last weights.
        config: the settings.
        stage: a name for metrics and checkpoints, such as ``"pretrain"``.
        run: where metrics and checkpoints go; None writes nothing.
        resume: False forgets what the run folder has of this stage.
        keep_initial: let the weights from before the stage compete on the validation windows too.
        fit_highway: start the model's linear autoregression, where it has one, at its least-squares solution on a
            sample of the training windows; where these are few, with the penalty that the validation windows prefer.
        progress: called after each step.

    Returns:
        The stage's history.

    Raises:
        DataError: there is no window to train on, or no observed target to validate on.
        CheckpointError: the stage's checkpoint is damaged, or was made by another config, data or model.
        NonFiniteLossError: the loss or the gradient is not finite; names stage, step and last checkpoint.
    """
    if len(train_windows) == 0:
        raise DataError(
            f"stage {stage!r} has no window to train on; give a longer series, or a shorter input or horizon"
        )
    if validation_windows is not None and len(validation_windows) == 0:
        raise DataError(f"stage {stage!r} has no validation window; give a longer validation split, or None")
    device = resolve_device(config.device)
    trainer = _Stage(model, train_windows, validation_windows, config, device, stage=stage, run=run)
    with seeded(derive_seed(config.seed, stage), device):
        trainer.start(resume=resume, keep_initial=keep_initial, fit_highway=fit_highway)
        trainer.train(progress)
    return trainer.history


def task_weights_of(model: nn.Module, num_services: int) -> TaskWeights:
    """Return the model's own task weights, or new ones in the mode its config names ("average" when it has none).

    Example:
        >>> task_weights_of(nn.Linear(1, 1), 2).mode
        'average'
    """
    own = getattr(model, "task_weights", None)
    if isinstance(own, TaskWeights):
        return own
    return TaskWeights(num_services, mode=getattr(getattr(model, "config", None), "task_weights", "average"))


class _Stage:
    """The state of a stage while it runs: weights, optimiser, best weights so far, history."""

    def __init__(
        self,
        model: nn.Module,
        train_windows: WindowSource,
        validation_windows: WindowSource | None,
        config: TrainingConfig,
        device: torch.device,
        *,
        stage: str,
        run: RunFolder | None,
    ) -> None:
        self.model = model.to(device)
        self.train_windows = train_windows
        self.validation_windows = validation_windows
        self.config = config
        self.device = device
        self.run = run
        self.history = History(stage)
        samples = min(config.samples_per_epoch or len(train_windows), len(train_windows))
        self.steps_per_epoch = math.ceil(samples / config.batch_size)
        self.total_steps = self.steps_per_epoch * config.epochs
        self.step = 0
        self.epoch = 0
        self.finished = False
        self.weights: TaskWeights | None = None
        self.services: tuple[str, ...] = ()
        self.best: dict[str, torch.Tensor] = {}
        decayed = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
        plain = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=config.learning_rate, betas=(0.9, 0.99)
        )

    @property
    def stage(self) -> str:
        return self.history.stage

    @property
    def checkpoint_path(self) -> Path | None:
        return None if self.run is None else self.run.checkpoint_path(self.stage)

    def start(self, *, resume: bool, keep_initial: bool, fit_highway: bool) -> None:
        """Take up the stage's checkpoint, or begin at epoch 0."""
        path = self.checkpoint_path
        if path is not None and path.exists() and resume:
            self.restore(load_checkpoint(path))
            return
        if path is not None and self.run is not None:
            path.unlink(missing_ok=True)
            self.run.drop_metrics(self.stage, after_epoch=-1)
        if fit_highway:
            self.fit_highway()
        if keep_initial and self.validation_windows is not None:
            losses = self.validate()
            self.keep_best(losses)
            self.record({"stage": self.stage, "epoch": 0, "step": 0, **self.validation_record(losses)})

    def fit_highway(self) -> None:
        """Solve the model's linear autoregression on a sample of the training windows, where it has one."""
        fit = getattr(self.model, "fit_highway", None)
        if fit is None or getattr(self.model, "highway", None) is None:
            return
        # epoch 0 is never trained on, so its order is free for this
        first = self.train_windows.batches(_HIGHWAY_WINDOWS, seed=self.config.seed, epoch=0, limit=_HIGHWAY_WINDOWS)
        batch = next(first).to(self.device)
        if self.validation_windows is None or len(self.train_windows) >= _HIGHWAY_WINDOWS:
            fit(batch.values, batch.marks, batch.target)
            return
        before, found = self.snapshot(), []
        for ridge in _RIDGES:
            self.model.load_state_dict(before)
            fit(batch.values, batch.marks, batch.target, ridge=ridge)
            found.append((float(np.nanmean(self.validate())), self.snapshot()))
        self.model.load_state_dict(min(found, key=lambda pair: pair[0])[1])

    def train(self, progress: Progress) -> None:
        """Run the epochs that are left, then put the best weights into the model."""
        while not self.finished and self.epoch < self.config.epochs:
            started = time.perf_counter()
            self.epoch += 1
            record = self.train_epoch(progress)
            if self.validation_windows is None:
                self.history.best_epoch, self.best = self.epoch, self.snapshot()
            else:
                losses = self.validate()
                record.update(self.validation_record(losses))
                self.keep_best(losses)
                patience = self.config.patience
                if patience is not None and self.epoch - self.history.best_epoch >= patience:
                    self.finished, self.history.stopped = True, "patience"
            self.finished = self.finished or self.epoch == self.config.epochs
            self.record(record)
            self.save()
            if self.run is not None:
                seconds = time.perf_counter() - started
                self.run.log_time({"stage": self.stage, "epoch": self.epoch, "seconds": round(seconds, 3)})
        self.model.load_state_dict(self.best)
        self.model.eval()
        progress(self.stage, self.total_steps, self.total_steps, self.details())

    def train_epoch(self, progress: Progress) -> dict[str, Any]:
        """Run one epoch and return its record."""
        self.model.train()
        totals: list[np.ndarray] = []
        norms = []
        size, limit = self.config.batch_size, self.config.samples_per_epoch
        rate = self.config.learning_rate
        for batch in self.train_windows.batches(size, seed=self.config.seed, epoch=self.epoch, limit=limit):
            rate = learning_rate_at(self.config, self.step, self.total_steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            losses = batch_losses(self.model, batch.to(self.device), self.config)
            weights = self.task_weights(len(losses))
            weights.update(losses)
            loss = weights.combine(losses)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            clip = math.inf if self.config.gradient_clip is None else self.config.gradient_clip
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), clip).item()
            self.check(losses, norm)
            self.optimizer.step()
            self.step += 1
            totals.append(torch.stack([losses.detach(), weights.weights.to(losses.dtype)]).cpu().numpy())
            norms.append(norm)
            progress(self.stage, self.step, self.total_steps, {"loss": float(loss.detach()), **self.details()})
        mean_losses, mean_weights = np.mean(np.asarray(totals, dtype=np.float64), axis=0)
        return {
            "stage": self.stage,
            "epoch": self.epoch,
            "step": self.step,
            "learning_rate": rate,
            "train_loss": float(mean_losses.mean()),
            "train_losses": self.by_service(mean_losses),
            "task_weights": self.by_service(mean_weights),
            "gradient_norm": float(np.mean(norms)),
        }

    def validate(self) -> np.ndarray:
        """Return the loss of each service over the validation windows, (K,); NaN where nothing was observed."""
        assert self.validation_windows is not None  # noqa: S101 - for the type checker
        losses = validation_losses(self.model, self.validation_windows, self.config, where=f"stage {self.stage!r}")
        if np.isinf(losses).any():
            self.refuse(f"the validation loss is {losses.tolist()}")
        return losses

    def check(self, losses: torch.Tensor, norm: float) -> None:
        """Stop before a loss or gradient that is not finite reaches the weights."""
        values = losses.detach().cpu().tolist()
        if not all(math.isfinite(value) for value in values):
            self.refuse(f"the loss is {self.by_service(np.asarray(values))}")
        if not math.isfinite(norm):
            self.refuse(f"the norm of the gradient is {norm} (the loss is {sum(values) / len(values):.4g})")

    def refuse(self, what: str) -> None:
        """Raise the error of a number that is not finite."""
        path = self.checkpoint_path
        if path is not None and path.exists():
            last = f"the last checkpoint is {path} (epoch {self.epoch - 1})"
        else:
            last = "no checkpoint was written yet"
        raise NonFiniteLossError(
            f"stage {self.stage!r}, epoch {self.epoch}, step {self.step + 1}: {what}; {last}. Lower learning_rate (it "
            f"is {self.config.learning_rate:g}), set gradient_clip, or look for extreme values in the data"
        )

    def task_weights(self, num_services: int) -> TaskWeights:
        """Return the task weights, made when the first batch tells how many services there are."""
        if self.weights is None:
            self.weights = task_weights_of(self.model, num_services).to(self.device)
        return self.weights

    def by_service(self, values: np.ndarray) -> dict[str, float | None]:
        """Name the values of the services; NaN becomes None."""
        names = getattr(getattr(self.model, "config", None), "services", None)
        names = names or [f"service {number}" for number in range(len(values))]
        return {name: float(v) if math.isfinite(v) else None for name, v in zip(names, values, strict=True)}

    def validation_record(self, losses: np.ndarray) -> dict[str, Any]:
        """Return the validation part of an epoch's record."""
        return {"validation_loss": float(np.nanmean(losses)), "validation_losses": self.by_service(losses)}

    def details(self) -> dict[str, float]:
        """Return the numbers shown beside the progress bar."""
        return {} if self.history.best_score is None else {"best validation": self.history.best_score}

    def snapshot(self) -> dict[str, torch.Tensor]:
        """Copy the model's weights."""
        return {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def keep_best(self, losses: np.ndarray) -> None:
        """Keep the weights when their score beats the best so far."""
        score = float(np.nanmean(losses))
        if self.history.best_score is None or score < self.history.best_score:
            self.history.best_epoch, self.history.best_score, self.best = self.epoch, score, self.snapshot()

    def record(self, record: dict[str, Any]) -> None:
        """Add an epoch's record to the history and to the run folder."""
        self.history.records.append(record)
        if self.run is not None:
            self.run.log(record)

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint and the stage that resumes from it must agree on."""
        validation = None if self.validation_windows is None else len(self.validation_windows)
        return {
            "stage": self.stage,
            "config": self.config.to_dict(),
            "train_windows": len(self.train_windows),
            "validation_windows": validation,
        }

    def save(self) -> None:
        """Write the stage's checkpoint; its metrics line is on disk already."""
        path = self.checkpoint_path
        if path is None:
            return
        weights = {} if self.weights is None else self.weights.state_dict()
        tensors = {
            **grouped("model", self.model.state_dict()),
            **grouped("best", self.best),
            **grouped("optimizer", optimizer_tensors(self.model, self.optimizer)),
            **grouped("task_weights", weights),
            **grouped("generator", generator_state(self.device)),
        }
        config = getattr(self.model, "config", None)
        state = {
            **self.identity(),
            "model_config": None if config is None else config.to_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "best_epoch": self.history.best_epoch,
            "best_score": self.history.best_score,
            "stopped": self.history.stopped,
            "finished": self.finished,
        }
        save_checkpoint(path, tensors, state)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up the state of a checkpoint."""
        self.compare(checkpoint)
        state, path = checkpoint.state, checkpoint.path
        load_into(self.model, checkpoint.group("best"), path=path)
        self.best = self.snapshot()
        load_into(self.model, checkpoint.group("model"), path=path)
        restore_optimizer(self.model, self.optimizer, checkpoint.group("optimizer"), path=path)
        weights = checkpoint.group("task_weights")
        if weights:
            load_into(self.task_weights(len(weights["weights"])), weights, path=path)
        set_generator_state(checkpoint.group("generator"), self.device)
        self.epoch, self.step, self.finished = state["epoch"], state["step"], state["finished"]
        records = []
        if self.run is not None:
            self.run.drop_metrics(self.stage, after_epoch=self.epoch)
            records = self.run.metrics(self.stage)
        self.history = History(self.stage, records, state["best_epoch"], state["best_score"], state["stopped"])

    def compare(self, checkpoint: Checkpoint) -> None:
        """Refuse a checkpoint of another config or other data."""
        has, wanted = dict(checkpoint.state), self.identity()
        missing = [key for key in (*wanted, "epoch", "step", "best_epoch", "finished") if key not in has]
        if missing:
            raise CheckpointError(
                f"checkpoint {checkpoint.path} lacks {', '.join(missing)}, so training cannot go on from it; "
                "delete it and train again"
            )
        for values in (has, wanted):
            values.update({f"config {key}": value for key, value in values.pop("config").items()})
        different = [
            f"{key} is {has.get(key)!r}, wanted {value!r}" for key, value in wanted.items() if has.get(key) != value
        ]
        if different:
            raise CheckpointError(
                f"checkpoint {checkpoint.path} is of another run: {'; '.join(different)}; go on with the settings and "
                "data it was made with, or choose another run folder"
            )
