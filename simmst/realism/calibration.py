"""Calibration of a prior by rejection: simulate cities, keep those most like the real ones, narrow the laws to them."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simmst.data.calendar import local_seconds
from simmst.data.dataset import TrafficDataset
from simmst.errors import ConfigError, DataError
from simmst.realism.crops import Crop
from simmst.realism.ensembles import measure_cities
from simmst.realism.measurements import Measurement, measure, subjects
from simmst.realism.patches import split_patches
from simmst.realism.statistics import wasserstein
from simmst.simulation.config import check_date
from simmst.simulation.prior.distributions import INTERVALS, Distribution, LogUniform, Mixture, level
from simmst.simulation.prior.domain_prior import DomainPrior

MIN_KEPT = 10
CLIP = 4.0  # no statistic counts for more than this many typical deviations
_KS_CRITICAL = 1.358  # critical value of Kolmogorov-Smirnov at 5 %, for the statistic as scaled by Stephens


@dataclass(frozen=True, eq=False)
class Calibration:
    """Result of a calibration.

    Attributes:
        prior: the narrowed prior; its note says which data it was calibrated on.
        narrowed: old and new interval of each narrowed parameter, by parameter.
        distance: distance of each simulated city from the real data, ``(cities,)``.
        kept: indices of the cities that were kept, the nearest first.
    """

    prior: DomainPrior
    narrowed: dict[str, tuple[tuple[float, float], tuple[float, float]]]
    distance: np.ndarray
    kept: np.ndarray


def calibrate(
    prior: DomainPrior,
    real: TrafficDataset | Sequence[TrafficDataset],
    *,
    period: tuple[str, str] | None = None,
    cities: int = 300,
    keep: float = 0.1,
    seed: int = 0,
    place_cells: int | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Narrow a prior to what the training period of real data supports, by rejection sampling on summary statistics.

    Cities are drawn from the prior and cut to the data's shape, as in the realism report. The distance of a city is
    the root mean square, over the report's statistics and over the data sets, of its difference from the real value
    in units of the cities' median absolute deviation, clipped at 4. The `keep` nearest cities approximate the
    posterior. A parameter whose kept values differ from its law (Kolmogorov-Smirnov, 5 %) keeps its family and is
    narrowed to the range of these values, widened by one mean spacing at either end. All other parameters keep their
    law, and so do categorical laws and dates.

    The method is deliberately coarse. With some fifty parameters and a few dozen statistics, a neural posterior would
    need far more cities and another heavy package, and would give a law much narrower than one city justifies. The
    result is a prior of cities like this one, not of this city.

    Args:
        prior: prior to start from.
        real: one data set or several of the same city.
        period: first and last local date (ISO) of the training period; None takes all. Test days must lie outside.
        cities: number of cities to simulate.
        keep: fraction of the cities to keep; at least 10 must be kept.
        seed: seed of the family of cities.
        place_cells: cells a side of a place, for data sets of places.
        workers: number of processes.
        progress: called with (cities done, cities) after each city.

    Raises:
        ConfigError: `keep` is not a fraction or keeps fewer than 10 cities, or a date is wrong.
        DataError: the period holds fewer than two slots of a data set, or nothing can be compared.

    Example:
        >>> from simmst.simulation import surrogate_city
        >>> held_out = surrogate_city(0, height=4, width=4, days=2, services=["internet"])
        >>> fitted = calibrate(DomainPrior.default(), held_out, cities=20, keep=0.5).prior
        >>> fitted.note.split(": ")[1]  # doctest: +ELLIPSIS
        '10 nearest of 20 cities of seed 0, ... parameters narrowed'

    Source:
        Beaumont, Zhang and Balding 2002, "Approximate Bayesian computation in population genetics", without the
        regression step.
    """
    if not 0 < keep < 1 or round(keep * cities) < MIN_KEPT:
        raise ConfigError(
            f"keep is {keep!r} of {cities} cities; it must be a fraction that keeps at least {MIN_KEPT} of them"
        )
    datasets = [one for each in ([real] if isinstance(real, TrafficDataset) else real) for one in split_patches(each)]
    if not datasets:
        raise DataError("there is nothing to calibrate on; give at least one data set")
    crops = [Crop.of(within(dataset, period), place_cells=place_cells) for dataset in datasets]
    measured = measure_cities(crops, cities=cities, seed=seed, prior=prior, workers=workers, progress=progress)
    squares = [
        deviations(measure(crop.like), [city[number] for city in measured], crop.like.services)
        for number, crop in enumerate(crops)
    ]
    # Each file counts the same, however many statistics it has.
    distance = np.sqrt(np.mean([(one**2).mean(axis=1) for one in squares], axis=0))
    kept = np.argsort(distance, kind="stable")[: round(keep * cities)]
    configs = [prior.values(prior.sample(seed, int(index))) for index in kept]
    laws, narrowed = dict(prior.parameters), {}
    for name, law in prior.parameters.items():
        interval = _interval(law, [values[name] for values in configs if name in values])
        if interval is not None and name not in _settled(crops):
            narrowed[name] = (law.bounds[0], law.bounds[1]), interval
            laws[name] = prior.narrow({name: interval}).parameters[name]
    return Calibration(DomainPrior(laws, note=_note(crops, cities, seed, kept, narrowed)), narrowed, distance, kept)


