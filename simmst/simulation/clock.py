"""Local time of a simulated city: slot starts, hours of the day, and which days count as Saturdays and Sundays."""

from __future__ import annotations

import datetime
import zoneinfo
from dataclasses import dataclass

import numpy as np

from simmst.data.calendar import local_seconds
from simmst.errors import ConfigError
from simmst.foundation.extras import import_extra
from simmst.simulation.config import CityConfig
from simmst.simulation.streams import stream

WEEKDAY, SATURDAY, SUNDAY = 0, 1, 2
PART_S = 600
NIGHT_ENDS_H = 4  # the small hours belong to the day before
SATURDAY_REST = 0.55  # degree to which a Saturday is like a Sunday
SEASON = ((12, 24), (1, 5))  # first and last day of the weeks between Christmas and Epiphany

_ITALY_FIXED = ((1, 1), (1, 6), (4, 25), (5, 1), (6, 2), (8, 15), (11, 1), (12, 8), (12, 25), (12, 26))
_SAINT_FRANCIS_SINCE = 2026  # 4 October became a holiday again


@dataclass(frozen=True, eq=False)
class Clock:
    """The time axis of a city.

    Attributes:
        start_utc: datetime64[s] ``(T,)``, starts of the slots.
        hour: float64 ``(T * parts,)``, local hour of the day (0 to 24) in the middle of each part of each slot, by the
            clock that the city lives by.
        day_type: int64 ``(T * parts,)``, 0 on weekdays, 1 on Saturdays, 2 on Sundays and public holidays. Days
            change at four in the morning, so Friday night is not yet Saturday.
        rest: float64 ``(T * parts,)``, degree to which each part is like a Sunday: 0 on weekdays, 1 on Sundays.
        weekday: int64 ``(T * parts,)``, day of the week, 0 (Monday) to 6.
        parts: number of parts in a slot. A part lasts ten minutes, or five where ten do not divide the slot. Values
            that are computed on parts and averaged by `slot_mean` do not depend on the slot length.
    """

    start_utc: np.ndarray
    hour: np.ndarray
    day_type: np.ndarray
    rest: np.ndarray
    weekday: np.ndarray
    parts: int

    @classmethod
    def of(cls, config: CityConfig) -> Clock:
        """Lay out the time axis: from local midnight of the start date, evenly spaced in UTC.

        Example:
            >>> clock = Clock.of(CityConfig(start="2013-11-04", days=1))
            >>> str(clock.start_utc[0]), int(clock.day_type[0])
            ('2013-11-03T23:00:00', 2)
        """
        zone = zoneinfo.ZoneInfo(config.timezone)
        first_day = datetime.date.fromisoformat(config.start)
        midnight = datetime.datetime.combine(first_day, datetime.time(), tzinfo=zone)
        first = int(midnight.timestamp())
        starts = first + np.arange(config.num_steps, dtype=np.int64) * (config.step_minutes * 60)
        part_s = PART_S if config.step_minutes * 60 % PART_S == 0 else PART_S // 2
        parts = config.step_minutes * 60 // part_s
        middles = first + part_s // 2 + np.arange(config.num_steps * parts, dtype=np.int64) * part_s
        local = local_seconds(middles.astype("datetime64[s]"), config.timezone)
        local = local - round(3600 * config.habits.clock_error_h)
        days = (local - 3600 * NIGHT_ENDS_H) // 86_400
        weekday = (days + 3) % 7  # 1970-01-01 was a Thursday
        resting = public_holidays(first_day - datetime.timedelta(days=1), config.days + 2, config.country)
        resting += [datetime.date.fromisoformat(day) for day in config.free_days]
        resting += _uncalendared(config, first_day)
        epoch = datetime.date(1970, 1, 1)
        holiday = np.isin(days, [(day - epoch).days for day in resting])
        saturday = config.habits.weekend_start
        sunday = (saturday + 1) % 7
        day_type = np.where((weekday == sunday) | holiday, SUNDAY, np.where(weekday == saturday, SATURDAY, WEEKDAY))
        rest = np.array([0.0, SATURDAY_REST, 1.0])[day_type]
        rest[holiday & (weekday != sunday)] = config.holiday_rest
        rest[_in_season(days) & (day_type == WEEKDAY)] = config.season_rest * SATURDAY_REST
        return cls(starts.astype("datetime64[s]"), (local % 86_400) / 3600, day_type, rest, weekday, parts)

    def slot_mean(self, values: np.ndarray) -> np.ndarray:
        """Average ``(..., T * parts)`` over the parts of each slot, giving ``(..., T)``."""
        if self.parts == 1:
            return values
        mean: np.ndarray = values.reshape(*values.shape[:-1], -1, self.parts).mean(axis=-1)
        return mean


