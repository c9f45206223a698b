"""The full description of one simulated city: every number the simulator uses, with its unit and its range."""

from __future__ import annotations

import dataclasses
import datetime
import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simmst.errors import ConfigError
from simmst.foundation.scalars import python_scalars
from simmst.foundation.suggestions import suggest
from simmst.simulation.faults import CounterFaults
from simmst.simulation.habits import Habits
from simmst.simulation.services import DEFAULT_SERVICES, ServiceConfig, check_range

RADIOS = ("statistical", "ray-traced")
OUTLINES = ("rectangle", "disc", "trento")
SCENARIOS = ("UMa", "UMi", "RMa")
STEP_MINUTES = (5, 10, 15, 30, 60, 1440)

# name -> (lowest, highest, unit) of every real-valued parameter; both ends are allowed.
PARAMETER_RANGES: dict[str, tuple[float, float, str]] = {
    "cell_m": (10.0, 10_000.0, "m"),
    # radio
    "carrier_ghz": (0.5, 100.0, "GHz"),
    "bandwidth_mhz": (1.0, 400.0, "MHz"),
    "inter_site_distance_m": (100.0, 20_000.0, "m"),
    "site_jitter": (0.0, 0.5, "fraction of the inter-site distance"),
    "antenna_height_m": (10.0, 150.0, "m"),
    "tilt_deg": (0.0, 20.0, "degrees below the horizon"),
    "transmit_power_dbm": (20.0, 60.0, "dBm"),
    "nlos_slope": (0.7, 1.3, "factor on the distance exponent"),
    "shadowing_db": (0.0, 15.0, "dB"),
    "shadowing_correlation_m": (1.0, 1_000.0, "m"),
    "handover_softness_db": (0.5, 20.0, "dB"),
    # traffic in space
    "users_per_cell": (0.01, 1e6, "users"),
    "density_log_std": (0.0, 4.0, "natural log"),
    "density_correlation_m": (50.0, 50_000.0, "m"),
    "density_fine_share": (0.0, 1.0, "fraction of the log variance"),
    "density_fine_correlation_m": (1.0, 5_000.0, "m"),
    "density_skew": (-0.8, 0.8, "strength of the saturation of dense places"),
    "centre_slope_per_km": (0.0, 2.0, "natural log per km"),
    "void_share": (0.0, 0.5, "fraction of the cells"),
    "land_use_contrast": (0.0, 5.0, "natural log"),
    "land_use_correlation_m": (50.0, 50_000.0, "m"),
    "service_log_std": (0.0, 2.0, "natural log"),
    # traffic in time
    "diurnal_amplitude": (0.0, 3.0, "exponent on the daily profiles of the services"),
    "presence_amplitude": (0.0, 3.0, "exponent on the daily presence of the land uses"),
    "phase_h": (-12.0, 12.0, "hours later"),
    "land_use_phase_std_h": (0.0, 3.0, "hours"),
    "profile_log_std": (0.0, 1.0, "natural log"),
    "land_use_profile_log_std": (0.0, 1.0, "natural log"),
    "weekend_factor": (0.05, 3.0, "Sunday presence over weekday presence"),
    "weekend_delay_h": (0.0, 3.0, "hours"),
    "holiday_rest": (0.0, 1.5, "fraction of a Sunday"),
    "season_rest": (0.0, 1.5, "fraction of a Saturday"),
    # noise, bursts, events
    "noise_log_std": (0.0, 2.0, "natural log"),
    "noise_correlation_h": (0.05, 500.0, "hours"),
    "noise_shared_share": (0.0, 1.0, "fraction of the log variance"),
    "noise_city_share": (0.0, 1.0, "fraction of the log variance"),
    "load_flicker_log_std": (0.0, 0.5, "natural log, of an hourly sum"),
    "flicker_log_std": (0.0, 0.5, "natural log, of an hourly sum"),
    "burst_rate_per_sector_hour": (0.0, 1.0, "bursts per sector and hour"),
    "burst_gain": (0.0, 20.0, "extra load over ordinary load"),
    "burst_pareto_alpha": (1.05, 10.0, "tail exponent"),
    "burst_duration_h": (0.1, 12.0, "hours"),
    "events_per_week": (0.0, 100.0, "events"),
    "event_gain": (0.0, 100.0, "extra users over the mean users of a cell"),
    # reporting
    "coverage_spread": (0.0, 1.0, "fraction of activity spread over coverage areas"),
    "reporting_scale": (1e-6, 1e6, "published units per unit of activity"),
    "missing_share": (0.0, 0.9, "fraction of the slots of a cell"),
    "missing_duration_h": (0.01, 100.0, "hours"),
}

