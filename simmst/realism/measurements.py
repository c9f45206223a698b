"""Measurements of a data set for the realism report: every statistic by name, or the reason why it has no value."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from simmst.data.calendar import local_seconds
from simmst.data.dataset import TrafficDataset
from simmst.realism import spatial_statistics as space
from simmst.realism import statistics as st
from simmst.simulation.clock import public_holidays

SPATIAL_LAGS = (1, 2, 3, 5, 8, 12, 20)
HOUR_LAGS = (1, 24, 168)
DISTANCES = ("ks", "wasserstein")  # from the typical simulated city; smaller is better
LEVELS = (np.arange(200) + 0.5) / 200  # levels of the quantile functions that marginals are compared by
_DAY_S = 86_400
_EPOCH = np.datetime64("1970-01-01", "D")


@dataclass(frozen=True)
class Statistic:
    """A row of the report.

    Attributes:
        key: name in JSON, unique within a service.
        label: name in tables.
        above: meaning of a real value above the simulated ones.
        below: meaning of a real value below the simulated ones.
    """

    key: str
    label: str
    above: str
    below: str


@dataclass(frozen=True, eq=False)
class Measurement:
    """The statistics of one data set.

    Attributes:
        values: value of each statistic, by (service or pair of services, key of the statistic).
        reasons: reason why a statistic has no value, by the same names.
        quantiles: quantiles at `LEVELS` of standardised log traffic, or of z-scored series themselves, by service.
        days: the 24 hours of the mean day relative to the busiest hour, by service; empty if the file has no whole day.
    """

    values: dict[tuple[str, str], float] = field(default_factory=dict)
    reasons: dict[tuple[str, str], str] = field(default_factory=dict)
    quantiles: dict[str, np.ndarray] = field(default_factory=dict)
    days: dict[str, np.ndarray] = field(default_factory=dict)

    def take(self, subject: str, key: str, compute: Callable[[], float]) -> None:
        """Compute a statistic and keep its value, or the reason why it has none."""
        try:
            self.values[subject, key] = float(compute())
        except st.NotComputable as reason:
            self.reasons[subject, key] = str(reason)


@dataclass(frozen=True, eq=False)
class Days:
    """The calendar of a series.

    Attributes:
        hour: local hour of each slot, float64 ``(T,)``.
        working: bool ``(T,)``, Monday to Friday except public holidays.
        weekend: bool ``(T,)``, Saturdays and Sundays except public holidays.
        holiday: bool ``(T,)``, public holidays from Monday to Friday.
    """

    hour: np.ndarray
    working: np.ndarray
    weekend: np.ndarray
    holiday: np.ndarray

    @classmethod
    def of(cls, dataset: TrafficDataset) -> Days:
        """Return the calendar of a data set, by its time zone and country."""
        local = local_seconds(dataset.time, dataset.timezone)
        number = local // _DAY_S
        first = (_EPOCH + int(number[0])).astype(object)
        resting = public_holidays(first, int(number[-1] - number[0]) + 1, dataset.country)
        free = np.isin(number, [(np.datetime64(day) - _EPOCH).astype(int) for day in resting])
        late = (number + 3) % 7 >= 5  # 1970-01-01 was a Thursday
        return cls((local % _DAY_S) / 3600, ~late & ~free, late & ~free, free & ~late)


def catalogue() -> tuple[Statistic, ...]:
    """Return every statistic, in the order of the report."""
    rough, smooth = "the real traffic is rougher than the simulated", "the real traffic is smoother than the simulated"
    maps = [
        Statistic(
            f"cells_{lag}",
            f"spatial autocorrelation at {_number(lag, 'cell')}",
            "the real map varies over longer distances than the simulated",
            "the real map varies over shorter distances than the simulated",
        )
        for lag in SPATIAL_LAGS
    ]
    time = [Statistic(f"hours_{lag}", f"autocorrelation at {lag} h", smooth, rough) for lag in HOUR_LAGS]
    far, near = "the real law is farther from the typical simulated one than most simulated cities", ""
    return (
        Statistic("ks", "Kolmogorov-Smirnov distance of the marginal", far, near),
        Statistic("wasserstein", "Wasserstein distance of the marginal", far, near),
        Statistic(
            "log_std",
            "log-std of cells",
            "the real cells differ more in level than the simulated",
            "the real cells differ less in level than the simulated",
        ),
        Statistic(
            "log_skew",
            "log skew of cells",
            "the real map has more very busy cells than the simulated",
            "the real map has more very quiet cells than the simulated",
        ),
        *maps,
        Statistic(
            "neighbours",
            "correlation of adjacent cells over time",
            "adjacent real cells move more alike than simulated ones",
            "adjacent real cells move less alike than simulated ones",
        ),
        Statistic(
            "synchrony",
            "correlation of a cell with all over time",
            "the real cells move more alike than simulated ones",
            "the real cells move less alike than simulated ones",
        ),
        Statistic("slot_1", "autocorrelation at one slot", smooth, rough),
        *time,
        Statistic("roughness", "log typical change of log traffic from slot to slot", rough, smooth),
        Statistic(
            "log_std_time",
            "log-std over time",
            "the real day is deeper than the simulated",
            "the real day is flatter than the simulated",
        ),
        Statistic("weekend", "weekend over working days", *_days("weekends")),
        Statistic("holiday", "public holidays over working days", *_days("public holidays")),
        Statistic("weekend_shift", "weekend shift in standard deviations", *_days("weekends")),
        Statistic("holiday_shift", "holiday shift in standard deviations", *_days("public holidays")),
        Statistic(
            "night",
            "quietest over busiest hour",
            "the real night is busier than the simulated",
            "the real night is quieter than the simulated",
        ),
        *(
            Statistic(
                f"correlation_{percent}",
                f"correlation over time, {percent} % of cells below",
                "the real services move more alike than the simulated",
                "the real services move less alike than the simulated",
            )
            for percent in (5, 50, 95)
        ),
        Statistic("upper_95", "log 95 % quantile over median", *_tails("busy slots")),
        Statistic("upper_99", "log 99 % quantile over median", *_tails("busy slots")),
        Statistic("largest", "log largest value over the cell's mean", *_tails("greatest burst")),
        Statistic("kurtosis", "log kurtosis of changes from slot to slot", *_tails("bursts")),
    )


def measure(dataset: TrafficDataset) -> Measurement:
    """Measure every statistic that a data set allows.

    Args:
        dataset: real or simulated data set, of any shape. Z-scored series (``unit="z-score"``) have no level, so only
            statistics that do not depend on it are measured.

    Returns:
        The values, and the reason for each statistic without one.

    Example:
        >>> from simmst.simulation import CityConfig, simulate_city
        >>> measured = measure(simulate_city(CityConfig(height=6, width=6, days=2, services=("internet",))))
        >>> 0 < measured.values["internet", "night"] < 1, measured.reasons["internet", "hours_168"]
        (True, 'the file is shorter than 192 h')
    """
    measured = Measurement()
    days, scored = Days.of(dataset), dataset.unit == "z-score"
    series = dataset.series().astype(np.float64)
    for number, service in enumerate(dataset.services):
        each = np.ascontiguousarray(series[:, number])
        _measure_marginal(measured, service, each, scored)
        _measure_space(measured, service, dataset, number)
        _measure_time(measured, service, each, days, dataset.step_minutes)
        if scored:
            _measure_shifts(measured, service, each, days)
        else:
            _measure_levels(measured, service, each, days)
        measured.take(service, "kurtosis", functools.partial(st.burst_kurtosis, each))
    for (one, first), (two, second) in itertools.combinations(enumerate(dataset.services), 2):
        _measure_pair(measured, f"{first}-{second}", series[:, one], series[:, two])
    return measured


def _measure_marginal(measured: Measurement, service: str, series: np.ndarray, scored: bool) -> None:
    try:
        values = st.standardised(series) if scored else st.log_traffic(series)
        measured.quantiles[service] = st.quantile_function(values, LEVELS)
    except st.NotComputable as reason:
        for key in ("ks", "wasserstein"):
            measured.reasons[service, key] = str(reason)


def _measure_space(measured: Measurement, service: str, dataset: TrafficDataset, number: int) -> None:
    keys = ["log_std", "log_skew", "neighbours", *(f"cells_{lag}" for lag in SPATIAL_LAGS)]
    reason = "z-scores have no level" if dataset.unit == "z-score" else "the places have no neighbours"
    if dataset.geometry == "points":
        measured.reasons.update({(service, key): reason for key in keys})
        return
    activity = dataset.activity[:, number].astype(np.float64)
    field = space.log_mean_map(activity, dataset.mask)
    measured.take(service, "log_std", lambda: space.map_std(field))
    measured.take(service, "log_skew", lambda: space.map_skew(field))
    measured.take(service, "neighbours", lambda: space.neighbour_correlation(activity, dataset.mask))
    for lag in SPATIAL_LAGS:
        measured.take(service, f"cells_{lag}", functools.partial(space.spatial_autocorrelation, field, lag))


def _measure_time(measured: Measurement, service: str, series: np.ndarray, days: Days, step_minutes: int) -> None:
    hours = len(series) * step_minutes / 60
    if step_minutes < 60:
        measured.take(service, "slot_1", lambda: _long(hours, 1, lambda: st.autocorrelation(series, 1)))
    else:
        measured.reasons[service, "slot_1"] = "the slots are whole hours"
    for lag in HOUR_LAGS:
        compute = functools.partial(st.autocorrelation, series, lag * 60 // step_minutes)
        measured.take(service, f"hours_{lag}", functools.partial(_long, hours, lag, compute))
    measured.take(service, "synchrony", lambda: _long(hours, 0, lambda: st.synchrony(series)))


def _long(hours: float, lag_hours: int, compute: Callable[[], float]) -> float:
    """Compute a statistic that needs a series one day longer than a lag."""
    if hours < lag_hours + 24:
        raise st.NotComputable(f"the file is shorter than {lag_hours + 24} h")
    return compute()


def _measure_levels(measured: Measurement, service: str, series: np.ndarray, days: Days) -> None:
    measured.take(service, "weekend", lambda: st.ratio_of_days(series, days.weekend, days.working))
    measured.take(service, "holiday", lambda: st.ratio_of_days(series, days.holiday, days.working))
    measured.take(service, "night", lambda: st.night_trough(series, days.hour))
    measured.take(service, "log_std_time", lambda: st.temporal_std(series))
    measured.take(service, "roughness", lambda: st.lag_roughness(series))
    measured.take(service, "upper_95", lambda: st.upper_ratio(series, 0.95))
    measured.take(service, "upper_99", lambda: st.upper_ratio(series, 0.99))
    measured.take(service, "largest", lambda: st.largest_ratio(series))
    for key in ("weekend_shift", "holiday_shift"):
        measured.reasons[service, key] = "the ratio of the levels already shows it"
    try:
        measured.days[service] = st.mean_day(series, days.hour)
    except st.NotComputable:
        return


def _measure_shifts(measured: Measurement, service: str, series: np.ndarray, days: Days) -> None:
    measured.take(service, "weekend_shift", lambda: st.shift_of_days(series, days.weekend, days.working))
    measured.take(service, "holiday_shift", lambda: st.shift_of_days(series, days.holiday, days.working))
    for key in ("weekend", "holiday", "night", "log_std_time", "roughness", "upper_95", "upper_99", "largest"):
        measured.reasons[service, key] = "z-scores have no level"


def _measure_pair(measured: Measurement, pair: str, first: np.ndarray, second: np.ndarray) -> None:
    keys = [f"correlation_{percent}" for percent in (5, 50, 95)]
    if len(first) < st.MIN_VALUES:
        measured.reasons.update({(pair, key): f"{len(first)} slots are too few" for key in keys})
        return
    values = st.cross_correlation(first, second)
    values = values[~np.isnan(values)]
    if len(values) == 0:
        measured.reasons.update({(pair, key): "a service does not change over time" for key in keys})
        return
    for key, value in zip(keys, np.quantile(values, (0.05, 0.5, 0.95)), strict=True):
        measured.values[pair, key] = float(value)
    if len(values) == 1:
        for key in (keys[0], keys[2]):
            del measured.values[pair, key]
            measured.reasons[pair, key] = "there is only one cell"


def subjects(services: tuple[str, ...]) -> Iterator[tuple[str, Statistic]]:
    """Iterate over the rows of a report: the statistics of each service, then of each pair of services."""
    statistics = catalogue()
    for service in services:
        for statistic in statistics:
            if not statistic.key.startswith("correlation_"):
                yield service, statistic
    for first, second in itertools.combinations(services, 2):
        for statistic in statistics:
            if statistic.key.startswith("correlation_"):
                yield f"{first}-{second}", statistic


def _days(which: str) -> tuple[str, str]:
    return f"the real {which} are busier than the simulated", f"the real {which} are quieter than the simulated"


def _tails(what: str) -> tuple[str, str]:
    return f"the real {what} stand out more than the simulated", f"the real {what} stand out less than the simulated"


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
