"""Habits that set one city's days and weeks apart from another's: the shape of the day, the week, holidays, growth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from simmst.errors import ConfigError
from simmst.simulation.services import check_fields, check_range

# Bumps added to a day's log profile on the 24-hour circle: (amplitude at strength 1, local hour, width in hours).
DAY_SHAPES: dict[str, tuple[tuple[float, float, float], ...]] = {
    "usual": (),
    "flat": (),
    "random": (),
    "late-evening": ((0.7, 21.8, 2.2), (-0.3, 8.0, 2.0), (0.2, 0.5, 1.5)),
    "business": ((0.8, 10.5, 1.8), (0.8, 15.0, 1.8), (-0.6, 20.5, 3.0), (-0.4, 2.0, 2.5)),
    "two-peaked": ((0.8, 8.3, 1.2), (0.9, 18.0, 1.4), (-0.4, 13.0, 2.0)),
    "school": ((0.6, 7.5, 0.7), (0.7, 11.8, 0.7), (0.7, 17.0, 0.8), (0.7, 21.8, 1.2), (-0.4, 14.5, 1.5)),
    "early": ((0.7, 6.5, 1.8), (-0.6, 21.0, 2.5)),
    "siesta": ((-0.7, 15.0, 1.3), (0.4, 12.0, 1.5), (0.4, 19.5, 1.8)),
    "nightlife": ((1.6, 0.5, 2.8), (0.7, 21.0, 2.0), (-0.5, 10.0, 3.0)),
}

# name -> (lowest, highest, unit) of every real-valued field; both ends are allowed.
HABIT_RANGES: dict[str, tuple[float, float, str]] = {
    "day_shape_strength": (0.0, 3.0, "factor on the shape's log levels"),
    "noon_log_peak": (-1.0, 2.0, "natural log"),
    "night_log_depth": (-3.0, 5.0, "natural log"),
    "unrest": (0.0, 10.0, "factor"),
    "clock_error_h": (-12.0, 12.0, "hours late"),
    "weekday_log_std": (0.0, 2.0, "natural log"),
    "free_day_share": (0.0, 1.0, "fraction of the days"),
    "trend_per_week": (-2.0, 2.0, "natural log per week"),
    "drift_log_std": (0.0, 2.0, "natural log"),
    "level_changes_per_week": (0.0, 20.0, "changes per sector and week"),
    "level_change_log_std": (0.0, 4.0, "natural log"),
}


@dataclass(frozen=True)
class Habits:
    """Differences between the days, weeks and months of a city and those of Milan; the defaults make none.

    Attributes:
        day_shape: shape that is added to the daily profiles, a key of `DAY_SHAPES`. "flat" levels the profiles
            instead, and "random" adds one to five cycles a day of random amplitude.
        day_shape_strength: factor on that shape.
        noon_log_peak: log excess of the hour around noon.
        night_log_depth: log depth of an additional trough in the small hours; negative values fill the night.
        unrest: factor on all noise of the traffic and on the rate of bursts; low where a cell holds many people.
        clock_error_h: hours by which the city lives behind the clock of the published data, as when a file gives the
            wrong time zone.
        weekend_start: day of the week that counts as Saturday, 0 (Monday) to 6; the next day counts as Sunday.
        weekday_log_std: log spread of the levels of the seven days of the week.
        free_day_share: share of the days that count as public holidays although no calendar lists them.
        trend_per_week: growth of the log level per week, the same in the whole city.
        drift_log_std: log spread of a slow drift of the sectors' levels, with a correlation time of ten days.
        level_changes_per_week: sudden lasting changes of the level per sector and week, as when an antenna is added or
            removed.
        level_change_log_std: log spread of these changes.

    Raises:
        ConfigError: a value is out of range.

    Example:
        >>> Habits(day_shape="nightlife", weekend_start=4).clock_error_h
        0.0
    """

    day_shape: str = "usual"
    day_shape_strength: float = 1.0
    noon_log_peak: float = 0.0
    night_log_depth: float = 0.0
    unrest: float = 1.0
    clock_error_h: float = 0.0
    weekend_start: int = 5
    weekday_log_std: float = 0.0
    free_day_share: float = 0.0
    trend_per_week: float = 0.0
    drift_log_std: float = 0.0
    level_changes_per_week: float = 0.0
    level_change_log_std: float = 0.5

    def __post_init__(self) -> None:
        """Check every value."""
        for name, (low, high, unit) in HABIT_RANGES.items():
            check_range(f"Habits.{name}", getattr(self, name), low, high, unit)
        if self.day_shape not in DAY_SHAPES:
            raise ConfigError(f"Habits.day_shape is {self.day_shape!r}; choose one of {', '.join(DAY_SHAPES)}")
        if self.weekend_start not in range(7):
            raise ConfigError(f"Habits.weekend_start is {self.weekend_start!r}; give a day from 0 (Monday) to 6")

    @property
    def evenness(self) -> float:
        """Factor on the log profiles of the day, below one where the shape is "flat"."""
        return 1.0 - min(self.day_shape_strength, 1.0) if self.day_shape == "flat" else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain, JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Habits:
        """Rebuild from `to_dict`; fields left out take their defaults.

        Raises:
            ConfigError: a key is unknown or a value is out of range.
        """
        return cls(**check_fields(cls, values))
