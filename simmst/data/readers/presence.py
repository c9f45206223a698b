"""Files of users present in the zones of a town, by wall-clock time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from simmst.data.calendar import utc_of_wall_clock
from simmst.data.readers.archive import check_numbers, check_values, read_archive
from simmst.data.readers.arrays import read_arrays
from simmst.errors import DataError

PRESENCE_ARRAYS = ("users", "zone", "time_local_s")
_MOST_SLOTS = 100  # slots per row: more come from a wrong time, not a gap


def read_presence(
    path: str | Path, *, timezone: str = "Europe/Paris", country: str | None = "FR", service: str = "presence"
) -> dict[str, Any]:
    """Read the attributes of a data set of unrelated places from a ``.npz`` file of users present.

    Times are wall-clock times. Where clocks are put back, the order of the rows distinguishes the two hours of the same
    name; where they are put forward, the hour that does not exist may appear as rows of NaN. Slots without a row are
    missing. Users are counted, not summed over time: `TrafficDataset.resample` gives user-slots, not users.

    Args:
        path: file with ``users`` (T, Z), NaN where missing, ``zone`` (Z,) and ``time_local_s`` (T,).
        timezone: IANA name of the local time zone.
        country: ISO code of the country whose public holidays count, or None.
        service: name of the service.

    Raises:
        DataError: an array is missing, or has a shape, type or value that does not fit; the message names the file and
            the value.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "zones.npz"
        >>> np.savez(path, users=np.ones((3, 2)), zone=["a", "b"], time_local_s=np.array([0, 1800, 5400]))
        >>> found = read_presence(path)
        >>> found["activity"].shape, found["activity"][:, 0, 0, 0].tolist()
        ((4, 1, 1, 2), [1.0, 1.0, nan, 1.0])
    """
    path = Path(path)
    arrays = read_archive(path)
    missing = [key for key in PRESENCE_ARRAYS if key not in arrays]
    if missing:
        raise DataError(
            f"{path} holds no presence: it has no {' and no '.join(missing)}; it needs {', '.join(PRESENCE_ARRAYS)}"
        )
    users, zone, shown = (arrays[key] for key in PRESENCE_ARRAYS)
    check_numbers(path, "users", users, "(T, Z)")
    check_values(path, "users", users)
    steps, zones = users.shape
    if zone.shape != (zones,) or zone.dtype.kind != "U" or len(np.unique(zone)) < zones:
        raise DataError(f"{path}: zone {zone.tolist()} must be {zones} distinct names, one for each column of users")
    if shown.shape != (steps,) or shown.dtype.kind not in "iu" or steps < 2:
        raise DataError(
            f"{path}: time_local_s is {shown.dtype} {shown.shape}; wanted whole seconds, at least two, one for each of "
            f"the {steps} rows of users"
        )
    slots, first, step, rows = _slots(path, shown, np.isnan(users).all(axis=1), timezone)
    whole = np.full((int(slots[-1]) + 1, 1, 1, zones), np.nan, dtype=np.float32)
    whole[slots, 0, 0] = users[rows]
    return read_arrays(
        whole,
        first + np.arange(len(whole)) * np.timedelta64(step, "s"),
        services=[service],
        geometry="points",
        timezone=timezone,
        country=country,
        unit="users",
        name=path.stem,
        cell_name=zone.reshape(1, zones),
    )


def _slots(
    path: Path, shown: np.ndarray, empty: np.ndarray, timezone: str
) -> tuple[np.ndarray, np.datetime64, int, np.ndarray]:
    """Return the slot number of each row, the first slot's start, the seconds of a slot, and which rows are kept."""
    try:
        time = utc_of_wall_clock(shown, timezone)
    except DataError as error:
        raise DataError(f"{path}: time_local_s: {error}") from error
    unknown = np.isnat(time)
    if (unknown & ~empty).any():
        i = int((unknown & ~empty).argmax())
        raise DataError(
            f"{path}: time_local_s[{i}] = {shown[i].astype('datetime64[s]')} does not exist in {timezone}, where "
            "clocks are put forward; leave that row out"
        )
    rows = np.flatnonzero(~unknown)
    time = time[rows]
    gaps, counts = np.unique(np.diff(time).astype(np.int64), return_counts=True)
    if not len(gaps):
        raise DataError(f"{path}: time_local_s has fewer than two slots")
    step = int(gaps[counts.argmax()])
    past = (time - time[0]).astype(np.int64)
    if (past % step).any():
        i = int((past % step != 0).argmax())
        wrong = shown[rows[i]].astype("datetime64[s]")
        raise DataError(
            f"{path}: time_local_s[{rows[i]}] = {wrong} is off the slots of {step} s; bring times to one grid"
        )
    if past[-1] // step > _MOST_SLOTS * len(time):
        i = int(np.diff(past).argmax()) + 1
        wrong = shown[rows[i]].astype("datetime64[s]")
        raise DataError(
            f"{path}: time_local_s[{rows[i]}] = {wrong} is {past[i] // step} slots after the first; check it"
        )
    return past // step, time[0], step, rows
