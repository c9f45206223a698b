"""The plan for fitting a forecaster to a series; impossible settings are refused here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simmst.baselines import BASELINES
from simmst.data import CALENDAR_FEATURES, Scaler, TrafficDataset, WindowSpec
from simmst.errors import ConfigError, DataError
from simmst.forecaster.architectures import OWN, AnyConfig, settings_of
from simmst.forecaster.config import ForecasterConfig
from simmst.models import SimMSTNetConfig, TaskWeights
from simmst.pretrained import Pretrained, load_pretrained
from simmst.training import RECIPES, REWEIGHTING, resolve_device
from simmst.training.task_weighting import refuse_changing_weights, task_weighting

ADAPTED_DAYS = 4  # a shorter series adapts no weights


@dataclass(frozen=True)
class Plan:
    """How a forecaster is fitted to one series.

    Attributes:
        train: slots to fit to.
        validation: slots after them, which stop the training and give the errors for prediction intervals.
        spec: windows of the forecaster.
        scaler: scaler fitted to the training slots.
        network: configuration of the network; None for a naive baseline.
        pretrained: weights that the network starts from; None for random ones.
        solver: name of the solver. None where nothing is trained: for a naive baseline, and for a series too short to
            adapt the shipped weights to.
        notes: notes on what had to be shrunk or replaced.
    """

    train: range
    validation: range
    spec: WindowSpec
    scaler: Scaler
    network: AnyConfig | None = None
    pretrained: Pretrained | None = None
    solver: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def learns_from_cities(self) -> bool:
        """Return whether the solver uses simulated cities."""
        return self.solver is not None and "simulated" in RECIPES[self.solver].needs


def make_plan(
    config: ForecasterConfig, dataset: TrafficDataset, *, simulated: bool = False, validation_steps: int | None = None
) -> Plan:
    """Plan the fit of a forecaster to a series, and refuse impossible settings before any work is done.

    Args:
        config: the settings.
        dataset: the series.
        simulated: whether there are simulated cities.
        validation_steps: last slots to hold out; None takes `config.validation_days`, at most a third of the series
            and at least the horizon.

    Raises:
        DataError: the series is too short for the input and the horizon, or has no value where one is needed.
        ConfigError: the settings contradict each other or do not fit this machine.
    """
    spec = window_spec(config)
    if validation_steps is None and (kept := untouched_weights(config, dataset)) is not None:
        known = range(dataset.num_steps)
        network, days = network_config(config, dataset.services), dataset.num_steps / dataset.steps_per_day
        note = f"{days:.3g} days are too few to train on: the shipped weights are used as they are"
        told = (note, *covariate_notes(config, dataset))
        return Plan(known, known[:0], spec, Scaler.fit(dataset, known, "relative"), network, kept, None, told)
    train, validation = training_and_validation(dataset, config, validation_steps)
    scaler = Scaler.fit(dataset, train, "relative")
    held_out = dataset.activity[validation.start : validation.stop][..., dataset.mask]
    if np.isnan(held_out).all():
        raise DataError(
            f"{dataset.name} has no value in its last {len(validation)} slots, which decide when training "
            "stops; cut the empty end off with slice_steps"
        )
    if config.model in BASELINES:
        return Plan(train, validation, spec, scaler, notes=covariate_notes(config, dataset))
    network = network_config(config, dataset.services)
    pretrained, notes = starting_weights(config, network)
    notes += covariate_notes(config, dataset)
    solver = config.solver
    if solver is None:
        solver = "adapt" if pretrained else "pretrain-finetune" if simulated else "real-only"
    if "simulated" in RECIPES[solver].needs and not simulated:
        raise ConfigError(f"solver {solver!r} needs simulated cities and got none; give some, or use 'real-only'")
    resolve_device(config.training.device)
    task_weighting(TaskWeights(network.num_tasks, network.task_weights), learning_rate=config.training.learning_rate)
    if solver in REWEIGHTING:
        refuse_changing_weights(network.task_weights)
    return Plan(train, validation, spec, scaler, network, pretrained, solver, notes)


def covariate_notes(config: ForecasterConfig, dataset: TrafficDataset) -> tuple[str, ...]:
    """Say which covariates are ignored: only Sim-MSTNet with `combine` uses them."""
    if dataset.covariates is None or (config.model == OWN and config.combine):
        return ()
    how = f"model {config.model!r}" if config.model != OWN else "combine=False"
    return (f"{', '.join(dataset.covariates.names)}: covariates, which {how} ignores",)


def untouched_weights(config: ForecasterConfig, dataset: TrafficDataset) -> Pretrained | None:
    """Return the shipped weights if training would start from them and the series is too short for it, else None."""
    if config.model in BASELINES:
        return None
    adapts = config.solver in (None, "adapt")
    # Other solvers need a window to train on and another to validate on.
    least = config.horizon + (ADAPTED_DAYS * dataset.steps_per_day if adapts else config.horizon + 1)
    if dataset.num_steps >= least:
        return None
    return starting_weights(config, network_config(config, dataset.services))[0]


def network_config(config: ForecasterConfig, services: tuple[str, ...]) -> AnyConfig:
    """Return the configuration of the network for the services of a series."""
    return settings_of(config.model).from_dict(
        {
            **({"label_length": min(12, config.recent)} if config.model == OWN else {}),
            **config.network,
            "services": services,
            "input_length": config.recent,
            "horizon": config.horizon,
            "num_marks": len(CALENDAR_FEATURES),
            "neighbourhood": config.neighbourhood,
        }
    )


def starting_weights(config: ForecasterConfig, network: AnyConfig) -> tuple[Pretrained | None, tuple[str, ...]]:
    """Return the weights that a network starts from, None for random ones, and a note if the shipped ones do not fit.

    Raises:
        ConfigError: the shipped weights were requested and do not fit.
        CheckpointError: they are missing or damaged.
    """
    if not isinstance(network, SimMSTNetConfig) or config.start == "scratch" or config.solver == "real-only":
        return None, ()
    pretrained = load_pretrained()
    different = pretrained.differences(network)
    if not different:
        return pretrained, ()
    fields = ", ".join(different)
    if config.start == "pretrained":
        raise ConfigError(f"the shipped weights fit no network with another {fields}; set start='scratch'")
    return None, (f"trained from random weights: the shipped ones fit no network with another {fields}",)


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


def window_spec(config: ForecasterConfig) -> WindowSpec:
    """Return the windows of a forecaster, with the latest slots and the memory of the days before."""
    days = config.network.get("memory_days", SimMSTNetConfig().memory_days)
    offsets = tuple(range(-config.recent, 0))
    return WindowSpec(config.horizon, offsets, config.neighbourhood, memory_days=days)
