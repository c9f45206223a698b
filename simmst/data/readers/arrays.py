"""The attributes of a data set from arrays in memory; all readers end here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from simmst.data.calendar import check_time_axis, checked_days
from simmst.data.zones import AUTO, checked_country
from simmst.errors import DataError

# The attributes that files store as text.
DESCRIPTION = ("services", "geometry", "timezone", "country", "unit", "name", "surrogate", "cell_size_m")
_SHAPES = "(T,), (T, K), (T, H, W) with one service, or (T, K, H, W)"


def read_arrays(
    activity: Any,
    time: Any,
    *,
    services: Sequence[str] | None = None,
    mask: Any = None,
    cell_id: Any = None,
    geometry: str | None = None,
    timezone: str = "Europe/Rome",
    country: str | None = AUTO,
    unit: str = "CDR units",
    name: str = "traffic",
    surrogate: bool = False,
    cell_size_m: float | None = None,
    lonlat: Any = None,
    cell_name: Any = None,
    events: Iterable[Any] = (),
) -> dict[str, Any]:
    """Turn arrays into the attributes of a data set, by name.

    Args:
        activity: numbers (T,) for one place and service, (T, K) for one place, (T, H, W) for one service, or (T, K, H,
            W); NaN is missing. Negative values are errors unless ``unit="z-score"``.
        time: slot starts (T,): datetime64 or a pandas index without time zone (both UTC), a pandas index with one, or
            whole epoch seconds.
        services: K names; None for one service, which is then called ``"traffic"``.
        mask: bool (H, W), True inside the city; all by default.
        cell_id: int (H, W), -1 outside; numbered row by row by default.
        geometry: ``"grid"`` or ``"points"``; by default "points" for (T,) and (T, K), else "grid".
        timezone: IANA name of the local time zone.
        country: ISO code of the country whose public holidays count, None for none, or "auto" for that of the time
            zone.
        unit: unit of the activity.
        name: a short name.
        surrogate: True for simulated data that stands in for a real city.
        cell_size_m: edge of a cell in metres.
        lonlat: longitude and latitude of the cells' centres, (H, W, 2).
        cell_name: names of the cells, text or numbers (H, W).
        events: local days that count as public holidays, dates or text such as ``"2013-12-07"``.

    Raises:
        DataError: a shape, a time or a value does not fit; the message names it.

    Example:
        >>> import numpy as np
        >>> read_arrays(np.ones((24, 2)), np.arange(24) * 600, services=["call", "sms"])["activity"].shape
        (24, 2, 1, 1)
    """
    values, services, default_geometry = _as_activity(activity, services)
    height, width = values.shape[2:]
    inside = np.ones((height, width), dtype=bool) if mask is None else np.asarray(mask).astype(bool)
    if cell_id is None:
        cell_id = np.arange(height * width).reshape(height, width)
    ids = np.asarray(cell_id).astype(np.int64)
    if ids.shape == inside.shape:
        ids = np.where(inside, ids, -1)
    _check_values(values, unit)
    return {
        "activity": values,
        "time": as_time(time),
        "services": tuple(services),
        "mask": inside,
        "cell_id": ids,
        "geometry": geometry or default_geometry,
        "timezone": timezone,
        "country": checked_country(country, timezone),
        "unit": unit,
        "name": name,
        "surrogate": surrogate,
        "cell_size_m": cell_size_m,
        "lonlat": None if lonlat is None else np.asarray(lonlat, dtype=np.float64),
        "cell_name": None if cell_name is None else np.asarray(cell_name),
        "events": checked_days(events),
    }


def as_time(time: Any) -> np.ndarray:
    """Convert slot starts to datetime64[s] UTC and check that they are evenly spaced.

    Raises:
        DataError: a time does not fit; the message names its index and value.
    """
    if getattr(time, "tz", None) is not None:
        time = time.tz_convert("UTC").tz_localize(None)
    array = np.asarray(time)
    if array.ndim != 1:
        raise DataError(f"time must be (T,), got shape {array.shape}")
    if array.dtype.kind == "M":
        seconds = array.astype("datetime64[s]")
        cut = seconds != array
        if cut.any() and not np.isnat(array[cut]).all():
            i = int(cut.argmax())
            raise DataError(f"time[{i}] = {array[i]} is not a whole second; slots start on whole minutes")
    elif array.dtype.kind in "iuf":
        if array.size and np.abs(array).max() > 1e11:
            raise DataError(
                f"time[0] = {array[0]} looks like epoch milliseconds; whole epoch seconds are wanted: divide by 1000"
            )
        if array.dtype.kind == "f" and not (array == np.floor(array)).all():
            i = int((array != np.floor(array)).argmax())
            raise DataError(f"time[{i}] = {array[i]} is not a whole epoch second")
        seconds = array.astype(np.int64).astype("datetime64[s]")
    else:
        raise DataError(
            f"time must be datetime64, epoch seconds or a pandas DatetimeIndex, got {array.dtype}; "
            "convert text with pandas.to_datetime"
        )
    check_time_axis(seconds)
    return np.ascontiguousarray(seconds)


def _as_activity(activity: Any, services: Sequence[str] | None) -> tuple[np.ndarray, Sequence[str], str]:
    """Return activity as float32 (T, K, H, W), the service names, and the geometry that its rank suggests."""
    raw = np.asarray(activity)
    if raw.dtype.kind not in "iufb":
        raise DataError(f"activity must be numbers, got dtype {raw.dtype}")
    names = [services] if isinstance(services, str) else None if services is None else list(services)
    geometry = "grid"
    if raw.ndim in (1, 2):
        shaped, geometry = raw.reshape(len(raw), -1, 1, 1), "points"
    elif raw.ndim == 3:
        if names is not None and len(names) != 1:
            raise DataError(
                f"activity {raw.shape} is read as (T, H, W) of one service, but {len(names)} services were named "
                f"({', '.join(names)}); give (T, K, H, W), for unrelated places (T, K, 1, W)"
            )
        shaped = raw[:, None]
    elif raw.ndim == 4:
        shaped = raw
    else:
        raise DataError(f"activity has shape {raw.shape}; wanted {_SHAPES}")
    if 0 in shaped.shape:
        raise DataError(f"activity has shape {raw.shape}, which is empty; wanted {_SHAPES}")
    if names is None:
        if shaped.shape[1] != 1:
            raise DataError(
                f"activity {raw.shape} has {shaped.shape[1]} services without names; give them, such as "
                'services=["call", "sms", "internet"]'
            )
        names = ["traffic"]
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(shaped, dtype=np.float32), names, geometry


def _check_values(values: np.ndarray, unit: str) -> None:
    """Refuse infinities, and negative activity in any unit but z-scores."""
    infinite = np.isinf(values)
    if infinite.any():
        where = tuple(int(i) for i in np.argwhere(infinite)[0])
        raise DataError(f"activity{list(where)} (slot, service, row, column) is infinite; use NaN for missing values")
    if unit != "z-score" and (values < 0).any():
        where = tuple(int(i) for i in np.argwhere(values < 0)[0])
        raise DataError(
            f"activity{list(where)} (slot, service, row, column) is {values[where]:g}; activity cannot be negative; "
            'if the data is standardised, give unit="z-score"'
        )
