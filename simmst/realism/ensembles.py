"""Ensembles of simulated cities that are cut to the shape of files and measured one by one, without being kept."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from simmst.data.dataset import TrafficDataset
from simmst.errors import ConfigError
from simmst.foundation.scalars import python_scalar
from simmst.foundation.workers import in_workers
from simmst.realism.crops import Crop
from simmst.realism.measurements import Measurement, measure
from simmst.simulation.city import simulate_city
from simmst.simulation.prior.domain_prior import DomainPrior

MIN_CITIES = 20  # fewer have no 5 and 95 % quantiles


def measure_cities(
    crops: Sequence[Crop],
    *,
    cities: int,
    seed: int,
    prior: DomainPrior,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[Measurement, ...]]:
    """Simulate cities 0 to `cities` - 1 in the shape of every crop, and measure them.

    City i has the same parameters in every crop, except those that a crop fixes. The city depends neither on the number
    of cities nor on the number of workers.

    Args:
        crops: crops to simulate.
        cities: number of cities.
        seed: seed of the family of cities.
        prior: law of their parameters.
        workers: number of processes. If there are several, they are started with "spawn", so a script must guard its
            main part with ``if __name__ == "__main__":``.
        progress: called with (cities done, cities) after each city.

    Returns:
        For each city, its measurement in each crop.

    Raises:
        ConfigError: `cities` is below 20, or `workers` below one.
    """
    cities, workers = python_scalar(cities), python_scalar(workers)
    for name, value, least in (("cities", cities, MIN_CITIES), ("workers", workers, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least {least}")
    one = functools.partial(_measure_city, tuple(crops), prior, seed)
    measured = []
    for measurements in in_workers(one, range(cities), workers):
        measured.append(measurements)
        if progress is not None:
            progress(len(measured), cities)
    return measured


def _measure_city(crops: tuple[Crop, ...], prior: DomainPrior, seed: int, index: int) -> tuple[Measurement, ...]:
    measured: list[Measurement] = []
    cities: dict[str, TrafficDataset] = {}  # crops of the same shape and days share a city
    for crop in crops:
        settings = repr(crop.city)
        if settings not in cities:
            cities[settings] = simulate_city(prior.sample(seed, index, **crop.city))
        measured.append(measure(crop.cut(cities[settings], seed, index)))
    return tuple(measured)
