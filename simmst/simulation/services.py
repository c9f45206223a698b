"""Services of a simulated city: how often and when users ask for each, and in which units it is published."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from simmst.errors import ConfigError

KINDS = ("count", "volume")

# name -> (lowest, highest, unit); both ends are allowed.
SERVICE_RANGES: dict[str, tuple[float, float, str]] = {
    "rate_per_user_hour": (0.0, 1e4, "events per user and hour"),
    "units_per_event": (1e-9, 1e9, "published units per event"),
    "weekend_factor": (0.01, 10.0, "Sunday level over weekday level"),
    "hour_peak": (0.0, 2.0, "natural log"),
    "hour_step": (0.0, 1.0, "fraction of the change between hours"),
    "dispersion": (0.0, 100.0, "squared coefficient of variation of one event's volume"),
}


@dataclass(frozen=True)
class ServiceConfig:
    """One service offered to the users of a simulated city.

    Attributes:
        name: label in the data set, such as ``"call"``.
        kind: ``"count"`` (Poisson number of events) or ``"volume"`` (compound Poisson: each event carries a random
            volume of mean one, larger where the radio link is good).
        rate_per_user_hour: mean events per present user and hour on a weekday.
        profile: 24 relative levels, local hours 0 to 23 of a weekday; only their ratios matter.
        units_per_event: published (CDR-like) units per event, or per unit of volume.
        weekend_factor: Sunday level of the service relative to a weekday, on top of the city's own weekend factor.
        dispersion: squared coefficient of variation of the volume of one event; ignored for counts.
        hour_peak: log excess of the first ten minutes of each clock hour, when appointments begin and machines send.
        hour_step: share of the profile's change from hour to hour that is a step at the full hour, as when shops open
            or machines start; the rest is gradual.

    Raises:
        ConfigError: a value is out of range.

    Example:
        >>> video = ServiceConfig("video", "volume", rate_per_user_hour=0.5, profile=(1.0,) * 24)
        >>> video.kind
        'volume'
    """

    name: str
    kind: str
    rate_per_user_hour: float
    profile: tuple[float, ...]
    units_per_event: float = 1.0
    weekend_factor: float = 1.0
    dispersion: float = 2.0
    hour_peak: float = 0.0
    hour_step: float = 0.0

    def __post_init__(self) -> None:
        """Check every value and freeze the profile."""
        if not isinstance(self.name, str) or not self.name:
            raise ConfigError(f"ServiceConfig.name is {self.name!r}; give the service a name, such as 'call'")
        if self.kind not in KINDS:
            raise ConfigError(f"service {self.name!r}: kind is {self.kind!r}; choose one of {', '.join(KINDS)}")
        for field, (low, high, unit) in SERVICE_RANGES.items():
            check_range(f"service {self.name!r}: {field}", getattr(self, field), low, high, unit)
        profile = tuple(float(level) for level in self.profile)
        if len(profile) != 24:
            raise ConfigError(f"service {self.name!r}: profile has {len(profile)} values; give 24, one per local hour")
        if not all(math.isfinite(level) and level > 0 for level in profile):
            raise ConfigError(
                f"service {self.name!r}: profile holds {min(profile)!r}; all 24 levels must be above zero"
            )
        object.__setattr__(self, "profile", profile)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain, JSON-able values.

        Example:
            >>> DEFAULT_SERVICES["sms"].to_dict()["kind"]
            'count'
        """
        return {**asdict(self), "profile": list(self.profile)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ServiceConfig:
        """Rebuild a service from `to_dict`.

        Raises:
            ConfigError: a key is unknown or missing, or a value is out of range.

        Example:
            >>> ServiceConfig.from_dict(DEFAULT_SERVICES["call"].to_dict()) == DEFAULT_SERVICES["call"]
            True
        """
        values = check_fields(cls, values)
        missing = [name for name in ("name", "kind", "rate_per_user_hour", "profile") if name not in values]
        if missing:
            raise ConfigError(f"ServiceConfig needs the field {missing[0]!r}, which is not given; add it")
        return cls(**values)


def check_range(label: str, value: object, low: float, high: float, unit: str) -> None:
    """Raise a ConfigError unless ``low <= value <= high``.

    Args:
        label: name of the value, for the message.
        value: the value to check; must be a finite number.
        low: lowest allowed value.
        high: highest allowed value.
        unit: unit of all three, for the message.

    Raises:
        ConfigError: the value is not a finite number or is out of range.

    Example:
        >>> check_range("carrier_ghz", 2.1, 0.5, 100.0, "GHz")
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high:  # type: ignore[operator]
        raise ConfigError(f"{label} is {value!r}; it must lie between {low:g} and {high:g} ({unit})")


def check_fields(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a dataclass's fields, or raise a ConfigError that names the first unknown key.

    Example:
        >>> check_fields(ServiceConfig, {"name": "sms"})
        {'name': 'sms'}
    """
    known = [field.name for field in fields(cls)]
    for name in values:
        if name not in known:
            raise ConfigError(f"{cls.__name__} has no field {name!r}; its fields are {', '.join(known)}")
    return dict(values)


# Weekday profiles: calls almost cease at night and peak before noon and at the end of the working day; text messages
# continue later into the evening; data traffic continues all night.
_CALL = (0.10, 0.05, 0.028, 0.02, 0.022, 0.04, 0.12, 0.47, 1.25, 1.90, 2.15, 2.20,
         2.10, 1.85, 1.95, 2.05, 2.20, 2.35, 2.20, 1.75, 1.20, 0.75, 0.42, 0.24)  # fmt: skip
_SMS = (0.32, 0.16, 0.10, 0.08, 0.08, 0.10, 0.21, 0.65, 1.50, 1.75, 1.83, 1.85,
        1.90, 1.80, 1.80, 1.78, 1.80, 1.80, 1.60, 1.53, 1.30, 1.15, 0.92, 0.62)  # fmt: skip
_INTERNET = (0.82, 0.71, 0.62, 0.57, 0.55, 0.55, 0.62, 0.83, 1.09, 1.18, 1.22, 1.24,
             1.26, 1.31, 1.29, 1.27, 1.27, 1.28, 1.27, 1.19, 1.12, 1.09, 1.04, 0.96)  # fmt: skip

DEFAULT_SERVICES: dict[str, ServiceConfig] = {
    "call": ServiceConfig("call", "count", 0.8, _CALL, units_per_event=1.0, weekend_factor=0.6, hour_peak=0.03),
    "sms": ServiceConfig(
        "sms", "count", 0.8, _SMS, units_per_event=1.0, weekend_factor=0.75, hour_peak=0.07, hour_step=0.3
    ),
    "internet": ServiceConfig("internet", "volume", 12.0, _INTERNET, units_per_event=1.0, weekend_factor=0.95),
}
