"""The country of a time zone, and the time zone of a table's times."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from pathlib import Path
from zoneinfo import TZPATH

import numpy as np

from simmst.data.calendar import utc_offset_seconds, zone
from simmst.errors import DataError

DEFAULT_ZONE = "Europe/Rome"
AUTO = "auto"  # the country of the time zone
UNIVERSAL = ("UTC", "Etc/UTC", "Etc/GMT", "GMT", "Zulu", "Universal", "Greenwich")


def checked_country(country: str | None, timezone: str) -> str | None:
    """Return the country whose public holidays count: the given one, or with ``"auto"`` that of the time zone, if any.

    Example:
        >>> checked_country("auto", "Asia/Tokyo"), checked_country("auto", "UTC"), checked_country("FR", "UTC")
        ('JP', None, 'FR')
    """
    return _countries().get(timezone) if country == AUTO else country


@lru_cache(maxsize=1)
def _countries() -> dict[str, str]:
    """Return ISO codes by time zone, of countries whose public holidays are known, from the zone tables."""
    found = {}
    for line in _zone_table().splitlines():
        if line and not line.startswith("#"):
            code, _, name = line.split("\t")[:3]
            found[name] = code
    try:
        import holidays
    except ModuleNotFoundError:  # the calendar names the missing package where holidays are needed
        return found
    known = holidays.list_supported_countries()
    return {name: code for name, code in found.items() if code in known}


def _zone_table() -> str:
    for folder in TZPATH:
        if (Path(folder) / "zone.tab").is_file():
            return (Path(folder) / "zone.tab").read_text(encoding="utf-8")
    try:
        return (resources.files("tzdata") / "zoneinfo" / "zone.tab").read_text(encoding="utf-8")
    except (ModuleNotFoundError, FileNotFoundError):  # no list: only Italy, where the official data comes from
        return "IT\t+4154+01229\tEurope/Rome\n"


def zone_of_offsets(utc: np.ndarray, offsets: np.ndarray) -> str:
    """Return the time zone of times that carry offsets from UTC and no zone: Rome's if the offsets are those of Rome.

    Args:
        utc: epoch seconds, int64 (n,).
        offsets: seconds east of UTC, int64 (n,).

    Raises:
        DataError: the offsets do not determine a zone; the message asks for it.

    Example:
        >>> [zone_of_offsets(np.array([1_383_260_400]), np.array([hours * 3600])) for hours in (1, 9)]
        ['Europe/Rome', 'Etc/GMT-9']
    """
    distinct = np.unique(offsets)
    if (distinct == 0).all():
        return DEFAULT_ZONE
    moments = np.asarray(utc).astype(np.int64).astype("datetime64[s]")
    if (utc_offset_seconds(moments, DEFAULT_ZONE) == offsets).all():
        return DEFAULT_ZONE
    if len(distinct) == 1 and distinct[0] % 3600 == 0:
        hours = int(distinct[0] // 3600)
        return f"Etc/GMT{-hours:+d}"  # these names have the opposite sign
    shown = " and ".join(f"{seconds / 3600:+g} h" for seconds in distinct[:3])
    raise DataError(
        f"the times carry offsets from UTC of {shown}, which do not determine a time zone; give timezone, such as "
        "'Europe/London'"
    )


def zone_name(tz: object) -> str | None:
    """Return the IANA name of a time zone object; None for an offset without a name.

    Example:
        >>> from zoneinfo import ZoneInfo
        >>> zone_name(ZoneInfo("Asia/Tokyo"))
        'Asia/Tokyo'
    """
    name = getattr(tz, "key", None) or getattr(tz, "zone", None) or str(tz)
    try:
        zone(str(name))
    except DataError:
        return None
    return str(name)
