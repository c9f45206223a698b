"""Simulated cities with the services and slots of a series."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from simmst.data import TrafficDataset
from simmst.distributed import ALONE, ProcessGroup
from simmst.errors import ConfigError, DataError
from simmst.foundation.scalars import python_scalar
from simmst.simulation import DEFAULT_SERVICES, CityConfig, DomainPrior, ServiceConfig, simulate_city
from simmst.simulation.config import step_for
from simmst.training import Progress, quiet

# The order in which services unknown to the simulator are assigned one that it knows.
_LENT = ("internet", "call", "sms")


def stand_ins(services: Sequence[str]) -> tuple[str | ServiceConfig, ...]:
    """Choose what the simulator simulates for each service of a series.

    Names that the simulator knows, in upper or lower case, stand for themselves. Each other name is assigned a service
    that the series lacks, Internet first; when none is left, it is simulated as another Internet service.

    Example:
        >>> stand_ins(["Call", "video"])
        ('call', 'internet')
    """
    chosen: list[str | ServiceConfig | None] = []
    free = dict.fromkeys(_LENT)
    for name in services:
        known = name.lower()
        chosen.append(known if known in free else None)
        free.pop(known, None)
    for place, name in enumerate(services):
        if chosen[place] is None:
            lent = next(iter(free), None)
            if lent is not None:
                del free[lent]
            chosen[place] = lent or dataclasses.replace(DEFAULT_SERVICES["internet"], name=name)
    return tuple(service for service in chosen if service is not None)


def stand_in_notes(services: Sequence[str]) -> tuple[str, ...]:
    """Say for which services another one was simulated; empty where all names are known.

    Example:
        >>> stand_in_notes(["call", "video"])
        ("service 'video' is unknown to the simulator, which simulated 'internet' for it",)
    """
    notes = []
    for name, service in zip(services, stand_ins(services), strict=True):
        if not isinstance(service, str) or service != name.lower():
            what = service if isinstance(service, str) else "internet"
            notes.append(f"service {name!r} is unknown to the simulator, which simulated {what!r} for it")
    return tuple(notes)


def simulation_step(step_minutes: int) -> int:
    """Return the minutes of the simulated slots that are summed to slots of `step_minutes`.

    Raises:
        DataError: no slots of the simulator sum to these.

    Example:
        >>> simulation_step(30)
        10
    """
    step = step_for(step_minutes)
    if step is not None:
        return step
    raise DataError(
        f"cities are simulated in multiples of 5 minutes, the series has slots of "
        f"{step_minutes} minutes; resample it to 10, 30 or 60 minutes, or train without simulated cities"
    )


def cities_like(
    dataset: TrafficDataset,
    number: int,
    *,
    seed: int,
    prior: DomainPrior | None = None,
    progress: Progress = quiet,
    processes: ProcessGroup = ALONE,
) -> list[TrafficDataset]:
    """Simulate cities that have the services and the slots of a series.

    Args:
        dataset: the series.
        number: number of cities; 0 gives none.
        seed: seed of the cities.
        prior: distribution of their parameters; None takes `DomainPrior.default`.
        progress: callable that is called after each city.
        processes: process group; each process simulates a share of the cities and gets all of them.

    Returns:
        The cities, drawn from the prior, with their services named as in the series.

    Raises:
        ConfigError: the number is not a whole number of at least 0.
        DataError: no slots of the simulator sum to those of the series.
    """
    number = python_scalar(number)
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ConfigError(f"the number of simulated cities is {number!r}; it must be a whole number of at least 0")
    if number == 0:
        return []
    configs, own = _configs_like(dataset, number, seed, prior or DomainPrior.default()), []
    for index in range(processes.rank, number, processes.world_size):
        city = simulate_city(configs[index])
        own.append(city.with_(services=dataset.services).resample(dataset.step_minutes))
        progress("simulate", len(own), processes.shard_size(number))
    return processes.all_gather_object(own)


def parameters_like(
    dataset: TrafficDataset, number: int, *, seed: int, prior: DomainPrior | None = None
) -> list[dict[str, Any]]:
    """Return the parameters that the prior drew for the cities of `cities_like`, by name.

    Args:
        dataset: the series.
        number: number of cities.
        seed: seed of the cities.
        prior: distribution of their parameters; None takes `DomainPrior.default`.

    Example:
        >>> from simmst.simulation import surrogate_city
        >>> series = surrogate_city(0, height=3, width=3, days=1)
        >>> cities = parameters_like(series, 2, seed=1)
        >>> cities[0]["carrier_ghz"] != cities[1]["carrier_ghz"]
        True
    """
    prior = prior or DomainPrior.default()
    return [prior.values(config) for config in _configs_like(dataset, number, seed, prior)]


def _configs_like(dataset: TrafficDataset, number: int, seed: int, prior: DomainPrior) -> list[CityConfig]:
    services = stand_ins(dataset.services)
    step = simulation_step(dataset.step_minutes)
    return [prior.sample(seed, index, services=services, step_minutes=step) for index in range(number)]
