"""The plan that a forecaster's settings lead to on a series; whatever cannot work is refused here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simmst.baselines import BASELINES
from simmst.data import CALENDAR_FEATURES, Scaler, TrafficDataset, WindowSpec
from simmst.errors import ConfigError, DataError
from simmst.evaluation import EvaluationProtocol, fitting_windows
from simmst.forecaster.config import ForecasterConfig
from simmst.models import SimMSTNetConfig
from simmst.training import RECIPES, resolve_device


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
        return self.solver is not None and "simulated" in RECIPES[self.solver].needs


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
    if "simulated" in RECIPES[solver].needs and not simulated:
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
