"""The settings of a `Forecaster`, and the windows they lead to on a series."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from simmst.baselines import BASELINES
from simmst.data import TrafficDataset, WindowSpec
from simmst.errors import ConfigError
from simmst.evaluation import EvaluationProtocol, fitting_windows
from simmst.models import SimMSTNetConfig
from simmst.training import SOLVERS, TrainingConfig

NETWORKS = ("sim-mstnet",)


@dataclass(frozen=True)
class ForecasterConfig:
    """Everything that decides what a `Forecaster` does, JSON-able.

    Args:
        horizon: slots to forecast.
        model: ``"sim-mstnet"`` (its single-task case STNet where there is one service) or the name of a naive baseline.
        solver: how real and simulated cities are combined; None takes ``"pretrain-finetune"`` where simulated cities
            are given and ``"real-only"`` where none are.
        recent: latest slots in the input; None takes a day of hourly slots, or 12 slots where they are shorter.
        daily: previous days whose slots at the target's hours are in the input; fewer where the series is short.
        neighbourhood: side of the square of cells around the target cell, odd.
        validation_days: last days of the training series that decide when to stop; fewer where the series is short.
        cities: cities simulated by ``simulated="default"``.
        network: fields of `SimMSTNetConfig` to change, by name.
        training: the training loop's settings; its seed seeds everything else too.

    Raises:
        ConfigError: a value is out of range; the message names it and what it may be.

    Example:
        >>> ForecasterConfig(horizon=0)
        Traceback (most recent call last):
        ...
        simmst.errors.ConfigError: horizon is 0; it must be an integer of at least 1
    """

    horizon: int = 6
    model: str = "sim-mstnet"
    solver: str | None = None
    recent: int | None = None
    daily: int = 3
    neighbourhood: int = 5
    validation_days: int = 7
    cities: int = 40
    network: Mapping[str, Any] = field(default_factory=dict)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        for name, least in (("horizon", 1), ("daily", 0), ("validation_days", 1), ("cities", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} is {value!r}; it must be an integer of at least {least}")
        models = (*NETWORKS, *BASELINES)
        if self.model not in models:
            raise ConfigError(f"model is {self.model!r}; it must be one of: {', '.join(models)}")
        if self.solver is not None and self.solver not in SOLVERS:
            raise ConfigError(f"solver is {self.solver!r}; it must be one of: {', '.join(sorted(SOLVERS))}")
        known = {item.name for item in dataclasses.fields(SimMSTNetConfig)}
        fixed = {"services", "input_length", "horizon", "num_marks", "neighbourhood"}
        for name in self.network:
            if name not in known - fixed:
                raise ConfigError(f"network has {name!r}; it may change: {', '.join(sorted(known - fixed))}")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as values that JSON can hold."""
        return {**dataclasses.asdict(self), "network": dict(self.network), "training": self.training.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ForecasterConfig:
        """Build the settings from what `to_dict` gave.

        Raises:
            ConfigError: a key is unknown or a value out of range.

        Example:
            >>> ForecasterConfig.from_dict(ForecasterConfig(horizon=3).to_dict()).horizon
            3
        """
        unknown = set(values) - {item.name for item in dataclasses.fields(cls)}
        if unknown:
            raise ConfigError(f"unknown forecaster setting {sorted(unknown)[0]!r}")
        training = values.get("training", {})
        if not isinstance(training, TrainingConfig):
            training = TrainingConfig.from_dict(dict(training))
        return cls(**{**values, "training": training})


def training_and_validation(dataset: TrafficDataset, validation_days: int) -> tuple[range, range]:
    """Cut a series into training and, at its end, validation slots.

    Validation takes min(validation_days, floor(days / 3)) whole days, or a third of a series under three days.
    """
    days = dataset.num_steps // dataset.steps_per_day
    length = min(validation_days, days // 3) * dataset.steps_per_day if days >= 3 else dataset.num_steps // 3
    cut = dataset.num_steps - length
    return range(cut), range(cut, dataset.num_steps)


def window_spec(config: ForecasterConfig, dataset: TrafficDataset, num_train: int) -> tuple[WindowSpec, str]:
    """Choose the input slots: the recent ones and as many previous days as leave half the training slots for targets.

    Returns:
        The windows, and a note on what had to be shrunk (empty when nothing was).

    Raises:
        DataError: not even the latest slot and the horizon fit.
    """
    recent = config.recent or (dataset.steps_per_day if dataset.step_minutes >= 60 else 12)
    wanted = EvaluationProtocol(
        "forecaster", dataset.step_minutes, (config.horizon,), recent=recent, daily=config.daily
    )
    neighbourhood = config.neighbourhood if dataset.geometry == "grid" else 1
    return fitting_windows(wanted, dataset, config.horizon, num_train, neighbourhood)
