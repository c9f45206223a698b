"""The one training loop: every model is trained by `train_stage`."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

from simmst.data import Batch, WindowSource
from simmst.distributed import ALONE, ProcessGroup, answered
from simmst.errors import DataError, SimmstError
from simmst.foundation.progress import Progress, quiet
from simmst.foundation.threads import at_most
from simmst.models import mean_loss, part_of_batch
from simmst.training.checkpoint import Checkpoint, grouped, load_into, optimizer_tensors, restore_optimizer
from simmst.training.config import TrainingConfig, learning_rate_at
from simmst.training.history import History
from simmst.training.run_folder import RunFolder
from simmst.training.seeds import derive_seed, generator_state, seeded, set_generator_state
from simmst.training.stage import Stage, StageState
from simmst.training.task_weighting import (
    GradientWeighting,
    TaskWeighting,
    set_gradient,
    task_gradients,
    task_weighting,
)
from simmst.training.validation import BestWeights, batch_loss_sums, shared_batch, validation_losses

# Windows in a step, times weights, that are worth a thread. For 64 windows of the default network a second thread saves
# a fifth of the time on a quiet machine and costs half as much again on a busy one; for 128 it saves a third.
_WORK_OF_A_THREAD = 64 * 200_000


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
    processes: ProcessGroup = ALONE,
) -> History:
    """Train a model for one stage and leave its best weights in it.

    Training minimises the weighted sum of the task losses by AdamW, with a cosine or constant learning rate, gradient
    clipping and early stopping. The weights follow Sim-MSTNet's Eq. 13-14, or the method that the model's config names.
    The validation score is the mean over the services of the loss on the validation windows. Everything random derives
    from `config.seed` and the stage's name, and torch's global generators are restored afterwards. Small steps use
    fewer of torch's threads.

    With a run folder, each epoch ends with a line in ``metrics.jsonl`` and then a checkpoint, so a killed run resumes
    from its last checkpoint and ends with the numbers of an unbroken run; a finished stage is loaded, not repeated.

    Several processes share every batch and the validation windows, and end with the weights of one process up to
    rounding. That holds under SimMSTNet's dropout, but not under a model's own `nn.Dropout`. Rank 0 writes the run
    folder, and all processes read it.

    Args:
        model: model called as ``model(values, marks, mask=mask)``; it is moved to the config's device.
        train_windows: windows to train on.
        validation_windows: windows of the real validation split; None runs all epochs and keeps the last weights.
        config: training settings.
        stage: name for metrics and checkpoints, such as ``"pretrain"``.
        run: run folder for metrics and checkpoints; None writes nothing.
        resume: whether to resume from the run folder; False discards what it has of this stage.
        keep_initial: whether the weights from before the stage compete on the validation windows too.
        fit_highway: whether to start the model's linear autoregression, if it has one, at its least-squares solution on
            a sample of the training windows; where these are few, with the penalty that the validation windows prefer.
        progress: function called after each step.
        processes: processes that share the stage. All of them make this call, and only rank 0 has the whole history.

    Returns:
        The stage's history.

    Raises:
        DataError: there is no window to train on, or no observed target to validate on.
        CheckpointError: the stage's checkpoint is damaged, or was made by another config, data or model.
        NonFiniteLossError: the loss or the gradient is not finite; the message names stage, step and last checkpoint.
    """
    if len(train_windows) == 0:
        raise DataError(
            f"stage {stage!r} has no window to train on; give a longer series, or a shorter input or horizon"
        )
    if validation_windows is not None and len(validation_windows) == 0:
        raise DataError(f"stage {stage!r} has no validation window; give a longer validation split, or None")
    loop = _Loop(stage, model, train_windows, validation_windows, config, run, processes)
    with seeded(derive_seed(config.seed, stage), loop.device):
        loop.start(resume=resume, keep_initial=keep_initial, fit_highway=fit_highway)
        loop.train(progress)
    return loop.history


@dataclass
class LoopState(StageState):
    """What the checkpoint of a stage of the loop holds besides its tensors."""

    step: int
    best_epoch: int
    best_score: float | None
    stopped: str
    finished: bool


class _Loop(Stage):
    """The state of a stage of the loop while it runs: weights, optimiser, best weights so far, history."""

    def __init__(
        self,
        stage: str,
        model: nn.Module,
        train_windows: WindowSource,
        validation_windows: WindowSource | None,
        config: TrainingConfig,
        run: RunFolder | None,
        processes: ProcessGroup,
    ) -> None:
        super().__init__(stage, model, config, run, processes)
        self.replica: nn.Module = self.model
        self.train_windows = train_windows
        self.validation_windows = validation_windows
        samples = min(config.samples_per_epoch or len(train_windows), len(train_windows))
        self.total_steps = math.ceil(samples / config.batch_size) * config.epochs
        self.step = 0
        self.epoch = 0
        self.finished = False
        self.team = round(config.batch_size * sum(p.numel() for p in model.parameters()) / _WORK_OF_A_THREAD)
        self.weighting: TaskWeighting | None = None
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.best = BestWeights(model)
        decayed = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
        plain = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=config.learning_rate,
            betas=(0.9, 0.99),
            eps=getattr(model, "adam_epsilon", 1e-8),  # part of some networks' recipes
            fused=True,  # one call for all weights instead of twenty for each
        )

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint must have in common with the stage that resumes from it."""
        validation = None if self.validation_windows is None else len(self.validation_windows)
        windows = {"train_windows": len(self.train_windows), "validation_windows": validation}
        return {**super().identity(), **windows}

    def start(self, *, resume: bool, keep_initial: bool, fit_highway: bool) -> None:
        """Resume from the stage's checkpoint, or begin at epoch 0."""
        if not resume and self.checkpoint_path is not None and self.writes:
            self.checkpoint_path.unlink(missing_ok=True)
        self.processes.broadcast_object()  # the others read after rank 0 has cleared
        checkpoint = self.resume()
        if checkpoint is not None:
            self.restore(checkpoint)
        elif fit_highway:
            self.fit_highway(self.train_windows, self.validation_windows, self.config)
        self.replica = self.processes.replicate(self.model)
        if checkpoint is not None:
            return
        if keep_initial and self.validation_windows is not None:
            self.record({"stage": self.name, "epoch": 0, "step": 0, **self.validate()})

    def train(self, progress: Progress) -> None:
        """Run the remaining epochs, then put the best weights into the model."""
        while not self.finished and self.epoch < self.config.epochs:
            started = time.perf_counter()
            self.epoch += 1
            with at_most(self.team):
                record = self.train_epoch(progress)
            record.update(self.validate())
            patience = self.config.patience
            if patience is not None and self.epoch - self.history.best_epoch >= patience:
                self.finished, self.history.stopped = True, "patience"
            self.finished = self.finished or self.epoch == self.config.epochs
            self.record(record)
            self.save_epoch()
            if self.run is not None and self.writes:
                seconds = time.perf_counter() - started
                self.run.log_time({"stage": self.name, "epoch": self.epoch, "seconds": round(seconds, 3)})
        self.best.restore()
        self.model.eval()
        progress(self.name, self.total_steps, self.total_steps, self.details())

    def train_epoch(self, progress: Progress) -> dict[str, Any]:
        """Run one epoch and return its record."""
        self.model.train()
        # A model that draws numbers for its own part only would let the generators of the processes drift apart.
        set_generator_state(self.processes.broadcast_object(generator_state(self.device)), self.device)
        totals: list[np.ndarray] = []
        norms = []
        size, limit = self.config.batch_size, self.config.samples_per_epoch
        rate = self.config.learning_rate
        for numbers in self.train_windows.order(size, seed=self.config.seed, epoch=self.epoch, limit=limit):
            rate = learning_rate_at(self.config, self.step, self.total_steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            batch, rows = shared_batch(self.train_windows, numbers, self.processes)
            with part_of_batch(rows, len(numbers)):
                total, mass = batch_loss_sums(self.replica, batch.to(self.device), self.config)
            whole = self.processes.all_reduce(torch.stack([total.detach(), mass]))
            losses = mean_loss(*whole)
            weighting = self.task_weighting(len(losses))
            weights = weighting.tasks
            self.optimizer.zero_grad(set_to_none=True)
            own, observed = mean_loss(total, whole[1]), whole[1] > 0
            if isinstance(weighting, GradientWeighting):
                gradients = task_gradients(own, self.parameters)
                set_gradient(self.parameters, weighting.weigh_gradients(gradients, observed) @ gradients)
            else:
                weighting.weigh(losses, observed)
                self.backward(weights.combine(own))
            clip = math.inf if self.config.gradient_clip is None else self.config.gradient_clip
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), clip).item()
            self.check(losses, norm)
            self.optimizer.step()
            weighting.after_step(partial(self.losses_of, batch))
            self.step += 1
            totals.append(torch.stack([losses, weights.weights.to(losses.dtype)]).cpu().numpy())
            norms.append(norm)
            loss = float(weights.combine(losses))
            progress(self.name, self.step, self.total_steps, {"loss": loss, **self.details()})
        if self.weighting is not None:
            self.weighting.after_epoch()
        mean_losses, mean_weights = np.mean(np.asarray(totals, dtype=np.float64), axis=0)
        return {
            "stage": self.name,
            "epoch": self.epoch,
            "step": self.step,
            "learning_rate": rate,
            "train_loss": float(mean_losses.mean()),
            "train_losses": self.by_service(mean_losses),
            "task_weights": self.by_service(mean_weights),
            "gradient_norm": float(np.mean(norms)),
        }

    @torch.no_grad()
    def losses_of(self, batch: Batch) -> torch.Tensor:
        """Return the losses of the whole batch at the current weights; `batch` is this process's part of it."""
        total, mass = batch_loss_sums(self.model, batch.to(self.device), self.config)
        return mean_loss(*self.processes.all_reduce(torch.stack([total, mass])))

    def backward(self, own: torch.Tensor) -> None:
        """Leave the gradient of the whole batch's loss in the parameters; `own` is this process's addend."""
        if self.replica is self.model:
            own.backward()
            return
        with answered():
            (own * self.processes.world_size).backward()  # replicas take the mean, but addends must be summed

    def validate(self) -> dict[str, Any]:
        """Let the weights of this epoch compete on the validation windows, and return that part of its record."""
        record: dict[str, Any] = {}
        score = None
        if self.validation_windows is not None:
            losses = validation_losses(
                self.model,
                self.validation_windows,
                self.config,
                where=f"stage {self.name!r}",
                processes=self.processes,
            )
            if np.isinf(losses).any():
                self.refuse(f"the validation loss is {losses.tolist()}")
            score = float(np.nanmean(losses))
            record = {"validation_loss": score, "validation_losses": self.by_service(losses)}
        if self.best.offer(score):
            self.history.best_epoch, self.history.best_score = self.epoch, score
        return record

    def check(self, losses: torch.Tensor, norm: float) -> None:
        """Stop before a loss or gradient that is not finite reaches the weights."""
        values = losses.detach().cpu().tolist()
        if not all(math.isfinite(value) for value in values):
            self.refuse(f"the loss is {self.by_service(np.asarray(values))}")
        if not math.isfinite(norm):
            self.refuse(f"the norm of the gradient is {norm} (the loss is {sum(values) / len(values):.4g})")

    def refuse(self, what: str) -> NoReturn:
        """Raise the error about a number that is not finite."""
        path = self.checkpoint_path
        if path is not None and path.exists():
            last = f"the last checkpoint is {path} (epoch {self.epoch - 1})"
        else:
            last = "no checkpoint was written yet"
        raise NonFiniteLossError(
            f"stage {self.name!r}, epoch {self.epoch}, step {self.step + 1}: {what}; {last}. Lower learning_rate (it "
            f"is {self.config.learning_rate:g}), set gradient_clip, or look for extreme values in the data"
        )

    def task_weighting(self, num_services: int) -> TaskWeighting:
        """Return the way to weigh the tasks; it is made when the first batch shows how many services there are."""
        if self.weighting is None:
            rate, processes = self.config.learning_rate, self.processes.world_size
            self.weighting = task_weighting(
                self.new_task_weights(num_services), learning_rate=rate, world_size=processes
            )
        return self.weighting

    def details(self) -> dict[str, float]:
        """Return the numbers shown beside the progress bar."""
        return {} if self.history.best_score is None else {"best validation": self.history.best_score}

    def save_epoch(self) -> None:
        """Write the stage's checkpoint; its metrics line is on disk already."""
        weights = {} if self.weighting is None else self.weighting.tasks.state_dict()
        weighting = {} if self.weighting is None else self.weighting.state()
        tensors = {
            **grouped("model", self.model.state_dict()),
            **grouped("best", self.best.weights),
            **grouped("optimizer", optimizer_tensors(self.model, self.optimizer)),
            **grouped("task_weights", weights),
            **grouped("weighting", weighting),
            **grouped("generator", generator_state(self.device)),
        }
        config = getattr(self.model, "config", None)
        self.save(
            tensors,
            epoch=self.epoch,
            step=self.step,
            model_config=None if config is None else config.to_dict(),
            best_epoch=self.history.best_epoch,
            best_score=self.history.best_score,
            stopped=self.history.stopped,
            finished=self.finished,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the state of a checkpoint."""
        state, path = self.state_of(checkpoint, LoopState), checkpoint.path
        with self.restoring(checkpoint):
            load_into(self.model, checkpoint.group("best"), path=path)
            self.best.keep(state.best_score)
            load_into(self.model, checkpoint.group("model"), path=path)
            restore_optimizer(self.model, self.optimizer, checkpoint.group("optimizer"), path=path)
            weights = checkpoint.group("task_weights")
            if weights:
                weighting = self.task_weighting(len(weights["weights"]))
                load_into(weighting.tasks, weights, path=path)
                weighting.restore(checkpoint.group("weighting"))
            set_generator_state(checkpoint.group("generator"), self.device)
        self.epoch, self.step, self.finished = state.epoch, state.step, state.finished
        self.history.best_epoch, self.history.best_score = state.best_epoch, state.best_score
        self.history.stopped = state.stopped
