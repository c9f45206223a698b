"""Fitting of a forecaster from settings, a series and simulated cities."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from simmst.baselines import BASELINES
from simmst.data import ConcatWindows, Scaler, TrafficDataset, Windows
from simmst.distributed import ALONE, ProcessGroup
from simmst.errors import ConfigError
from simmst.evaluation import ErrorQuantiles, ModelPredictor, Predictor, WeightReport, believed_stretch, measure_stretch
from simmst.forecaster.architectures import AnyNetwork, build_network
from simmst.forecaster.combination import InContextPredictor
from simmst.forecaster.config import ForecasterConfig
from simmst.forecaster.fitted import FitRecord, FittedForecaster, matched, predictor_class
from simmst.forecaster.plan import Plan, make_plan
from simmst.forecaster.similar_cities import cities_like, parameters_like, stand_in_notes
from simmst.forecaster.zero_shot import ZeroShotPredictor
from simmst.foundation.bounds import at_most
from simmst.foundation.scalars import python_scalar
from simmst.models import SimMSTNetConfig
from simmst.training import (
    BestWeights,
    Progress,
    Result,
    RunFolder,
    derive_seed,
    quiet,
    seeded,
    solve,
    validation_score,
)

_MARGIN = 0.05  # margin to beat the shipped weights by on a week of validation; larger on less
_MOST = 0.5

Parameters = list[dict[str, Any]] | None  # of each simulated city; None for cities given by the caller
Simulated = str | int | TrafficDataset | Sequence[TrafficDataset] | None


def fit_forecaster(
    config: ForecasterConfig,
    dataset: TrafficDataset,
    simulated: Simulated,
    *,
    validation_steps: int | None = None,
    run: RunFolder | None = None,
    progress: Progress = quiet,
    processes: ProcessGroup = ALONE,
) -> FittedForecaster:
    """Fit a forecaster: see `Forecaster.fit`.

    Raises:
        DataError: the series is too short for the input and the horizon, or the cities have slots of another length.
        ConfigError: the solver needs simulated cities and got none.
    """
    wanted = _wanted(simulated, config)
    plan = make_plan(config, dataset, simulated=wanted not in (0, []), validation_steps=validation_steps)
    predictor: Predictor
    calibrated: Predictor  # fitted without the validation slots, on which its errors are measured
    if plan.solver is None and plan.pretrained is not None:
        untouched = ZeroShotPredictor(
            plan.pretrained, config.horizon, device=config.training.device, combine=config.combine
        )
        kept = untouched.on(dataset, np.array([dataset.num_steps]))
        predictor = predictor_class(config)(kept.model, kept.scaler, kept.spec, stretch=kept.stretch)
        return FittedForecaster(config, dataset, plan.spec, predictor, notes=plan.notes, record=FitRecord())
    if plan.solver is None:
        make = BASELINES[config.model]
        predictor = make().fit(dataset, plan.spec, range(dataset.num_steps))
        calibrated = make().fit(dataset, plan.spec, plan.train)
        record = FitRecord(validation_steps=validation_steps)
    else:
        cities: list[TrafficDataset] = []
        city_notes: tuple[str, ...] = ()
        parameters: Parameters = None
        if plan.learns_from_cities:
            cities = _cities(config, dataset, wanted, progress, processes)
            if isinstance(wanted, int):
                city_notes = stand_in_notes(dataset.services)
                parameters = parameters_like(dataset, wanted, seed=derive_seed(config.training.seed, "cities"))
        predictor, result = _train(config, dataset, plan, cities, parameters, run, progress, processes)
        calibrated = predictor
        weights = None
        if result.window_weights is not None:
            weights = WeightReport.of(result.window_weights, [city.name for city in cities], parameters)
        record = FitRecord(cities, city_notes, validation_steps, result, weights)
    held_out = Windows(dataset, plan.spec, plan.scaler, steps=plan.validation)
    errors = None
    if isinstance(calibrated, ModelPredictor) and calibrated.has_quantiles:
        measured = calibrated
        if isinstance(calibrated, InContextPredictor):
            measured = calibrated.on(dataset, held_out.origins[:1])
        days = len(plan.validation) / dataset.steps_per_day
        calibrated.stretch = believed_stretch(measure_stretch(measured, held_out), days)
    else:
        errors = ErrorQuantiles.measure(calibrated, held_out)
    notes = plan.notes + record.city_notes
    return FittedForecaster(config, dataset, plan.spec, predictor, errors, notes, record)


def _wanted(simulated: Simulated, config: ForecasterConfig) -> int | list[TrafficDataset]:
    """Turn the argument `simulated` of `fit` into a number of cities to simulate, or a list of cities."""
    simulated = python_scalar(simulated)
    if simulated is None:
        return 0
    if isinstance(simulated, str) and simulated == "default":
        return config.cities
    if isinstance(simulated, int) and not isinstance(simulated, bool) and simulated >= 0:
        at_most("simulated", simulated, 1_000_000)
        return simulated
    cities = [simulated] if isinstance(simulated, TrafficDataset) else simulated
    if isinstance(cities, (str, int)) or not all(isinstance(city, TrafficDataset) for city in cities):
        raise ConfigError(f"simulated is {simulated!r}; it must be 'default', a number, data sets or None")
    return list(cities)


def _cities(
    config: ForecasterConfig,
    dataset: TrafficDataset,
    wanted: int | list[TrafficDataset],
    progress: Progress,
    processes: ProcessGroup,
) -> list[TrafficDataset]:
    if isinstance(wanted, int):
        seed = derive_seed(config.training.seed, "cities")
        return cities_like(dataset, wanted, seed=seed, progress=progress, processes=processes)
    return [matched(city, dataset) for city in wanted]


def _train(
    config: ForecasterConfig,
    dataset: TrafficDataset,
    plan: Plan,
    cities: Sequence[TrafficDataset],
    parameters: Parameters,
    run: RunFolder | None,
    progress: Progress,
    processes: ProcessGroup,
) -> tuple[ModelPredictor, Result]:
    assert plan.network is not None and plan.solver is not None  # noqa: S101, PT018 - not a baseline
    spec = plan.spec
    # Each city has its own scale of the same kind, so that the network sees relative changes.
    simulated = [
        Windows(city, spec, Scaler.fit(city, range(city.num_steps), plan.scaler.kind), steps=range(city.num_steps))
        for city in cities
    ]
    with seeded(derive_seed(config.training.seed, "weights")):
        network = start_network(config.model, plan)
    validation = Windows(dataset, spec, plan.scaler, steps=plan.validation)
    # The score of the untouched shipped weights: training must not end worse.
    best = BestWeights(network)
    if plan.pretrained is not None:
        where = "the shipped weights"
        best.offer(validation_score(network, validation, config.training, where=where, processes=processes))
    result = solve(
        plan.solver,
        network,
        real_train=Windows(dataset, spec, plan.scaler, steps=plan.train),
        real_validation=validation,
        simulated=ConcatWindows(simulated) if simulated else None,
        parameters=parameters,
        config=config.training,
        run=run,
        progress=progress,
        processes=processes,
    )
    days = len(plan.validation) / dataset.steps_per_day
    kept = plan.pretrained is None or result.chosen == "pretrained" or gained(result.best_score, best.score, days)
    if not kept:
        best.restore()
        result = dataclasses.replace(result, chosen="pretrained", earlier_score=best.score)
    return predictor_class(config)(network, plan.scaler, spec), result


def gained(score: float | None, untouched: float | None, days: float) -> bool:
    """Return whether trained weights beat the shipped ones by more than chance on `days` days of validation.

    Example:
        >>> gained(0.94, 1.0, days=7), gained(0.94, 1.0, days=1)
        (True, False)
    """
    if score is None or untouched is None:
        return True
    return score < (1 - min(_MARGIN * math.sqrt(7 / days), _MOST)) * untouched


def start_network(model: str, plan: Plan) -> AnyNetwork:
    """Build the network of a plan, with the shipped or with random weights."""
    assert plan.network is not None  # noqa: S101 - not a baseline
    config = plan.network
    if plan.pretrained is None or not isinstance(config, SimMSTNetConfig):
        return build_network(model, config)
    changes = {name: getattr(config, name) for name in ("backend", "factor", "dropout", "task_weights")}
    return plan.pretrained.network(config.services, config.horizon, **changes)