def within(dataset: TrafficDataset, period: tuple[str, str] | None) -> TrafficDataset:
    """Return the slots of a period of local dates, both included; None returns all slots.

    Raises:
        ConfigError: a date is wrong.
        DataError: fewer than two slots lie in the period.

    Example:
        >>> hours = np.datetime64("2013-11-03T23:00:00") + np.arange(72) * np.timedelta64(3600, "s")
        >>> data = TrafficDataset.from_arrays(np.ones((72, 2, 2)), hours, services=["sms"])
        >>> within(data, ("2013-11-05", "2013-11-06")).num_steps
        48
    """
    if period is None:
        return dataset
    first, last = (np.datetime64(check_date("period", date)) for date in period)
    day = (local_seconds(dataset.time, dataset.timezone) // 86_400).astype("datetime64[D]")
    inside = np.flatnonzero((day >= first) & (day <= last))
    if len(inside) < 2:
        raise DataError(
            f"{dataset.name} has {len(inside)} slots from {first} to {last}; it goes from {day[0]} to {day[-1]}"
        )
    return dataset.slice_steps(int(inside[0]), int(inside[-1]) + 1)


def deviations(real: Measurement, simulated: Sequence[Measurement], services: tuple[str, ...]) -> np.ndarray:
    """Return each city's differences from the real statistics in typical deviations, ``(cities, statistics)``.

    Raises:
        DataError: no statistic is common to the real data and most cities.
    """
    columns = []
    for subject, statistic in subjects(services):
        name = (subject, statistic.key)
        if name not in real.values:
            continue
        values = np.array([one.values.get(name, np.nan) for one in simulated])
        spread = 1.4826 * np.nanmedian(np.abs(values - np.nanmedian(values))) if not np.isnan(values).all() else 0.0
        if spread > 0:
            columns.append((values - real.values[name]) / spread)
    for service, quantiles in real.quantiles.items():
        apart = np.array([wasserstein(one.quantiles.get(service, np.full_like(quantiles, np.nan)), quantiles)
                          for one in simulated])  # fmt: skip
        if np.nanmedian(apart) > 0:
            columns.append(apart / np.nanmedian(apart))
    if not columns:
        raise DataError("no statistic of the data has a value, so there is nothing to calibrate on")
    clipped: np.ndarray = np.nan_to_num(np.clip(np.stack(columns, axis=1), -CLIP, CLIP), nan=CLIP)
    return clipped


def _interval(law: Distribution, values: Sequence[Any]) -> tuple[float, float] | None:
    """Return the interval that the kept values support, or None if they look like draws from the law or reach both of
    its ends.
    """
    laws = law.laws if isinstance(law, Mixture) else (law,)
    if not all(isinstance(one, INTERVALS) for one in laws) or len(values) < MIN_KEPT:
        return None
    number, (least, most) = len(values), law.bounds
    levels = np.sort([level(law, value) for value in values])
    apart = max(np.max(np.arange(1, number + 1) / number - levels), np.max(levels - np.arange(number) / number))
    if apart * (math.sqrt(number) + 0.12 + 0.11 / math.sqrt(number)) < _KS_CRITICAL:
        return None
    scale = np.log if isinstance(laws[0], LogUniform) else np.asarray
    ordered = scale(np.sort(np.array(values, dtype=np.float64)))
    spacing = (ordered[-1] - ordered[0]) / (number - 1)
    back = np.exp if isinstance(laws[0], LogUniform) else np.asarray
    low, high = (float(end) for end in back(np.array([ordered[0] - spacing, ordered[-1] + spacing])))
    low, high = max(low, least), min(high, most)
    return (low, high) if level(law, high) - level(law, low) < 1 - 1 / number else None


def _settled(crops: Sequence[Crop]) -> set[str]:
    return set().union(*(crop.city for crop in crops))


def _note(crops: Sequence[Crop], cities: int, seed: int, kept: np.ndarray, narrowed: dict[str, Any]) -> str:
    """Say what a prior was calibrated on."""
    parts = []
    for crop in crops:
        local = local_seconds(crop.like.time[[0, -1]], crop.like.timezone)
        first, last = (datetime.date(1970, 1, 1) + datetime.timedelta(days=int(second) // 86_400) for second in local)
        label = "SURROGATE " if crop.like.surrogate else ""
        parts.append(f"{label}{crop.like.name} from {first} to {last}")
    return (
        f"calibrated on {' and '.join(parts)}: {len(kept)} nearest of {cities} cities of seed {seed}, "
        f"{len(narrowed)} parameters narrowed"
    )
