"""The slots of a table's rows, from their times: moments, steps, and the local calendar where clocks change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from simmst.data.calendar import DAY_MINUTES, moments_of_wall_clock, utc_offset_seconds
from simmst.data.readers.frame_times import FrameTimes, Name, shown_time
from simmst.data.zones import UNIVERSAL
from simmst.errors import DataError

_DAY = DAY_MINUTES * 60
_HOUR = 3600
_NOT_SHOWN = np.iinfo(np.int64).min  # NaT as a number
_EVEN_STEPS = np.array([60 * minutes for minutes in range(1, DAY_MINUTES + 1) if DAY_MINUTES % minutes == 0])


@dataclass(frozen=True)
class Slots:
    """The slots of a table's rows.

    Attributes:
        slot: number of each row's slot, int64 (R,); -1 for rows without a value in the hour that clocks skip.
        start: the first slot's start, epoch seconds.
        step: length of a slot in seconds.
        wall_offset: see `simmst.data.layout.FrameLayout`.
    """

    slot: np.ndarray
    start: int
    step: int
    wall_offset: int | None


def find_slots(
    times: FrameTimes,
    series: np.ndarray,
    empty: np.ndarray,
    name: Name,
    who: Callable[[int], str],
    *,
    step_minutes: int | None,
    lone_step_minutes: int | None,
    round_times: bool,
) -> Slots:
    """Number the slots of a table's rows.

    Slots of up to an hour are moments, evenly spaced. Where local times have no offset, the order of a series' rows
    distinguishes the two hours of the same name when clocks are put back. Longer slots may be those of the local
    calendar, such as days that start at midnight all year round: they are numbered by the wall clock.

    Args:
        times: times of the rows.
        series: number of the series that each row belongs to, int64 (R,).
        empty: bool (R,), True for rows without any value.
        name: function that names a row for messages.
        who: function that names a row's series for messages.
        step_minutes: length of a slot; None finds it from the times.
        lone_step_minutes: length of a slot that is the only one; None refuses such a table.
        round_times: whether to move each time to the nearest slot of the local clock.

    Raises:
        DataError: a time is off the slots, twice in its series, out of order where order matters, or does not exist in
            the zone.
    """
    if round_times:
        times = _rounded(times, step_minutes)
    elif times.uneven.any():
        row = int(times.uneven.argmax())
        raise DataError(
            f"{name(row)}: the time {shown_time(int(times.wall[row]))} has a fraction of a second; slots start on "
            "whole minutes: give round_times=True to move each time to the nearest slot"
        )
    walls = np.unique(times.wall)
    if len(walls) < 2 and (times.utc is None or len(np.unique(times.utc)) < 2):
        if lone_step_minutes is not None:
            return _lone_slot(times, series, empty, name, who, lone_step_minutes)
        raise DataError(
            f"the table has only one slot, {shown_time(int(walls[0]))}; at least two are needed to tell how long it is"
        )
    step = _DAY if len(walls) < 2 else _step(walls) if step_minutes is None else step_minutes * 60
    offset = None
    if step > _HOUR and _by_the_calendar(times, walls, step):
        offset = _calendar_offset(times, walls)
        moment = times.wall - offset
    else:
        moment = _moments(times, series, empty, name, who)
    known = moment != _NOT_SHOWN
    distinct = np.unique(moment[known])
    if len(distinct) < 2:
        raise DataError(f"the table has only one slot, {shown_time(int(walls[0]))}; at least two are needed")
    if offset is None:
        step = _step(distinct) if step_minutes is None else step_minutes * 60
    slot, rest = np.divmod(moment - distinct[0], step)
    if rest[known].any():
        _refuse_uneven(times, distinct, step, int((known & (rest != 0)).argmax()), name, step_minutes)
    _refuse_far(times, slot, distinct, step, int(np.where(known, slot, 0).argmax()), name)
    slot = np.where(known, slot, -1)
    _refuse_twice(times, series, slot, name, who)
    return Slots(slot, int(distinct[0]), step, offset)


def _lone_slot(
    times: FrameTimes, series: np.ndarray, empty: np.ndarray, name: Name, who: Callable[[int], str], minutes: int
) -> Slots:
    """Return the only slot of a table, with an empty one before it, because a series has at least two."""
    walls = times.wall[:1]
    offset = None
    if minutes * 60 > _HOUR and _by_the_calendar(times, walls, minutes * 60):
        offset = _calendar_offset(times, walls)
    moment = times.wall - offset if offset is not None else _moments(times, series, empty, name, who)
    slot = np.ones(len(moment), dtype=np.int64)
    _refuse_twice(times, series, slot, name, who)
    return Slots(slot, int(moment[0]) - minutes * 60, minutes * 60, offset)


def _step(distinct: np.ndarray) -> int:
    """Return the distance between slots: the shortest, or the most common if others are not multiples of it."""
    gaps, count = np.unique(np.diff(distinct), return_counts=True)
    # One odd time makes a short gap that nothing else fits; the most common gap then shows which time is odd.
    return int(gaps[0] if not (gaps % gaps[0]).any() else gaps[count.argmax()])


def _by_the_calendar(times: FrameTimes, walls: np.ndarray, step: int) -> bool:
    """Return whether slots are those of the local calendar: even on the wall clock, with times that are not in UTC."""
    if times.shown in UNIVERSAL or ((walls - walls[0]) % step).any():
        return False
    return times.shown is not None or times.utc is None or bool(((times.utc - times.utc.min()) % step).any())


def _calendar_offset(times: FrameTimes, walls: np.ndarray) -> int:
    """Return the seconds from UTC to the wall clock, the same for all slots: standard time's if the offset changes.

    Slots then start at the time of the table or an hour later on the true clock, never on the day before.
    """
    if times.utc is not None:
        return int(np.min(utc_offset_seconds(times.utc.astype("datetime64[s]"), times.timezone)))
    first, _ = moments_of_wall_clock(walls, times.timezone)
    shown = ~np.isnat(first)
    offsets = walls[shown] - first[shown].astype(np.int64)
    return int(np.min(offsets) if len(offsets) else utc_offset_seconds(_around(walls[0]), times.timezone).min())


def _moments(
    times: FrameTimes, series: np.ndarray, empty: np.ndarray, name: Name, who: Callable[[int], str]
) -> np.ndarray:
    """Return the epoch seconds of each row; `_NOT_SHOWN` for empty rows at times that no clock showed."""
    if times.utc is not None:
        return times.utc
    walls, place = np.unique(times.wall, return_inverse=True)
    early, late = (one.astype("datetime64[s]").astype(np.int64) for one in moments_of_wall_clock(walls, times.timezone))
    _settle_by_step(early, late)
    never = (early == _NOT_SHOWN)[place]
    if (never & ~empty).any():
        row = int((never & ~empty).argmax())
        winter = int(-np.min(utc_offset_seconds(_around(times.wall[row]), times.timezone)) // _HOUR)
        raise DataError(
            f"{name(row)}: no clock in {times.timezone} showed {shown_time(int(times.wall[row]))}, where clocks are "
            f"put forward; if the table keeps standard time all year, give timezone='Etc/GMT{winter:+d}'; if its times "
            "are of another zone, give that one"
        )
    moment = early[place]
    twice = (early != late)[place]
    if not twice.any():
        return moment
    cache: dict[bytes, np.ndarray] = {}
    order = np.argsort(series, kind="stable")
    bounds = np.flatnonzero(np.diff(series[order], prepend=series[order[0]] - 1))
    for rows in np.split(order, bounds[1:]):
        if not twice[rows].any():
            continue
        shown = times.wall[rows]
        key = shown.tobytes()
        if key not in cache:
            cache[key] = _in_order(times, rows, early[place[rows]], late[place[rows]], name, who)
        moment[rows] = cache[key]
    return moment


def _settle_by_step(early: np.ndarray, late: np.ndarray) -> None:
    """Settle in place a time shown twice, if only one of its two moments is on the slots of the other times."""
    once = np.unique(early[(early == late) & (early != _NOT_SHOWN)])
    if len(once) < 3:
        return
    step = _step(once)
    fits_early, fits_late = (((moment - once[0]) % step == 0) & (moment != _NOT_SHOWN) for moment in (early, late))
    early[fits_late & ~fits_early] = late[fits_late & ~fits_early]
    late[fits_early & ~fits_late] = early[fits_early & ~fits_late]


def _in_order(
    times: FrameTimes, rows: np.ndarray, early: np.ndarray, late: np.ndarray, name: Name, who: Callable[[int], str]
) -> np.ndarray:
    """Return the moments of one series, whose rows go forward or backward in time."""
    back = len(rows) > 1 and times.wall[rows[0]] > times.wall[rows[-1]]
    turn = slice(None, None, -1) if back else slice(None)
    found, late = early[turn].copy(), late[turn]
    before = _NOT_SHOWN
    for i in range(len(found)):
        if found[i] == _NOT_SHOWN:
            continue
        if found[i] <= before and late[i] > before:
            found[i] = late[i]
        if found[i] <= before:
            row, earlier = int(rows[turn][i]), int(rows[turn][i - 1])
            raise DataError(
                f"{name(row)}: {shown_time(int(times.wall[row]))} of {who(row)} comes after "
                f"{shown_time(int(times.wall[earlier]))}, out of order or too often; clocks are put back within these "
                "times, where only the order of rows distinguishes the two hours of the same name: sort the table in "
                "order of time and keep each slot once, or give times with an offset from UTC"
            )
        before = int(found[i])
    return found[turn]


def _around(wall: np.integer) -> np.ndarray:
    return (np.array([wall - 2 * _DAY, wall + 2 * _DAY])).astype("datetime64[s]")


def _rounded(times: FrameTimes, step_minutes: int | None) -> FrameTimes:
    """Move times to the nearest slot of the local clock."""
    walls = np.unique(times.wall)
    step = step_minutes * 60 if step_minutes is not None else _nearest_step(walls)
    moved = (times.wall + step // 2) // step * step
    utc = None if times.utc is None else times.utc + (moved - times.wall)
    return FrameTimes(moved, utc, np.zeros_like(times.uneven), times.timezone, times.shown)


def _nearest_step(distinct: np.ndarray) -> int:
    """Return the slot length in seconds, whole minutes that divide a day, nearest to the usual distance of times."""
    gaps = np.diff(distinct)
    usual = float(np.median(gaps[gaps >= 30])) if (gaps >= 30).any() else 60.0
    return int(_EVEN_STEPS[np.abs(np.log(_EVEN_STEPS / usual)).argmin()])


def _refuse_uneven(
    times: FrameTimes, distinct: np.ndarray, step: int, row: int, name: Name, step_minutes: int | None
) -> None:
    shown = shown_time(int(times.wall[row]))
    nearest = _nearest_step(distinct) if step_minutes is None else step
    off = (times.wall + nearest // 2) % nearest - nearest // 2
    worst = int(np.abs(off).max())
    if np.abs(off).any() and worst < min(nearest / 4, 600):
        first = int((off != 0).argmax())
        raise DataError(
            f"{name(first)}: {shown_time(int(times.wall[first]))} is off the slots of {nearest / 60:g} min, and the "
            f"times jitter by up to {worst} s; give round_times=True to move each to the nearest slot"
        )
    remedy = "check that time" if step_minutes is None else "check that time, or step_minutes"
    raise DataError(
        f"{name(row)}: {shown} is not a whole number of {step / 60:g} min slots after the first one; {remedy}; "
        "bring the times to one grid"
    )


def _refuse_far(times: FrameTimes, slot: np.ndarray, distinct: np.ndarray, step: int, row: int, name: Name) -> None:
    if slot[row] > 100 * len(distinct) + 1000:
        raise DataError(
            f"{name(row)}: {shown_time(int(times.wall[row]))} lies {int(slot[row])} slots of {step / 60:g} min "
            f"after the first, and only {len(distinct)} of them have rows; check that time"
        )


def _refuse_twice(
    times: FrameTimes, series: np.ndarray, slot: np.ndarray, name: Name, who: Callable[[int], str]
) -> None:
    order = np.lexsort((np.arange(len(slot)), slot, series))
    same = (np.diff(series[order]) == 0) & (np.diff(slot[order]) == 0) & (slot[order][1:] >= 0)
    if not same.any():
        return
    again = order[1:][same]
    first = int(again.min())
    before = int(order[:-1][same][again.argmin()])
    place = "" if first == before + 1 else ", out of order"
    raise DataError(
        f"{name(first)}: ds {shown_time(int(times.wall[first]))} of {who(first)} appears twice: {name(before)} has "
        f"it too{place}; keep each slot of a series once"
    )
