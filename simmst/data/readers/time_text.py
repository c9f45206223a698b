"""Times written as text, read only in stated forms and never guessed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from simmst.errors import DataError

_CLOCK = (
    r"(?:[T ,]+(?P<hour>\d{1,2})(?:[:.h](?P<minute>\d{2}))?(?:[:.](?P<second>\d{2})(?:[.,](?P<part>\d+))?)?"
    r"\s*(?P<half>[AaPp])?(?:\.?[Mm]\.?)?)?\s*(?P<zone>Z|UTC|GMT|[+-]\d{2}:?\d{2})?\s*$"
)
_FORMS = (
    re.compile(r"\s*(?P<year>\d{4})(?P<sign>[-/. ])(?P<month>\d{1,2})(?P=sign)(?P<day>\d{1,2})" + _CLOCK),
    re.compile(r"\s*(?P<year>\d{4})(?P<month>\d{2})(?P<day>\d{2})(?=T|\s|$)" + _CLOCK),
    re.compile(r"\s*(?P<first>\d{1,2})(?P<sign>[-/. ])(?P<second_>\d{1,2})(?P=sign)(?P<year>\d{4})" + _CLOCK),
    re.compile(r"\s*(?P<day>\d{1,2})[-/. ](?P<name>[A-Za-z]{3,9})\.?[-/, ]+(?P<year>\d{4})" + _CLOCK),
    re.compile(r"\s*(?P<name>[A-Za-z]{3,9})\.? (?P<day>\d{1,2}),? (?P<year>\d{4})" + _CLOCK),
)
_TIGHT = re.compile(r"\s*(\d{4})(\d{2})(\d{2})T?(\d{2})(\d{2})?(\d{2})?\s*$")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


class ReadTime(NamedTuple):
    """A time as it was written: wall-clock time, with its offset from UTC in seconds if it has one."""

    wall: datetime
    offset: int | None


class AmbiguousDatesError(DataError):
    """Dates such as 01/11/2013, which may be in January or in November."""


def looks_like_time(text: object) -> bool:
    """Return whether a text has one of the forms that are read, ambiguous ones included.

    Example:
        >>> looks_like_time("1/11/2013 00:00"), looks_like_time("4259"), looks_like_time("cell 7")
        (True, False, False)
    """
    return isinstance(text, str) and not text.strip().isdigit() and any(form.match(text) for form in _FORMS)


def read_times(
    texts: Sequence[str], *, dayfirst: bool | None = None, time_format: str | None = None
) -> list[ReadTime | None]:
    """Read the times of one column.

    Forms: year first (``2013-11-01 00:00:00``, ISO 8601, also ``20131101T0000``); day and month in figures and the year
    last (``1/11/2013 00:00``), day first after dots or where one of the numbers shows it, else by `dayfirst`; the month
    by its English name (``1 Nov 2013``). The clock follows, with or without seconds, ``am`` and ``pm``; ``24:00`` is
    the end of the day. An offset from UTC may end the text.

    Args:
        texts: times as written.
        dayfirst: whether the day comes before the month; None refuses dates that leave it open.
        time_format: the one form of the times, as in ``datetime.strptime``; None takes those above.

    Returns:
        Each time, or None for a text that has no such form.

    Raises:
        AmbiguousDatesError: dates can be read either way, or some are day first and others month first.

    Example:
        >>> read_times(["31/10/2013 23:00", "01/11/2013 00:00"])[1].wall.isoformat()
        '2013-11-01T00:00:00'
    """
    if time_format is not None:
        return [_by_format(text, time_format) for text in texts]
    found = [_match(text) for text in texts]
    if any(match is not None and "first" in match.re.groupindex for match in found):
        dayfirst = _day_first(texts, found, dayfirst)
    return [
        _tight(text) if match is None else _by_match(match, bool(dayfirst))
        for text, match in zip(texts, found, strict=True)
    ]


def _match(text: str) -> re.Match[str] | None:
    return next(filter(None, (form.match(text) for form in _FORMS)), None)


def _day_first(texts: Sequence[str], found: list[re.Match[str] | None], dayfirst: bool | None) -> bool:
    """Return whether dates in figures with the year last have the day first."""
    shows: dict[bool, str] = {}
    dots = True
    for text, match in zip(texts, found, strict=True):
        if match is None or "first" not in match.re.groupindex:
            continue
        dots &= match["sign"] == "."
        if int(match["first"]) > 12:
            shows.setdefault(True, text)
        if int(match["second_"]) > 12:
            shows.setdefault(False, text)
    if len(shows) == 2:
        raise AmbiguousDatesError(
            f"{shows[True]!r} has the day first and {shows[False]!r} the month; bring the dates to one form, such as "
            "2013-11-01 00:00"
        )
    if shows:
        known = next(iter(shows))
        if dayfirst is not None and dayfirst != known:
            order = "day first" if known else "month first"
            raise AmbiguousDatesError(f"dayfirst is {dayfirst}, and {shows[known]!r} can only be {order}")
        return known
    if dayfirst is None and not dots:
        example = next(t for t, m in zip(texts, found, strict=True) if m is not None and "first" in m.re.groupindex)
        raise AmbiguousDatesError(
            f"{example!r} may have the day or the month first, and no date here shows which; give dayfirst=True or "
            "dayfirst=False, or a time_format such as '%d/%m/%Y %H:%M'"
        )
    return dots if dayfirst is None else dayfirst


def _by_match(match: re.Match[str], dayfirst: bool) -> ReadTime | None:
    part = match.groupdict()
    if part.get("name"):
        name = part["name"][:3].lower()
        if name not in _MONTHS:
            return None
        month, day = _MONTHS.index(name) + 1, int(part["day"])
    elif part.get("first"):
        day, month = int(part["first"]), int(part["second_"])
        if not dayfirst:
            day, month = month, day
    else:
        month, day = int(part["month"]), int(part["day"])
    hour, minute, second = (int(part[key] or 0) for key in ("hour", "minute", "second"))
    if part["half"]:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + 12 * (part["half"] in "Pp")
    fraction = int(((part["part"] or "") + "000000")[:6])
    if hour > 24 or minute > 59 or second > 59 or (hour == 24 and (minute or second or fraction)):
        return None
    try:
        wall = datetime(int(part["year"]), month, day) + timedelta(hours=hour)
    except (ValueError, OverflowError):
        return None
    return ReadTime(wall.replace(minute=minute, second=second, microsecond=fraction), _offset(part["zone"]))


def _offset(text: str | None) -> int | None:
    if text is None:
        return None
    if text[0] not in "+-":
        return 0
    seconds = int(text[1:3]) * 3600 + int(text[-2:]) * 60
    return -seconds if text[0] == "-" else seconds


def _tight(text: str) -> ReadTime | None:
    """Read a time written in digits only, such as 201311010000."""
    match = _TIGHT.match(text)
    if match is None:
        return None
    try:
        return ReadTime(datetime(*(int(part) for part in match.groups(default="0"))), None)  # type: ignore[arg-type]
    except ValueError:
        return None


def _by_format(text: str, time_format: str) -> ReadTime | None:
    try:
        read = datetime.strptime(text.strip(), time_format)
    except ValueError:
        return None
    offset = read.utcoffset()
    return ReadTime(read.replace(tzinfo=None), None if offset is None else int(offset.total_seconds()))
