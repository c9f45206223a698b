"""Even time axes, and calendar features in local time: daily and weekly cycles, weekends, public holidays."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import date, datetime, timedelta, timezone
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np

from simmst.errors import DataError
from simmst.foundation.extras import import_extra

CALENDAR_FEATURES: tuple[str, ...] = (
    "day_sin",
    "day_cos",
    "half_day_sin",
    "half_day_cos",
    "week_sin",
    "week_cos",
    "weekend",
    "holiday",
)

DAY_MINUTES = 24 * 60
_DAY = DAY_MINUTES * 60
_EPOCH_DATE = date(1970, 1, 1)
_FIRST, _LAST = -62_135_510_400, 253_370_764_800  # seconds: 2 January of the year 1, 1 January 9999
_DAY_TEXT = re.compile(r"\d{4}-\d{2}-\d{2}")
_EPOCH_WEEKDAY = 3  # 1 January 1970 was a Thursday


@lru_cache(maxsize=64)
def zone(name: str) -> ZoneInfo:
    """Return the time zone of an IANA name; raise DataError if there is none."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise DataError(
            f"unknown time zone {name!r}; give an IANA name such as 'Europe/Rome' "
            "(if the name is right, this machine lacks the zone tables: pip install tzdata)"
        ) from error


def _offset_at(seconds: int, local: ZoneInfo) -> int:
    moment = datetime.fromtimestamp(seconds, tz=timezone.utc).astimezone(local)
    offset = moment.utcoffset()
    return int(offset.total_seconds()) if offset is not None else 0


