"""Whole cities: the three stages in sequence, for one city or many, in this process or in workers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from simmst.data.dataset import TrafficDataset
from simmst.errors import ConfigError
from simmst.foundation.scalars import python_scalar
from simmst.foundation.workers import in_workers
from simmst.simulation.clock import Clock
from simmst.simulation.config import CityConfig
from simmst.simulation.outline import outline_mask
from simmst.simulation.prior.domain_prior import DomainPrior
from simmst.simulation.radio.ray_tracing import RayTracedRadio
from simmst.simulation.radio.statistical import RadioModel, StatisticalRadio
from simmst.simulation.reporting.counter_faults import apply_faults
from simmst.simulation.reporting.operator import OperatorReporting, ReportingModel
from simmst.simulation.streams import stream
from simmst.simulation.traffic.shared_presence import SharedPresenceTraffic, TrafficModel

RADIOS: dict[str, RadioModel] = {"statistical": StatisticalRadio(), "ray-traced": RayTracedRadio()}
TRAFFIC = SharedPresenceTraffic()
REPORTING = OperatorReporting()


@dataclass(frozen=True, eq=False)
class SimulatedCity:
    """A simulated city with and without the faults of its operator's counters.

    Attributes:
        reported: published traffic with the counters' faults; NaN where missing.
        clean: published traffic without the counters' faults.
        wrong: bool ``(T, K, H, W)``, True where a counter is at fault; None if none is.
    """

    reported: TrafficDataset
    clean: TrafficDataset
    wrong: np.ndarray | None


def simulate_city(
    config: CityConfig,
    *,
    radio: RadioModel | None = None,
    traffic: TrafficModel = TRAFFIC,
    reporting: ReportingModel = REPORTING,
) -> TrafficDataset:
    """Simulate one city: radio, traffic, reporting and counter faults, each on its own random stream.

    Args:
        config: the city.
        radio: the radio stage; None uses the one that the config names.
        traffic: the traffic stage.
        reporting: the reporting stage.

    Returns:
        The city's published traffic, marked as a surrogate; NaN where missing.

    Example:
        >>> city = simulate_city(CityConfig(seed=1, height=5, width=6, days=2))
        >>> city.activity.shape, city.surrogate, city.name
        ((48, 3, 5, 6), True, 'simulated-1-0')
    """
    return simulate_both(config, radio=radio, traffic=traffic, reporting=reporting).reported


def simulate_both(
    config: CityConfig,
    *,
    radio: RadioModel | None = None,
    traffic: TrafficModel = TRAFFIC,
    reporting: ReportingModel = REPORTING,
) -> SimulatedCity:
    """Simulate one city and return its clean traffic along with the reported traffic.

    Args:
        config: as in `simulate_city`.
        radio: as in `simulate_city`.
        traffic: as in `simulate_city`.
        reporting: as in `simulate_city`.

    Example:
        >>> both = simulate_both(CityConfig(height=3, width=3, days=2, faults={"zero_share": 0.5}))
        >>> bool((both.reported.activity[both.wrong] == 0).all())
        True
    """
    mask = outline_mask(config)
    coverage = (radio or RADIOS[config.radio]).coverage(config, stream(config.seed, config.index, "radio"))
    activity = traffic.simulate(config, coverage, stream(config.seed, config.index, "traffic"))
    published = reporting.apply(config, activity, coverage, stream(config.seed, config.index, "reporting"))
    published[:, :, ~mask] = np.nan
    reported, wrong = apply_faults(config, published, coverage.association)
    ids = np.arange(1, config.num_cells + 1, dtype=np.int64).reshape(mask.shape)
    clean = TrafficDataset(
        activity=published,
        time=Clock.of(config).start_utc,
        services=config.service_names,
        mask=mask,
        cell_id=np.where(mask, ids, -1),
        timezone=config.timezone,
        country=config.country,
        unit="CDR units",
        name=config.city_name,
        surrogate=True,
        cell_size_m=config.cell_m,
    )
    return SimulatedCity(clean if wrong is None else clean.with_(activity=reported), clean, wrong)


def simulate_cities(
    n: int,
    *,
    seed: int,
    prior: DomainPrior | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    **overrides: Any,
) -> list[TrafficDataset]:
    """Simulate cities number 0 to n - 1 of a family.

    City i depends neither on n nor on the number of workers or the order: it is
    ``simulate_city(prior.sample(seed, i, ...))``.

    Args:
        n: number of cities.
        seed: seed of the family.
        prior: law of the parameters; None uses `DomainPrior.default`.
        workers: number of processes. If there are several, they are started with "spawn", so a script must guard its
            main part with ``if __name__ == "__main__":``; starting them takes a few seconds.
        progress: called with (cities done, n) after each city.
        **overrides: fields of `CityConfig` to fix, such as ``days=14``.

    Returns:
        The cities in order.

    Raises:
        ConfigError: n or workers is below one, or an override is unknown or out of range.

    Example:
        >>> cities = simulate_cities(2, seed=1, height=4, width=4, days=1)
        >>> [city.name for city in cities]
        ['simulated-1-0', 'simulated-1-1']
    """
    n, workers = python_scalar(n), python_scalar(workers)
    for name, value in (("n", n), ("workers", workers)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least 1")
    prior = DomainPrior.default() if prior is None else prior
    # Sample before any process starts, so that a wrong override fails at once.
    configs = [prior.sample(seed, index, **overrides) for index in range(n)]
    cities = []
    for city in in_workers(simulate_city, configs, workers, chunk=max(1, min(8, n // (4 * workers)))):
        cities.append(city)
        if progress is not None:
            progress(len(cities), n)
    return cities


@functools.cache
def _surrogate_prior() -> DomainPrior:
    return DomainPrior.surrogate()


def surrogate_city(seed: int, **overrides: Any) -> TrafficDataset:
    """Simulate a city that stands in for a real one where there is none; several of its parameters lie outside the
    training prior.

    Args:
        seed: seed of the surrogate.
        **overrides: fields of `CityConfig` to fix, such as ``days=28``.

    Returns:
        The city, marked and named as a surrogate.

    Raises:
        ConfigError: an override is unknown or out of range.

    Example:
        >>> surrogate_city(3, height=4, width=4, days=1).name
        'surrogate-3'
    """
    return simulate_city(_surrogate_prior().sample(seed, 0, **overrides)).with_(name=f"surrogate-{seed}")
