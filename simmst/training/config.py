"""The settings of a training run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from simmst.errors import ConfigError
from simmst.foundation.bounds import MOST, at_most
from simmst.foundation.scalars import python_scalars
from simmst.foundation.suggestions import suggest
from simmst.models import LOSSES
from simmst.sim2real import ReweightingConfig

SCHEDULES = ("cosine", "constant")
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("float32", "bfloat16")
WEIGHTS = ("sample", "city", "parameter")
_MOST_NUMBER = 1e6  # a larger rate or penalty makes the weights infinite
AFTER_REWEIGHTING = ("adapt", "retrain", "finetune", "nothing")


def default_reweighting() -> ReweightingConfig:
    """Return re-weighting settings that suit a forecaster: batches, steps, and a pull to uniform weights.

    A forecaster's losses are small (about 0.02) but strongly curved (up to 30), so rates of 0.5 and 0.05 diverge. The
    pull is in the unit of the loss, so a pull of 0.01 would hold all weights at one half.

    Example:
        >>> default_reweighting().simulated_batch
        256
    """
    return ReweightingConfig(
        steps=100,
        inner_lr=0.03,
        lr_model=0.02,
        lr_multipliers=0.1,
        lr_weights=0.1,
        share_decay=1e-3,
        simulated_batch=256,
        real_batch=256,
        chunk=256,
    )


@dataclass(frozen=True)
class TrainingConfig:
    """The settings of the training loop and of the recipes.

    Args:
        epochs: largest number of epochs of a stage.
        samples_per_epoch: number of windows drawn in each epoch; None takes every window once.
        batch_size: number of windows in one step.
        learning_rate: AdamW's learning rate at its peak.
        weight_decay: AdamW's weight decay, on matrices and convolutions only.
        schedule: "cosine" (down to a fiftieth of the peak over all epochs) or "constant".
        warmup_steps: number of steps over which the learning rate rises linearly.
        gradient_clip: largest norm of the whole gradient; None clips nothing.
        patience: number of epochs without a better validation score before a stage stops; None never stops early.
        loss: "quantile" (the pinball loss of all quantiles), "huber" (delta 1), "mae" or "mse", on the scaler's scale.
        validation_samples: number of validation windows scored after each epoch, evenly spaced; None takes all.
        real_share: share of each batch that solver "joint" takes from the real windows.
        finetune_epochs: largest number of epochs of the second stage of "pretrain-finetune"; None takes `epochs`.
        finetune_learning_rate: learning rate of that stage, as a fraction of `learning_rate`.
        adapt_epochs: largest number of epochs of solver "adapt".
        adapt_learning_rate: absolute learning rate of solver "adapt".
        fit_highway: whether to start a model's linear autoregression, if it has one, at its least-squares solution;
            fewer than 4,096 windows take the penalty that the validation split prefers.
        reweighting: settings of the solvers that weigh simulated windows; their seed is derived from `seed` and its
            own.
        weights: unit that gets a weight in those solvers: each "sample", each "city" for all of its windows, or each
            "parameter" of the simulator, where a city's weight is the sigmoid of a linear function of its parameters.
        samples_per_city: number of windows of each simulated city that those solvers weigh, the same windows
            throughout.
        after_reweighting: training after the re-weighting. "adapt" continues the model as it was before, gently, on
            simulated windows drawn by their weights and mixed with the real ones; "retrain" trains that model on the
            weighted windows and then on the real ones; "finetune" continues the solver's model on the real ones;
            "nothing" keeps the solver's model. The real validation split decides which model is kept. None takes
            "adapt" for a model that has learned before, such as one with the shipped weights, else "retrain".
        seed: seed of the data order, dropout and the sampled attention.
        device: "auto" (the GPU if there is one), "cpu" or "cuda".
        precision: "float32", or "bfloat16" for autocast; weights, losses and the optimiser stay float32.

    Raises:
        ConfigError: a setting is out of range; the message names it, its value and what is allowed.

    Example:
        >>> TrainingConfig(epochs=3).epochs
        3
        >>> TrainingConfig(loss="hubber")
        Traceback (most recent call last):
            ...
        simmst.errors.ConfigError: loss is 'hubber'; it must be one of: quantile, huber, mae, mse
    """

    epochs: int = 20
    samples_per_epoch: int | None = 4096
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    warmup_steps: int = 20
    gradient_clip: float | None = 1.0
    patience: int | None = 5
    loss: str = "quantile"
    validation_samples: int | None = 2048
    real_share: float = 0.5
    finetune_epochs: int | None = None
    finetune_learning_rate: float = 0.3
    adapt_epochs: int = 4
    adapt_learning_rate: float = 3e-5
    fit_highway: bool = True
    reweighting: ReweightingConfig = field(default_factory=default_reweighting)
    weights: str = "city"
    samples_per_city: int = 128
    after_reweighting: str | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "float32"

    def __post_init__(self) -> None:
        python_scalars(self)
        if not isinstance(self.reweighting, ReweightingConfig):
            raise ConfigError(f"reweighting is {self.reweighting!r}; it must be a ReweightingConfig")
        for name in ("epochs", "batch_size", "samples_per_city", "adapt_epochs"):
            _check_integer(name, getattr(self, name), 1)
        for name in ("samples_per_epoch", "patience", "validation_samples", "finetune_epochs"):
            if getattr(self, name) is not None:
                _check_integer(name, getattr(self, name), 1)
        for name in ("seed", "warmup_steps"):
            _check_integer(name, getattr(self, name), 0)
        _check_number("learning_rate", self.learning_rate, above=0.0)
        _check_number("weight_decay", self.weight_decay, least=0.0)
        _check_number("finetune_learning_rate", self.finetune_learning_rate, above=0.0)
        _check_number("adapt_learning_rate", self.adapt_learning_rate, above=0.0)
        _check_number("real_share", self.real_share, above=0.0, below=1.0)
        if self.gradient_clip is not None:
            _check_number("gradient_clip", self.gradient_clip, above=0.0)
        if not isinstance(self.fit_highway, bool):
            raise ConfigError(f"fit_highway is {self.fit_highway!r}; it must be True or False")
        _check_choice("loss", self.loss, LOSSES)
        _check_choice("schedule", self.schedule, SCHEDULES)
        _check_choice("device", self.device, DEVICES)
        _check_choice("precision", self.precision, PRECISIONS)
        _check_choice("weights", self.weights, WEIGHTS)
        if self.after_reweighting is not None:
            _check_choice("after_reweighting", self.after_reweighting, AFTER_REWEIGHTING)

    def adapting(self) -> TrainingConfig:
        """Return the settings for solver "adapt".

        Example:
            >>> TrainingConfig(adapt_learning_rate=1e-5).adapting().learning_rate
            1e-05
        """
        return dataclasses.replace(self, epochs=self.adapt_epochs, learning_rate=self.adapt_learning_rate)

    def finetuning(self) -> TrainingConfig:
        """Return the settings for a stage that continues a trained model: `finetune_epochs`, and the lower rate.

        Example:
            >>> TrainingConfig(learning_rate=0.5, finetune_learning_rate=0.5).finetuning().learning_rate
            0.25
        """
        return dataclasses.replace(
            self,
            epochs=self.finetune_epochs or self.epochs,
            learning_rate=self.learning_rate * self.finetune_learning_rate,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a dictionary that JSON can hold.

        Example:
            >>> TrainingConfig.from_dict(TrainingConfig(seed=4).to_dict()).seed
            4
        """
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingConfig:
        """Build the settings from a dictionary such as `to_dict` returns; missing keys take their defaults.

        Raises:
            ConfigError: a key is unknown or a value out of range.

        Example:
            >>> TrainingConfig.from_dict({"epoch": 3})
            Traceback (most recent call last):
                ...
            simmst.errors.ConfigError: unknown training setting 'epoch'; did you mean 'epochs'?
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(
                    f"unknown training setting {key!r}; {suggest(key, known, otherwise='known settings:')}"
                )
        reweighting = values.get("reweighting")
        if isinstance(reweighting, Mapping):
            values = {**values, "reweighting": _reweighting(reweighting)}
        return cls(**values)


def _reweighting(values: Mapping[str, Any]) -> ReweightingConfig:
    known = [item.name for item in dataclasses.fields(ReweightingConfig)]
    for key in values:
        if key not in known:
            raise ConfigError(
                f"unknown reweighting setting {key!r}; {suggest(key, known, otherwise='known settings:')}"
            )
    return dataclasses.replace(default_reweighting(), **values)


def resolve_device(device: str) -> torch.device:
    """Return the device that a config names, if this machine has it.

    Args:
        device: "auto", "cpu" or "cuda".

    Raises:
        ConfigError: the device is "cuda", but torch sees no GPU.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    _check_choice("device", device, DEVICES)
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', but torch sees no CUDA GPU on this machine; take device='auto' or 'cpu'")
    return torch.device(device)