def _uncalendared(config: CityConfig, first_day: datetime.date) -> list[datetime.date]:
    """Draw the days that count as holidays although no calendar lists them."""
    if config.habits.free_day_share == 0:
        return []
    free = stream(config.seed, config.index, "free days").random(config.days + 2) < config.habits.free_day_share
    return [first_day + datetime.timedelta(days=int(day) - 1) for day in np.flatnonzero(free)]


def _in_season(days: np.ndarray) -> np.ndarray:
    """Return which days (numbers since 1970-01-01) lie between Christmas and Epiphany."""
    date = days.astype("datetime64[D]")
    month = date.astype("datetime64[M]")
    number = 100 * (month.astype(np.int64) % 12 + 1) + (date - month).astype(np.int64) + 1
    (first_month, first_day), (last_month, last_day) = SEASON
    within: np.ndarray = (number >= 100 * first_month + first_day) | (number <= 100 * last_month + last_day)
    return within


def public_holidays(start: datetime.date, days: int, country: str | None) -> list[datetime.date]:
    """Return the public holidays among the ``days`` days from ``start`` on.

    Italy's national holidays are computed here; those of other countries come from the package ``holidays``.

    Raises:
        ConfigError: the country is unknown.
        MissingExtraError: the country is not Italy and ``holidays`` is not installed.

    Example:
        >>> public_holidays(datetime.date(2013, 10, 28), 7, "IT")
        [datetime.date(2013, 11, 1)]
        >>> public_holidays(datetime.date(2014, 4, 14), 14, "IT")
        [datetime.date(2014, 4, 20), datetime.date(2014, 4, 21), datetime.date(2014, 4, 25)]
    """
    if country is None:
        return []
    dates = [start + datetime.timedelta(days=day) for day in range(days)]
    if country != "IT":
        try:
            known = import_extra("holidays", extra="forecast").country_holidays(
                country, years={day.year for day in dates}
            )
        except NotImplementedError as error:
            raise ConfigError(
                f"country is {country!r}, whose holidays are not known; use an ISO code such as 'IT', or None for none"
            ) from error
        return [day for day in dates if day in known]
    resting = {datetime.date(day.year, *fixed) for day in dates for fixed in _ITALY_FIXED}
    for year in {day.year for day in dates}:
        if year >= _SAINT_FRANCIS_SINCE:
            resting.add(datetime.date(year, 10, 4))
        easter = easter_sunday(year)
        resting |= {easter, easter + datetime.timedelta(days=1)}
    return [day for day in dates if day in resting]


def easter_sunday(year: int) -> datetime.date:
    """Return the date of Easter in the Gregorian calendar, by Gauss's rule in Butcher's form.

    Example:
        >>> easter_sunday(2014)
        datetime.date(2014, 4, 20)
    """
    golden, century, rest = year % 19, year // 100, year % 100
    epact = (19 * golden + century - century // 4 - (century - (century + 8) // 25 + 1) // 3 + 15) % 30
    weekday = (32 + 2 * (century % 4) + 2 * (rest // 4) - epact - rest % 4) % 7
    late = (golden + 11 * epact + 22 * weekday) // 451
    month, day = divmod(epact + weekday - 7 * late + 114, 31)
    return datetime.date(year, month, day + 1)
