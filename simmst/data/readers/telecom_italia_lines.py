"""Line-by-line checks of official daily files: slow, and run only to say which line is wrong and why."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simmst.data.grids import Grid
from simmst.errors import DataError

ROW = ("cell", "time", "country", "sms_in", "sms_out", "call_in", "call_out", "internet")
SLOT_MS = 600_000
_LEAST_DIGITS = 10  # official numbers have 15 to 17; a last number with fewer was cut
_TAIL = 4096


@dataclass(frozen=True)
class CutLine:
    """The last line of a file, cut in the middle."""

    line: int
    text: str


def last_line_is_cut(path: Path) -> tuple[bool, CutLine | None]:
    """Return whether the file ends with a line end, and its last line if that was cut.

    A last line without a line end counts as whole if it has all fields and the last has at least ten digits.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _TAIL))
        tail = file.read()
    if tail.endswith(b"\n"):
        return True, None
    text = tail.rsplit(b"\n", 1)[-1].decode("utf-8", errors="replace")
    fields = text.split("\t")
    if len(fields) == len(ROW) and sum(c.isdigit() for c in fields[-1].split("e")[0]) >= _LEAST_DIGITS:
        return False, None
    with path.open("rb") as file:
        lines = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    return False, CutLine(lines + 1, text)


def check_lines(path: Path, grid: Grid, *, drop_last: bool = False) -> None:
    """Check every line by itself and against those before it.

    Within a cell times must not go back, so equal rows of a cell are next to each other in time, and only the countries
    of its current slot need to be kept.

    Args:
        path: file to check.
        grid: grid of the valid ids.
        drop_last: whether to leave the last line out, because it was cut.

    Raises:
        DataError: a line is bad; the message names file, line, value and remedy of the first one.
    """
    valid = {int(index) + 1 for index in np.flatnonzero(grid.mask)}
    present: dict[int, tuple[int, set[int]]] = {}
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if drop_last and not raw.endswith(b"\n"):
                return
            where = f"{path}:{number}"
            text = raw.decode("utf-8", errors="replace").rstrip("\r\n")
            fields = text.split("\t")
            if not 4 <= len(fields) <= len(ROW):
                raise DataError(
                    f"{where}: {len(fields)} fields where 4 to 8 are wanted: {text!r}; a line holds {', '.join(ROW)}, "
                    "separated by tabs; repair the line or fetch the file again"
                )
            cell, time, country = (_whole(where, name, field) for name, field in zip(ROW[:3], fields[:3], strict=True))
            for name, field in zip(ROW[3:], fields[3:], strict=False):
                _activity(where, name, field)
            if cell not in valid:
                raise DataError(
                    f"{where}: cell {cell} is not on the {grid.name} grid, {grid.describe()}; give the grid of this "
                    "file or repair the line"
                )
            if time < 0 or time % SLOT_MS:
                raise DataError(
                    f"{where}: time {time} is not a slot start: in epoch milliseconds it must be a multiple of "
                    f"{SLOT_MS} (10 minutes); repair the line or fetch the file again"
                )
            before, countries = present.get(cell, (-1, set()))
            if time < before:
                raise DataError(
                    f"{where}: time {time} of cell {cell} is out of order: it comes after {before}; sort the file by "
                    "cell and time, or fetch it again"
                )
            if time == before and country in countries:
                raise DataError(
                    f"{where}: cell {cell}, time {time}, country {country} is a duplicate of an earlier line; keep one "
                    "of the two, or fetch the file again"
                )
            present[cell] = (time, countries | {country} if time == before else {country})


def _whole(where: str, name: str, field: str) -> int:
    try:
        return int(field)
    except ValueError:
        raise DataError(
            f"{where}: {name} {field!r} is not a whole number; repair the line or fetch the file again"
        ) from None


def _activity(where: str, name: str, field: str) -> None:
    if not field:
        return
    try:
        value = float(field)
    except ValueError:
        raise DataError(
            f"{where}: {name} {field!r} is not a number; repair the line (empty means no activity), or fetch it again"
        ) from None
    if value < 0 or not math.isfinite(value):
        raise DataError(
            f"{where}: {name} {field} is not an activity, which is finite and not negative; repair the line "
            "(empty means no activity) or fetch the file again"
        )