def utc_offset_seconds(time_utc: np.ndarray, timezone: str) -> np.ndarray:
    """Return the seconds to add to UTC to get local time, daylight saving included.

    Args:
        time_utc: datetime64 (T,), UTC.
        timezone: IANA name.

    Returns:
        int64 (T,).

    Raises:
        DataError: a time lies outside the years 1 to 9998.

    Example:
        >>> import numpy as np
        >>> days = np.array(["2013-10-26T12:00", "2013-10-27T12:00"], dtype="datetime64[s]")
        >>> utc_offset_seconds(days, "Europe/Rome").tolist()
        [7200, 3600]
    """
    local = zone(timezone)
    seconds = np.asarray(time_utc).astype("datetime64[s]").astype(np.int64)
    beyond = np.flatnonzero((seconds < _FIRST) | (seconds >= _LAST))
    if len(beyond):
        moment = np.datetime64(int(seconds[beyond[0]]), "s")
        raise DataError(f"time {beyond[0]} is {moment}, outside the years 1 to 9998; check the unit of the times")
    days, place = np.unique(seconds // _DAY, return_inverse=True)
    edges = {int(day): _offset_at(int(day) * _DAY, local) for day in np.union1d(days, days + 1)}
    offsets = np.array([edges[int(day)] for day in days], dtype=np.int64)[place]
    changes = np.array([edges[int(day)] != edges[int(day) + 1] for day in days], dtype=bool)[place]
    # The offset depends on the moment only on the days when the clocks change.
    for i in np.flatnonzero(changes):
        offsets[i] = _offset_at(int(seconds[i]), local)
    return offsets


def local_seconds(time_utc: np.ndarray, timezone: str) -> np.ndarray:
    """Return local wall-clock time as seconds since 1970-01-01 00:00 local, int64 (T,)."""
    seconds: np.ndarray = np.asarray(time_utc).astype("datetime64[s]").astype(np.int64)  # a copy
    seconds += utc_offset_seconds(time_utc, timezone)
    return seconds


def moments_of_wall_clock(local: np.ndarray, timezone: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the last moment at which a wall clock showed each time; they differ where it is put back.

    Args:
        local: wall-clock time as seconds since 1970-01-01 00:00 local, (T,).
        timezone: IANA name.

    Returns:
        datetime64[s] (T,) each, UTC; NaT for times that no clock showed, where clocks are put forward.

    Example:
        >>> import numpy as np
        >>> shown = np.array(["2020-10-25T02:00", "2020-03-29T02:30"], dtype="datetime64[s]").astype(int)
        >>> [moments.astype(str).tolist() for moments in moments_of_wall_clock(shown, "Europe/Paris")]
        [['2020-10-25T00:00:00', 'NaT'], ['2020-10-25T01:00:00', 'NaT']]
    """
    every = np.asarray(local).astype(np.int64)
    # The offset is the one a day and a half before or after, because no place changes its clocks twice in three days.
    around = every + np.array([[-_DAY * 3 // 2], [_DAY * 3 // 2]])
    both = every - np.stack([utc_offset_seconds(probe.astype("datetime64[s]"), timezone) for probe in around])
    right = np.stack([local_seconds(one.astype("datetime64[s]"), timezone) for one in both]) == every
    shown = right.any(axis=0)
    early = np.where(right, both, np.iinfo(np.int64).max).min(axis=0)
    late = np.where(right, both, np.iinfo(np.int64).min).max(axis=0)
    nat = np.iinfo(np.int64).min  # NaT as a number
    return np.where(shown, early, nat).astype("datetime64[s]"), np.where(shown, late, nat).astype("datetime64[s]")


def utc_of_wall_clock(local: np.ndarray, timezone: str) -> np.ndarray:
    """Return the moments at which a wall clock showed the given times, which are in chronological order.

    Where clocks are put back, one hour is shown twice. A time in that hour means the first of its two moments that
    comes after the preceding time.

    Args:
        local: wall-clock time as seconds since 1970-01-01 00:00 local, (T,).
        timezone: IANA name.

    Returns:
        datetime64[s] (T,), UTC; NaT for times that no clock showed, where clocks are put forward.

    Raises:
        DataError: a time does not come after the one before it.

    Example:
        >>> import numpy as np
        >>> shown = np.array(["2020-10-25T02:00", "2020-10-25T02:30", "2020-10-25T02:00"], dtype="datetime64[s]")
        >>> [str(moment)[11:16] for moment in utc_of_wall_clock(shown.astype(int), "Europe/Paris")]
        ['00:00', '00:30', '01:00']
    """
    every = np.asarray(local).astype(np.int64)
    moments = np.full(every.shape, "NaT", dtype="datetime64[s]")
    first, last = moments_of_wall_clock(every, timezone)
    rows = np.flatnonzero(~np.isnat(first))
    early, late = first[rows].astype(np.int64), last[rows].astype(np.int64)
    for i in np.flatnonzero(early != late):
        if i and early[i] <= early[i - 1]:
            early[i] = late[i]
    back = np.diff(early) <= 0
    if back.any():
        before, after = rows[back.argmax()], rows[back.argmax() + 1]
        was, now = every[[before, after]].astype("datetime64[s]")
        raise DataError(f"time[{after}] = {now} comes after {was}, out of order; keep each slot once")
    moments[rows] = early.astype("datetime64[s]")
    return moments


def slot_of_day(time_utc: np.ndarray, timezone: str, step_minutes: int) -> np.ndarray:
    """Return the index of each slot within its local day, int64 (T,), 0 at local midnight."""
    slot: np.ndarray = (local_seconds(time_utc, timezone) % _DAY) // (step_minutes * 60)
    return slot


def weekday(time_utc: np.ndarray, timezone: str) -> np.ndarray:
    """Return the local day of the week, int64 (T,), 0 = Monday."""
    day: np.ndarray = (local_seconds(time_utc, timezone) // _DAY + _EPOCH_WEEKDAY) % 7
    return day


@lru_cache(maxsize=256)
def _holidays(country: str, year: int) -> frozenset[int]:
    """Return the public holidays of a year as day numbers since 1970-01-01."""
    holidays = import_extra("holidays", extra="forecast")
    code, _, part = country.partition("-")
    try:
        dates = holidays.country_holidays(code, subdiv=part or None, years=year)
    except NotImplementedError as error:
        raise DataError(
            f"no public holidays are known for country {country!r}; give an ISO code such as 'IT', with a part of the "
            "country such as 'DE-BY', or None for none"
        ) from error
    return frozenset((day - _EPOCH_DATE).days for day in dates)


def is_holiday(time_utc: np.ndarray, timezone: str, country: str | None, events: Sequence[str] = ()) -> np.ndarray:
    """Return whether each slot lies on a public holiday or an event's day in local time, bool (T,).

    Args:
        time_utc: datetime64 (T,), UTC.
        timezone: IANA name.
        country: ISO code, with or without a part of the country after a hyphen; None for no public holidays.
        events: further days, such as ``"2013-12-07"``.
    """
    day_numbers = local_seconds(time_utc, timezone) // _DAY
    special: np.ndarray = np.isin(day_numbers, np.array(events, dtype="datetime64[D]").astype(np.int64))
    if country is None:
        return special
    days, place = np.unique(day_numbers, return_inverse=True)
    years = [(_EPOCH_DATE + timedelta(days=int(day))).year for day in days]
    flags = [int(day) in _holidays(country, year) for day, year in zip(days, years, strict=True)]
    special |= np.array(flags, dtype=bool)[place]
    return special


def _as_day(text: str) -> np.datetime64:
    try:
        return np.datetime64(text, "D")
    except ValueError:
        return np.datetime64("NaT", "D")


def checked_days(events: Iterable[Any]) -> tuple[str, ...]:
    """Return the days of events as text, sorted and without repeats.

    Args:
        events: dates, datetimes, or text such as ``"2013-12-07"``.

    Raises:
        DataError: an event is not a day.

    Example:
        >>> checked_days([date(2013, 12, 8), "2013-12-07"])
        ('2013-12-07', '2013-12-08')
    """
    days = [str(event)[:10] for event in ([events] if isinstance(events, str) else events)]
    wrong = [day for day in days if not _DAY_TEXT.fullmatch(day) or np.isnat(_as_day(day))]
    if wrong:
        raise DataError(f"event {wrong[0]!r} is not a day; write it as 2013-12-07")
    return tuple(sorted(set(days)))


def calendar_features(
    time_utc: np.ndarray, timezone: str, country: str | None, events: Sequence[str] = ()
) -> np.ndarray:
    r"""Return the calendar features of slots, in the order of `CALENDAR_FEATURES`.

    With d in [0, 1) the time of the local day and w in [0, 1) the time of the local week from Monday:
    sin and cos of 2 pi d, 4 pi d and 2 pi w, then 1 on Saturdays and Sundays, then 1 on public holidays (national ones;
    a city's patron saint is not among them, but may be among the events) and on days of events.

    Args:
        time_utc: datetime64 (T,), slot starts in UTC.
        timezone: IANA name of the local time; daylight saving is followed.
        country: ISO code for the `holidays` library, such as ``"IT"`` or ``"DE-BY"``; None for no holidays.
        events: further days that count as holidays, such as ``"2013-12-07"``.

    Returns:
        float32 (T, 8).

    Raises:
        DataError: the time zone or the country is unknown.
        MissingExtraError: a country is given and the `holidays` package is not installed.

    Example:
        >>> import numpy as np
        >>> noon = np.array(["2013-11-04T11:00:00"], dtype="datetime64[s]")  # a Monday, 12:00 in Rome
        >>> calendar_features(noon, "Europe/Rome", None)[0, [1, 3, 6, 7]].round(3).tolist()
        [-1.0, 1.0, 0.0, 0.0]
    """
    local = local_seconds(time_utc, timezone)
    day = (local % _DAY) / _DAY
    week_day = (local // _DAY + _EPOCH_WEEKDAY) % 7
    week = (week_day + day) / 7
    turn = 2 * np.pi
    columns = [
        np.sin(turn * day),
        np.cos(turn * day),
        np.sin(2 * turn * day),
        np.cos(2 * turn * day),
        np.sin(turn * week),
        np.cos(turn * week),
        week_day >= 5,
        is_holiday(time_utc, timezone, country, events),
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def check_time_axis(time: np.ndarray) -> None:
    """Check that slot starts ascend evenly in whole minutes that divide a day.

    Args:
        time: datetime64[s] (T,).

    Raises:
        DataError: a slot breaks the rule; the message names the index and value of the first such slot.
    """
    if len(time) < 2:
        raise DataError(f"a series needs at least two slots to have a step, got {len(time)}")
    missing = np.isnat(time)
    if missing.any():
        raise DataError(f"time[{int(missing.argmax())}] is not a time (NaT); every slot needs a start")
    gaps = np.diff(time).astype(np.int64)
    if (gaps <= 0).any():
        i = int((gaps <= 0).argmax()) + 1
        what = "is a duplicate of" if gaps[i - 1] == 0 else "is out of order: it comes before"
        raise DataError(
            f"time[{i}] = {time[i]} {what} time[{i - 1}] = {time[i - 1]}; sort the slots and keep each once"
        )
    if (gaps != gaps[0]).any():
        i = int((gaps != gaps[0]).argmax()) + 1
        raise DataError(
            f"time[{i}] = {time[i]} is {gaps[i - 1]} s after the slot before it, the first step is {gaps[0]} s; "
            "put NaN slots into gaps (from_dataframe does it) so that the steps are even"
        )
    if gaps[0] % 60 or _DAY % gaps[0]:
        raise DataError(f"the step is {gaps[0]} s; it must be whole minutes and divide 24 hours")
