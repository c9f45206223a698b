"""The times of a table, in any form, as moments and as wall-clock times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np

from simmst.data.calendar import utc_offset_seconds, zone
from simmst.data.layout import NAIVE
from simmst.data.readers.time_text import AmbiguousDatesError, read_times
from simmst.data.zones import DEFAULT_ZONE, UNIVERSAL, zone_name, zone_of_offsets
from simmst.errors import DataError

if TYPE_CHECKING:
    import pandas

# Seconds from 1990 to 2100. In finer units this span does not overlap, so the size of a number shows its unit.
_EPOCH = (631_152_000, 4_102_444_800)
_UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_WRITE = "write it as 2013-11-01 00:00:00"
_START = datetime(1970, 1, 1)

Name = Callable[[int], str]


@dataclass(frozen=True)
class FrameTimes:
    """The times of a table's rows.

    Attributes:
        wall: wall-clock time in `timezone`, seconds since 1970-01-01 00:00, int64 (R,).
        utc: epoch seconds, int64 (R,); None for local times without offset.
        uneven: bool (R,), True where a time has a fraction of a second, which is cut off.
        timezone: IANA name of the local time.
        shown: form of the table's times: a time zone, "naive", or None for `timezone`.
    """

    wall: np.ndarray
    utc: np.ndarray | None
    uneven: np.ndarray
    timezone: str
    shown: str | None


def read_frame_times(
    times: pandas.Series,
    name: Name,
    pd: Any,
    *,
    timezone: str | None,
    dayfirst: bool | None,
    time_format: str | None,
) -> FrameTimes:
    """Read the times of a table.

    Args:
        times: datetimes with or without time zone, dates, text, or epoch numbers in s, ms, us or ns.
        name: function that names a row for messages.
        pd: the pandas module.
        timezone: IANA name of the local time zone; None takes that of the times unless it is UTC, else that of Rome.
        dayfirst: see `simmst.data.readers.time_text.read_times`.
        time_format: see the same function.

    Raises:
        DataError: a time cannot be read or is ambiguous, or times are of several kinds; the message names row and
            value.
    """
    if timezone is not None:
        zone(timezone)  # an unknown name is refused first
    missing = times.isna().to_numpy()
    if missing.any():
        row = int(missing.argmax())
        raise DataError(f"{name(row)}: {times.name} {times.iloc[row]!r} is not a time; {_WRITE}")
    if isinstance(times.dtype, pd.PeriodDtype):
        times = times.dt.to_timestamp()
    if isinstance(times.dtype, pd.CategoricalDtype):
        times = times.astype(times.cat.categories.dtype)
    if pd.api.types.is_bool_dtype(times.dtype):
        raise DataError(f"{times.name} holds True and False; give times")
    if pd.api.types.is_numeric_dtype(times.dtype) and time_format is None:
        return _of_numbers(times, name, timezone)
    if pd.api.types.is_datetime64_any_dtype(times.dtype) or "timestamp" in str(times.dtype):
        return _of_datetimes(times, pd, timezone)
    codes, distinct = pd.factorize(times.astype(object))
    return _of_objects(list(distinct), codes, times, name, pd, timezone, dayfirst, time_format)


def _of_datetimes(times: pandas.Series, pd: Any, timezone: str | None) -> FrameTimes:
    index = pd.DatetimeIndex(times)
    moments = (index if index.tz is None else index.tz_convert("UTC").tz_localize(None)).to_numpy()
    seconds = moments.astype("datetime64[s]")
    uneven = seconds != moments
    if index.tz is None:
        return FrameTimes(seconds.astype(np.int64), None, uneven, timezone or DEFAULT_ZONE, NAIVE)
    utc = seconds.astype(np.int64)
    name = zone_name(index.tz)
    if name is None:
        wall = index.tz_localize(None).to_numpy().astype("datetime64[s]").astype(np.int64)
        return _aware(utc, uneven, timezone or zone_of_offsets(utc, wall - utc), None)
    universal = name in UNIVERSAL
    return _aware(utc, uneven, timezone or (DEFAULT_ZONE if universal else name), "UTC" if universal else name)


def _aware(utc: np.ndarray, uneven: np.ndarray, timezone: str, shown: str | None) -> FrameTimes:
    wall = utc + utc_offset_seconds(utc.astype("datetime64[s]"), timezone)
    return FrameTimes(wall, utc, uneven, timezone, shown)


def _of_numbers(times: pandas.Series, name: Name, timezone: str | None) -> FrameTimes:
    """Read epoch numbers, whose size shows their unit, or days written as 20131101."""
    numbers = times.to_numpy(dtype=np.float64, na_value=np.nan)
    low, high = float(np.min(numbers)), float(np.max(numbers))
    for unit, scale in _UNITS.items():
        if _EPOCH[0] * scale <= low and high < _EPOCH[1] * scale:
            if unit == "s" and (numbers % 60 != 0).any() and (read := _written_hours(numbers)) is not None:
                return FrameTimes(read, None, np.zeros(len(read), dtype=bool), timezone or DEFAULT_ZONE, NAIVE)
            whole = times.to_numpy(dtype=np.int64) if times.dtype.kind in "iu" else np.floor(numbers).astype(np.int64)
            utc, rest = np.divmod(whole, scale)
            return _aware(
                utc, (rest != 0) | (numbers % 1 != 0 if unit == "s" else False), timezone or DEFAULT_ZONE, None
            )
    if (numbers % 1 == 0).all():
        read_days = [read_times([str(int(number))])[0] for number in np.unique(numbers)]
        if None not in read_days:
            walls = np.array([_seconds(one.wall) for one in read_days if one is not None])
            wall = walls[np.searchsorted(np.unique(numbers), numbers)]
            return FrameTimes(wall, None, np.zeros(len(wall), dtype=bool), timezone or DEFAULT_ZONE, NAIVE)
    far = int(np.argmax((numbers < _EPOCH[0]) | (numbers >= _EPOCH[1])))
    raise DataError(
        f"{name(far)}: {times.name} holds numbers such as {times.iloc[far]}, which are not epoch seconds, "
        "milliseconds, microseconds or nanoseconds of 1990 to 2100; convert them with pandas.to_datetime and its unit"
    )


def _written_hours(numbers: np.ndarray) -> np.ndarray | None:
    """Read hours written as 2013110100, which as epoch seconds lie in 2033, off whole minutes; None if they are not."""
    distinct, place = np.unique(numbers, return_inverse=True)
    read = read_times([str(int(number)) for number in distinct])
    if any(one is None for one in read):
        return None
    walls = np.array([_seconds(one.wall) for one in read if one is not None])
    return walls[place]


def _of_objects(
    distinct: list[Any],
    codes: np.ndarray,
    times: pandas.Series,
    name: Name,
    pd: Any,
    timezone_given: str | None,
    dayfirst: bool | None,
    time_format: str | None,
) -> FrameTimes:
    """Read text, dates and datetimes as objects, each distinct one once."""
    texts = [isinstance(value, str) for value in distinct]
    if all(texts) and time_format is None and all(value.strip().replace(".", "", 1).isdigit() for value in distinct):
        number = float if any("." in value for value in distinct) else int
        series = pd.Series(np.array([number(value) for value in distinct])[codes], name=times.name)
        return _of_numbers(series, name, timezone_given)
    if time_format is not None:
        distinct, texts = [str(value) for value in distinct], [True] * len(distinct)
    try:
        read = iter(
            read_times(
                [v for v, text in zip(distinct, texts, strict=True) if text], dayfirst=dayfirst, time_format=time_format
            )
        )
    except AmbiguousDatesError as error:
        raise DataError(f"{times.name}: {error}") from None
    walls, offsets, zones, parts = [], [], set(), []
    for place, (value, text) in enumerate(zip(distinct, texts, strict=True)):
        one = next(read) if text else _of_object(value, pd)
        if one is None:
            row = int((codes == place).argmax())
            how = (
                f"it does not have the form {time_format!r}"
                if time_format is not None
                else f"{_WRITE}, or give time_format"
            )
            raise DataError(f"{name(row)}: {times.name} {value!r} is not a time; {how}")
        wall, offset = one
        walls.append(_seconds(wall))
        offsets.append(offset)
        parts.append(wall.microsecond != 0)
        zones.add(zone_name(value.tzinfo) if getattr(value, "tzinfo", None) is not None else None)
    without = [offset is None for offset in offsets]
    uneven = np.array(parts)[codes]
    if all(without):
        return FrameTimes(np.array(walls)[codes], None, uneven, timezone_given or DEFAULT_ZONE, NAIVE)
    if any(without):
        rows = [int((codes == without.index(kind)).argmax()) for kind in (False, True)]
        raise DataError(
            f"{times.name} mixes times with and without offset to UTC: {name(rows[0])} has {times.iloc[rows[0]]!r}, "
            f"{name(rows[1])} has {times.iloc[rows[1]]!r}; bring them to one kind"
        )
    utc = np.array(walls) - np.array(offsets, dtype=np.int64)
    own = next(iter(zones)) if len(zones) == 1 else None
    if own is not None and own not in UNIVERSAL:
        return _aware(utc[codes], uneven, timezone_given or own, own)
    universal = not any(offsets)
    local = timezone_given or zone_of_offsets(utc, np.array(offsets, dtype=np.int64))
    return _aware(utc[codes], uneven, local, "UTC" if universal else None)


def _of_object(value: Any, pd: Any) -> tuple[datetime, int | None] | None:
    """Return a date, datetime, Timestamp or datetime64 as its wall clock and offset; None for anything else."""
    try:
        moment = pd.Timestamp(value) if not isinstance(value, (int, float)) else None
    except (TypeError, ValueError):
        return None
    if moment is None:
        return None
    offset = moment.utcoffset()
    wall = moment.tz_localize(None).floor("us").to_pydatetime(warn=False)
    return wall, None if offset is None else int(offset.total_seconds())


def _seconds(wall: datetime) -> int:
    return int((wall - _START).total_seconds() // 1)


def shown_time(wall: int) -> str:
    """Format wall-clock seconds for a message."""
    return str(datetime.fromtimestamp(wall, tz=timezone.utc).replace(tzinfo=None))