def learning_rate_at(config: TrainingConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of one step (counted from 0), a function of the step alone.

    Example:
        >>> config = TrainingConfig(learning_rate=1.0, warmup_steps=2)
        >>> [round(learning_rate_at(config, step, 10), 3) for step in (0, 1, 2, 9)]
        [0.5, 1.0, 1.0, 0.057]
    """
    warmup = min(config.warmup_steps, max(total_steps // 2, 0))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "constant":
        return config.learning_rate
    floor = 0.02
    progress = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
    return config.learning_rate * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress)))


def _check_integer(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} is {value!r}; it must be an integer of at least {least}")
    at_most(name, value, 2**63 - 1 if name == "seed" else MOST)


def _check_number(
    name: str, value: object, *, least: float | None = None, above: float | None = None, below: float | None = None
) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if (
        not number
        or (least is not None and value < least)  # type: ignore[operator]
        or (above is not None and value <= above)  # type: ignore[operator]
        or (below is not None and value >= below)  # type: ignore[operator]
    ):
        limits = [f"at least {least:g}"] if least is not None else []
        limits += [f"above {above:g}"] if above is not None else []
        limits += [f"below {below:g}"] if below is not None else []
        raise ConfigError(f"{name} is {value!r}; it must be a finite number {' and '.join(limits)}")
    at_most(name, value, _MOST_NUMBER)  # type: ignore[arg-type]


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; it must be one of: {', '.join(choices)}")
