"""The input of a job: a traffic file, its fingerprint and its split, all checked before anything is written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simmst.data import Split, TrafficDataset, chronological_split, load
from simmst.errors import ConfigError, DataError, SimmstError
from simmst.forecaster import ForecasterConfig
from simmst.forecaster.covariate_effect import refuse_missing
from simmst.forecaster.plan import make_plan
from simmst.forecaster.similar_cities import simulation_step


def open_data(
    data: str | Path,
    *,
    step: int | None = None,
    services: Sequence[str] | None = None,
    table: Mapping[str, Any] | None = None,
    like: TrafficDataset | None = None,
) -> TrafficDataset:
    """Read a traffic file, sum it to slots of `step` minutes and select services.

    Args:
        data: path, pattern, folder or name of the traffic.
        step: minutes of a slot; None keeps the file's.
        services: services to keep; None keeps all.
        table: options for reading a table, those of `TrafficDataset.from_dataframe`.
        like: series of the same cells, which supplies the options that are not given.

    Raises:
        DataError: the file or a service does not exist, or its slots do not sum to `step`.
    """
    try:
        dataset = load(data, like=like, **(table or {}))
    except DataError as error:
        if Path(data).name in str(error):
            raise
        raise DataError(f"{data}: {error}") from error
    except SimmstError:
        raise
    except (ValueError, LookupError) as error:  # raised by the readers of the formats
        raise DataError(
            f"{data} cannot be read as traffic ({type(error).__name__}: {error}); fetch it again"
        ) from error
    if services is not None:
        dataset = dataset.select_services(services)
    return dataset if step is None else dataset.resample(step)


def checked_split(
    dataset: TrafficDataset,
    config: ForecasterConfig,
    *,
    simulated: int | Sequence[TrafficDataset] | None,
    test_days: int = 7,
) -> Split:
    """Split a series, and refuse before anything is written what could not be trained or tested on it.

    Raises:
        DataError: the series is too short, its slots cannot be simulated, or a covariate is missing in the test slots.
        ConfigError: settings that contradict each other or this machine.
    """
    if isinstance(simulated, int) and simulated < 0:
        raise ConfigError(f"simulated is {simulated}; it must be a number of cities of at least 0")
    split = chronological_split(
        dataset.num_steps, dataset.steps_per_day, test_days=test_days, validation_days=config.validation_days
    )
    if len(split.test) < config.horizon:
        raise DataError(
            f"the test part of {dataset.name} has {len(split.test)} slots, too few for a horizon of {config.horizon}; "
            "give a longer series, more test days or a shorter horizon"
        )
    refuse_missing(dataset, np.array(split.test[: len(split.test) - config.horizon + 1]), config.horizon)
    past = dataset.slice_steps(0, split.test.start)
    plan = make_plan(config, past, simulated=bool(simulated), validation_steps=len(split.validation))
    if isinstance(simulated, int) and plan.learns_from_cities:
        simulation_step(dataset.step_minutes)
    return split


def described(dataset: TrafficDataset, data: str | Path | None) -> dict[str, Any]:
    """Describe the data of a run for its settings: a run resumes only with the same values, wherever the file is."""
    values = np.nan_to_num(dataset.activity, nan=-1.0)
    digest = hashlib.sha256(values.tobytes())
    digest.update(dataset.time.tobytes())
    digest.update(dataset.mask.tobytes())
    if dataset.covariates is not None:
        digest.update(repr(dataset.covariates.names).encode())
        digest.update(dataset.covariates.time.tobytes() + dataset.covariates.values.tobytes())
    return {
        "data": None if data is None else Path(data).name,
        "digest": digest.hexdigest()[:16],
        "step": dataset.step_minutes,
        "services": list(dataset.services),
    }