NO_HABITS, NO_FAULTS = Habits(), CounterFaults()
PARTS: dict[str, type[Habits] | type[CounterFaults]] = {"habits": Habits, "faults": CounterFaults}

_INTEGERS = {
    "seed": (0, 2**63 - 1),
    "index": (0, 2**63 - 1),
    "height": (1, 1_000),
    "width": (1, 1_000),
    "days": (1, 3_660),
}


@dataclass(frozen=True)
class CityConfig:
    """One simulated city, complete: the same configuration gives the same city, bit for bit.

    Units are in the names (``_m`` metres, ``_h`` hours, ``_db`` decibels, ``_deg`` degrees); the allowed range of each
    number is in `PARAMETER_RANGES`. "Log" means the natural logarithm.

    Attributes:
        seed: seed of the family of cities this one belongs to.
        index: number of this city within its family.
        height: rows of the grid, south to north.
        width: columns of the grid, west to east.
        cell_m: side of a square cell.
        outline: shape of the city on the grid: "rectangle", "disc", or "trento" (the official raster); cells outside it
            are not published.
        days: length of the series in days of 24 h.
        step_minutes: length of a slot in minutes: 5, 10, 15, 30, 60 or 1440 (one day).
        start: local date (ISO); the series begins at its midnight.
        timezone: IANA name of the local time zone.
        country: ISO code of the country whose public holidays count much like Sundays; None for no holidays.
        services: names of default services (call, sms, internet) or `ServiceConfig` values, in the order of the data.
        radio: radio stage: "statistical", or "ray-traced" (needs the extra raytracing).
        scenario: path loss of 3GPP TR 38.901: "UMa", "UMi" or "RMa".
        carrier_ghz: carrier frequency.
        bandwidth_mhz: channel bandwidth, for the thermal noise.
        inter_site_distance_m: spacing of the hexagonal lattice of sites.
        site_jitter: standard deviation of a site's displacement, in inter-site distances.
        antenna_height_m: height of the base stations' antennas.
        tilt_deg: downward tilt of the antennas.
        transmit_power_dbm: power per sector.
        nlos_slope: factor on the distance exponent without line of sight; 1 is the standard's value.
        shadowing_db: standard deviation of log-normal shadowing.
        shadowing_correlation_m: distance at which the shadowing's correlation has fallen to 1/e.
        handover_softness_db: deficit in received power that halves a sector's share of a cell.
        users_per_cell: mean users of a cell.
        density_log_std: standard deviation of the log user density.
        density_correlation_m: correlation length of the city's districts.
        density_fine_share: share of the log variance that comes from differences between blocks.
        density_fine_correlation_m: correlation length of the blocks.
        density_skew: saturation of dense cells, which skews the log density to the left; 0 is log-normal, and
            negative values skew it to the right.
        centre_slope_per_km: decrease of the log density per km from the city's centre. The grid is part of a city at
            least 15 km wide, whose centre lies in the middle half of that city and may be outside the grid.
        void_share: fraction of the cells that are parks, water or fields.
        land_use_contrast: log contrast of the land-use mixture; 0 gives every cell the same mixture.
        land_use_correlation_m: correlation length of the land uses.
        service_log_std: log spread of each service's own popularity over the cells.
        diurnal_amplitude: exponent on the daily profiles of the services; 0 is flat.
        presence_amplitude: exponent on the daily presence of users by land use; 0 keeps users in place all day.
        phase_h: shift of the whole day; positive is later.
        land_use_phase_std_h: spread of the additional shift of each land use.
        profile_log_std: log spread of smooth random changes to each service's daily profile.
        land_use_profile_log_std: log spread of further such changes, drawn for each service in each land use.
        weekend_factor: Sunday presence relative to a weekday; Saturdays lie in between.
        weekend_delay_h: delay of the mornings on weekends and holidays.
        holiday_rest: degree to which a public holiday is like a Sunday, in presence and services; 1 is a Sunday.
        season_rest: degree to which the working days between Christmas and Epiphany are like a Saturday; 0 leaves
            them working days.
        free_days: additional dates (ISO) that count as public holidays, such as a patron saint's day.
        noise_log_std: standard deviation of the log noise of a sector's load.
        noise_correlation_h: correlation time of that noise, at any slot length.
        noise_shared_share: share of the noise's variance, apart from the city's share, that is common to all services.
        noise_city_share: share of the noise's variance that is common to the whole city.
        load_flicker_log_std: log standard deviation of the white noise in a sector's hourly load.
        flicker_log_std: log standard deviation of the white noise in a cell's hourly sum.
        burst_rate_per_sector_hour: bursts per sector and hour.
        burst_gain: scale of a burst's extra load, relative to ordinary load.
        burst_pareto_alpha: tail exponent of the extra load.
        burst_duration_h: mean duration of a burst.
        events_per_week: gatherings (matches, concerts) per week in the whole city.
        event_gain: users that an event adds at its centre, as a multiple of a cell's mean users.
        coverage_spread: share of the activity that is recorded by sector and spread over the sectors' coverage.
        reporting_scale: factor on the published numbers.
        missing_share: expected fraction of missing slots of a cell.
        missing_duration_h: mean duration of a gap.
        habits: habits that set the city's days and weeks apart, a `Habits` or a mapping of its fields.
        faults: faults of the operator's counters, a `CounterFaults` or a mapping of its fields.

    Raises:
        ConfigError: a value is out of range; the message names the field, the value and the range.

    Example:
        >>> CityConfig(seed=1, index=0, days=2).num_steps
        48
    """

    seed: int = 0
    index: int = 0
    height: int = 20
    width: int = 20
    cell_m: float = 235.0
    outline: str = "rectangle"
    days: int = 7
    step_minutes: int = 60
    start: str = "2013-11-04"
    timezone: str = "Europe/Rome"
    country: str | None = "IT"
    services: tuple[ServiceConfig, ...] = tuple(DEFAULT_SERVICES.values())
    radio: str = "statistical"
    scenario: str = "UMa"
    carrier_ghz: float = 1.8
    bandwidth_mhz: float = 20.0
    inter_site_distance_m: float = 600.0
    site_jitter: float = 0.2
    antenna_height_m: float = 25.0
    tilt_deg: float = 6.0
    transmit_power_dbm: float = 43.0
    nlos_slope: float = 1.0
    shadowing_db: float = 6.0
    shadowing_correlation_m: float = 50.0
    handover_softness_db: float = 4.0
    users_per_cell: float = 100.0
    density_log_std: float = 1.6
    density_correlation_m: float = 2_500.0
    density_fine_share: float = 0.2
    density_fine_correlation_m: float = 200.0
    density_skew: float = 0.2
    centre_slope_per_km: float = 0.1
    void_share: float = 0.05
    land_use_contrast: float = 1.2
    land_use_correlation_m: float = 800.0
    service_log_std: float = 0.3
    diurnal_amplitude: float = 1.0
    presence_amplitude: float = 0.8
    phase_h: float = 0.0
    land_use_phase_std_h: float = 0.7
    profile_log_std: float = 0.1
    land_use_profile_log_std: float = 0.15
    weekend_factor: float = 0.9
    weekend_delay_h: float = 1.5
    holiday_rest: float = 1.0
    season_rest: float = 0.5
    free_days: tuple[str, ...] = ()
    noise_log_std: float = 0.2
    noise_correlation_h: float = 7.0
    noise_shared_share: float = 0.5
    noise_city_share: float = 0.05
    load_flicker_log_std: float = 0.03
    flicker_log_std: float = 0.015
    burst_rate_per_sector_hour: float = 0.007
    burst_gain: float = 0.8
    burst_pareto_alpha: float = 1.8
    burst_duration_h: float = 0.4
    events_per_week: float = 2.0
    event_gain: float = 4.0
    coverage_spread: float = 0.9
    reporting_scale: float = 1.0
    missing_share: float = 0.002
    missing_duration_h: float = 1.5
    habits: Habits = NO_HABITS
    faults: CounterFaults = NO_FAULTS

    def __post_init__(self) -> None:
        """Check every field and turn service names into `ServiceConfig` values."""
        python_scalars(self)
        for name, (low, high) in _INTEGERS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ConfigError(f"CityConfig.{name} is {value!r}; it must be a whole number from {low} to {high}")
        for name, (low_, high_, unit) in PARAMETER_RANGES.items():
            check_range(f"CityConfig.{name}", getattr(self, name), low_, high_, unit)
        if self.step_minutes not in STEP_MINUTES:
            raise ConfigError(
                f"CityConfig.step_minutes is {self.step_minutes!r}; choose one of {', '.join(map(str, STEP_MINUTES))}"
            )
        for name, choices in (("scenario", SCENARIOS), ("radio", RADIOS), ("outline", OUTLINES)):
            if getattr(self, name) not in choices:
                raise ConfigError(f"CityConfig.{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        check_date("CityConfig.start", self.start)
        try:
            zoneinfo.ZoneInfo(self.timezone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, TypeError, OSError) as error:
            raise ConfigError(
                f"CityConfig.timezone is {self.timezone!r}, which this machine does not know; "
                "use an IANA name such as 'Europe/Rome' (the package tzdata has them all)"
            ) from error
        for name, part in PARTS.items():
            value = getattr(self, name)
            if not isinstance(value, part):
                if not isinstance(value, Mapping):
                    raise ConfigError(f"CityConfig.{name} is {value!r}; give a {part.__name__} or its fields")
                object.__setattr__(self, name, part.from_dict(value))
        object.__setattr__(self, "services", resolve_services(self.services))
        if isinstance(self.free_days, str) or not isinstance(self.free_days, (tuple, list)):
            raise ConfigError(
                f"CityConfig.free_days is {self.free_days!r}; give a list of dates, such as ['2013-12-07']"
            )
        for day in self.free_days:
            check_date("CityConfig.free_days", day)
        object.__setattr__(self, "free_days", tuple(self.free_days))

    @property
    def steps_per_day(self) -> int:
        """Slots in 24 hours."""
        return 24 * 60 // self.step_minutes

    @property
    def num_steps(self) -> int:
        """Slots in the whole series."""
        return self.days * self.steps_per_day

    @property
    def step_h(self) -> float:
        """Length of a slot in hours."""
        return self.step_minutes / 60

    @property
    def city_name(self) -> str:
        """Name of the city that this configuration describes."""
        return f"simulated-{self.seed}-{self.index}"

    @property
    def num_cells(self) -> int:
        """Cells of the grid."""
        return self.height * self.width

    @property
    def service_names(self) -> tuple[str, ...]:
        """Names of the services, in the order of the data."""
        return tuple(service.name for service in self.services)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain, JSON-able values.

        Example:
            >>> CityConfig(seed=3).to_dict()["seed"]
            3
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["services"] = [service.to_dict() for service in self.services]
        values["free_days"] = list(self.free_days)
        values |= {name: getattr(self, name).to_dict() for name in PARTS}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CityConfig:
        """Rebuild a configuration from `to_dict`; fields left out take their defaults.

        Raises:
            ConfigError: a key is unknown or a value is out of range.

        Example:
            >>> CityConfig.from_dict({"seed": 3, "services": ["sms"]}).service_names
            ('sms',)
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise ConfigError(f"CityConfig has no field {name!r}; {suggest(name, known)}")
        return cls(**values)


def step_for(step_minutes: int) -> int | None:
    """Return the slot length, in minutes, to simulate in before slots are summed; None where none divides the target.

    Example:
        >>> step_for(30), step_for(45), step_for(12)
        (10, 15, None)
    """
    return next((step for step in (60, 10, 15, 5) if step_minutes % step == 0), None)


def resolve_services(services: object) -> tuple[ServiceConfig, ...]:
    """Turn names, dictionaries and `ServiceConfig` values into services.

    Args:
        services: names, dictionaries or `ServiceConfig` values, at least one, with distinct names.

    Raises:
        ConfigError: a name is not a default service or appears twice, or the sequence is empty.

    Example:
        >>> [service.name for service in resolve_services(["internet", "call"])]
        ['internet', 'call']
    """
    if isinstance(services, str) or not isinstance(services, (tuple, list)) or not services:
        raise ConfigError(f"CityConfig.services is {services!r}; give a list of at least one service, such as ['call']")
    resolved = []
    for service in services:
        if isinstance(service, ServiceConfig):
            resolved.append(service)
        elif isinstance(service, Mapping):
            resolved.append(ServiceConfig.from_dict(service))
        elif service in DEFAULT_SERVICES:
            resolved.append(DEFAULT_SERVICES[service])
        else:
            raise ConfigError(
                f"CityConfig.services names {service!r}, which is not a default service "
                f"({', '.join(DEFAULT_SERVICES)}); describe it with a ServiceConfig"
            )
    names = [service.name for service in resolved]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"CityConfig.services names {twice[0]!r} more than once; give each service its own name")
    return tuple(resolved)


def check_date(label: str, value: object) -> datetime.date:
    """Return an ISO date, or raise a ConfigError that names it.

    Example:
        >>> check_date("start", "2013-11-04").weekday()
        0
    """
    try:
        return datetime.date.fromisoformat(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{label} is {value!r}; it must be a date written as text, such as '2013-11-04'") from error
