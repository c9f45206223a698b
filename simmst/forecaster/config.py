"""The settings of a `Forecaster`, and the plan that they lead to on a series."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from simmst.baselines import BASELINES
from simmst.data import CALENDAR_FEATURES, Scaler, TrafficDataset, WindowSpec
from simmst.errors import ConfigError, DataError
from simmst.evaluation import EvaluationProtocol, fitting_windows
from simmst.foundation.suggestions import suggest
from simmst.models import SimMSTNetConfig
from simmst.training import SOLVERS, TrainingConfig, resolve_device

NETWORKS = ("sim-mstnet",)
# Fields of the network's configuration that follow from the other settings and the series.
_FIXED = ("services", "input_length", "horizon", "num_marks", "neighbourhood")


@dataclass(frozen=True)
class ForecasterConfig:
    """Everything that decides what a `Forecaster` does, JSON-able.

    Args:
        horizon: slots to forecast.
        model: "sim-mstnet" (its single-task case STNet where there is one service) or the name of a naive baseline.
        solver: how real and simulated cities are combined; None takes "pretrain-finetune" where simulated cities are
            given and "real-only" where none are.
        recent: latest slots in the input; None takes a day of hourly slots, or 12 slots where they are shorter.
        daily: previous days whose slots at the target's hours are in the input; fewer where the series is short.
        neighbourhood: side of the square of cells around the target cell, odd.
        validation_days: last days of the training series that decide when to stop; fewer where the series is short.
        cities: cities simulated by default.
        network: fields of SimMSTNetConfig to change, by name, such as width.
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
        for name, least in (("horizon", 1), ("recent", 1), ("daily", 0), ("validation_days", 1), ("cities", 0)):
            value = getattr(self, name)
            if name == "recent" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} is {value!r}; it must be an integer of at least {least}")
        models = (*NETWORKS, *BASELINES)
        if self.model not in models:
            raise ConfigError(f"model is {self.model!r}; it must be one of: {', '.join(models)}")
        if self.solver is not None and self.solver not in SOLVERS:
            raise ConfigError(f"solver is {self.solver!r}; it must be one of: {', '.join(sorted(SOLVERS))}")
        if not isinstance(self.training, TrainingConfig):
            raise ConfigError(f"training is {self.training!r}; it must be a TrainingConfig")
        if not isinstance(self.network, Mapping):
            raise ConfigError(f"network is {self.network!r}; it must be fields of SimMSTNetConfig by name")
        free = [item.name for item in dataclasses.fields(SimMSTNetConfig) if item.name not in _FIXED]
        for name in self.network:
            if name not in free:
                raise ConfigError(f"network has {name!r}; it may change: {', '.join(free)}")
        # The network's own checks of its values; the label's length cannot be judged before the input's is known.
        values = {key: value for key, value in self.network.items() if key != "label_length"}
        SimMSTNetConfig.from_dict({**values, "neighbourhood": self.neighbourhood})

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as values that JSON can hold."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {**values, "network": dict(self.network), "training": self.training.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ForecasterConfig:
        """Build the settings from what `to_dict` gave; those left out take their defaults.

        Raises:
            ConfigError: a key is unknown or a value out of range.

        Example:
            >>> ForecasterConfig.from_dict(ForecasterConfig(horizon=3).to_dict()).horizon
            3
            >>> ForecasterConfig.from_dict({"horizons": 3})
            Traceback (most recent call last):
            ...
            simmst.errors.ConfigError: unknown forecaster setting 'horizons'; did you mean 'horizon'?
        """
        known = [item.name for item in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                hint = suggest(name, known, otherwise="the settings are:")
                raise ConfigError(f"unknown forecaster setting {name!r}; {hint}")
        training = values.get("training", {})
        if isinstance(training, Mapping):
            training = TrainingConfig.from_dict(dict(training))
        return cls(**{**values, "training": training})


@dataclass(frozen=True)
class Plan:
    """How a forecaster is fitted to one series.

    Attributes:
        train: slots to fit to.
        validation: the slots after them, which stop the training and give the errors behind prediction intervals.
        spec: the windows.
        scaler: fitted to the training slots.
        network: the network's configuration; None for a naive baseline.
        solver: the name of the solver; None for a naive baseline.
        notes: what had to be shrunk.
    """

    train: range
    validation: range
    spec: WindowSpec
    scaler: Scaler
    network: SimMSTNetConfig | None
    solver: str | None
    notes: tuple[str, ...]

    @property
    def learns_from_cities(self) -> bool:
        """Whether the solver uses simulated cities."""
        return self.solver is not None and "simulated" in SOLVERS[self.solver].needs


def make_plan(
    config: ForecasterConfig, dataset: TrafficDataset, *, simulated: bool = False, validation_steps: int | None = None
) -> Plan:
    """Work out how a forecaster is fitted to a series; whatever cannot work is refused here, before any work is done.

    Args:
        config: the settings.
        dataset: the series.
        simulated: whether there are simulated cities beside it.
        validation_steps: last slots to hold out; None takes `config.validation_days`, at most a third of the series
            and at least the horizon.

    Raises:
        DataError: the series is too short for the input and the horizon, or has no value where one is needed.
        ConfigError: settings that contradict each other or this machine.
    """
    train, validation = training_and_validation(dataset, config, validation_steps)
    spec, shrunk = window_spec(config, dataset, len(train))
    scaler = Scaler.fit(dataset, train)
    held_out = dataset.activity[validation.start : validation.stop][..., dataset.mask]
    if np.isnan(held_out).all():
        raise DataError(
            f"{dataset.name} has no value in its last {len(validation)} slots, which were to decide when training "
            "stops; cut the empty end off with slice_steps"
        )
    if config.model in BASELINES:
        return Plan(train, validation, spec, scaler, None, None, (shrunk,) if shrunk else ())
    solver = config.solver or ("pretrain-finetune" if simulated else "real-only")
    if "simulated" in SOLVERS[solver].needs and not simulated:
        raise ConfigError(f"solver {solver!r} needs simulated cities and got none; give some, or take 'real-only'")
    resolve_device(config.training.device)
    values = {
        "label_length": min(12, spec.input_length),
        **config.network,
        "services": dataset.services,
        "input_length": spec.input_length,
        "horizon": spec.horizon,
        "num_marks": len(CALENDAR_FEATURES),
        "neighbourhood": spec.neighbourhood,
    }
    network = SimMSTNetConfig.from_dict(values)
    return Plan(train, validation, spec, scaler, network, solver, (shrunk,) if shrunk else ())


def training_and_validation(
    dataset: TrafficDataset, config: ForecasterConfig, validation_steps: int | None = None
) -> tuple[range, range]:
    """Cut a series into training and, at its end, validation slots.

    Validation takes min(validation_days, floor(days / 3)) whole days, or a third of a series under three days, and
    never less than the horizon.

    Raises:
        DataError: the validation slots asked for are fewer than the horizon, or leave nothing to train on.
    """
    length = validation_steps
    if length is None:
        days = dataset.num_steps // dataset.steps_per_day
        whole_days = min(config.validation_days, days // 3) * dataset.steps_per_day
        length = max(whole_days if days >= 3 else dataset.num_steps // 3, config.horizon)
    if not config.horizon <= length < dataset.num_steps:
        raise DataError(
            f"{dataset.name} has {dataset.num_steps} slots, {length} of them to validate on and the others to train "
            f"on, too few for a horizon of {config.horizon}; give a longer series or a shorter horizon"
        )
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
