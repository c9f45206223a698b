"""Files of unrelated patches of an operator's cells, side by side on one grid."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from simmst.data.calendar import DAY_MINUTES, utc_offset_seconds
from simmst.data.readers.archive import check_numbers, check_values, read_archive
from simmst.data.readers.arrays import read_arrays
from simmst.data.readers.undated import find_saturday
from simmst.errors import DataError

PATCH_ARRAYS = ("traffic", "mask", "step_minutes")
# Masked columns between two patches, so that a neighbourhood of up to 9 x 9 cells sees only one patch.
PATCH_GAP = 4
# The published weeks have no date, and start at a local midnight. They are put into a November without public holidays.
_MONDAY = np.datetime64("2013-11-04")
_NAME = re.compile(r"(\d+)/\d+,\d+")


def read_patches(
    path: str | Path, *, start: str | None = None, timezone: str = "Asia/Shanghai", service: str = "internet"
) -> dict[str, Any]:
    """Read the attributes of a data set from a ``.npz`` file of patches.

    The patches lie side by side, with 4 masked columns between them, so that no neighbourhood of up to 9 x 9 cells
    sees two patches. Cells are named ``"patch/row,column"``, all counted from 0. Values outside the mask are not read.

    Args:
        path: file with ``traffic`` (P, T, H, W), ``mask`` (P, H, W), False where a cell has no base station, and
            ``step_minutes``.
        start: local date of the first slot. The default is for files that were published without a date: **the date is
            assumed**, in November 2013 and without public holidays. The weekday is the one that puts the two days with
            late mornings on a weekend (`find_saturday`), or Monday if no two days stand apart.
        timezone: IANA name of the local time zone.
        service: name of the service.

    Raises:
        DataError: an array is missing, or has a shape, type or value that does not fit; the message names the file and
            the value.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "two.npz"
        >>> np.savez(path, traffic=np.ones((2, 48, 3, 3)), mask=np.ones((2, 3, 3), bool), step_minutes=30)
        >>> found = read_patches(path)
        >>> found["activity"].shape, str(found["cell_name"][2, 8])
        ((48, 1, 3, 10), '1/2,1')
    """
    path = Path(path)
    arrays = read_archive(path)
    missing = [key for key in PATCH_ARRAYS if key not in arrays]
    if missing:
        raise DataError(
            f"{path} holds no patches: it has no {' and no '.join(missing)}; it needs {', '.join(PATCH_ARRAYS)}"
        )
    traffic, mask, step = _checked(path, *(arrays[key] for key in PATCH_ARRAYS))
    patches, steps, height, width = traffic.shape
    whole = patches * (width + PATCH_GAP) - PATCH_GAP
    activity = np.full((steps, 1, height, whole), np.nan, dtype=np.float32)
    inside = np.zeros((height, whole), dtype=bool)
    names = np.full((height, whole), "", dtype=f"<U{len(f'{patches}/{height},{width}')}")
    for number in range(patches):
        columns = slice(number * (width + PATCH_GAP), number * (width + PATCH_GAP) + width)
        activity[:, 0, :, columns] = np.where(mask[number], traffic[number], np.nan)
        inside[:, columns] = mask[number]
        names[:, columns] = [[f"{number}/{row},{column}" for column in range(width)] for row in range(height)]
    date = _assumed_start(activity[:, 0, inside], DAY_MINUTES // step) if start is None else start
    midnight = np.datetime64(date, "s").reshape(1)
    first = midnight - utc_offset_seconds(midnight, timezone).astype("timedelta64[s]")
    return read_arrays(
        activity,
        first + np.arange(steps) * np.timedelta64(step * 60, "s"),
        services=[service],
        mask=inside,
        timezone=timezone,
        country=None,
        unit="unknown unit",
        name=path.stem,
        cell_name=names,
    )


def _assumed_start(activity: np.ndarray, steps_per_day: int) -> str:
    """Return the date of the first slot of a series (T, C) that was published without one."""
    saturday = find_saturday(activity, steps_per_day)
    weekday = 0 if saturday is None else (5 - saturday) % 7
    return str(_MONDAY + np.timedelta64(weekday, "D"))


def patch_numbers(cell_name: np.ndarray | None) -> np.ndarray | None:
    """Return the number of each cell's patch, read from its name, int64 (H, W), -1 between the patches.

    Returns None where the names are not those that `read_patches` gives.

    Example:
        >>> patch_numbers(np.array([["0/0,0", "", "", "", "", "1/0,0"]])).tolist()
        [[0, -1, -1, -1, -1, 1]]
        >>> patch_numbers(np.array([["Ala"]])) is None
        True
    """
    if cell_name is None:
        return None
    found = [_NAME.fullmatch(name) for name in cell_name.reshape(-1).tolist()]
    if any(one is None and name for one, name in zip(found, cell_name.reshape(-1).tolist(), strict=True)):
        return None
    return np.array([-1 if one is None else int(one[1]) for one in found], dtype=np.int64).reshape(cell_name.shape)


def _checked(path: Path, traffic: np.ndarray, mask: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the three arrays, checked to fit each other."""
    if traffic.ndim != 4 or mask.shape != (traffic.shape[0], *traffic.shape[2:]):
        raise DataError(f"{path}: traffic {traffic.shape} and mask {mask.shape} must be (P, T, H, W) and (P, H, W)")
    check_numbers(path, "traffic", traffic, "(P, T, H, W)")
    if traffic.shape[1] < 2:
        raise DataError(f"{path}: traffic {traffic.shape} has only one slot; at least two are needed")
    if mask.dtype.kind not in "biu" or not np.isin(mask, (0, 1)).all():
        odd = mask.dtype if mask.dtype.kind not in "biu" else mask[~np.isin(mask, (0, 1))][0]
        raise DataError(f"{path}: mask holds {odd}; wanted bool, True where a cell is")
    inside = mask.astype(bool)
    if not inside.any(axis=(1, 2)).all():
        empty = int((~inside.any(axis=(1, 2))).argmax())
        raise DataError(f"{path}: mask[{empty}] has no cell; leave that patch out")
    minutes = step.item() if step.size == 1 and step.dtype.kind in "iuf" else None
    if minutes is None or minutes < 1 or minutes != int(minutes) or DAY_MINUTES % int(minutes):
        raise DataError(
            f"{path}: step_minutes is {step.tolist()}; wanted one whole number of minutes that divides a day"
        )
    check_values(path, "traffic", np.where(inside[:, None], traffic, 0))
    return traffic, inside, int(minutes)
