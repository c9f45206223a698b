"""One official daily file: its columns in blocks, checked as a whole, summed to activity by slot and cell."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simmst.data.grids import Grid
from simmst.data.readers.telecom_italia_lines import ROW, SLOT_MS, check_lines, last_line_is_cut
from simmst.data.readers.unpacking import plain_file
from simmst.errors import DataError
from simmst.foundation.extras import import_extra

SERVICES = ("call", "sms", "internet")
LONGEST_SPAN = 3 * 366 * 144  # slots; more than this between two rows is a wrong time stamp, not a series
_BLOCK = 16 << 20  # bytes of text that are parsed at once; the memory of larger blocks would not be reused
_AHEAD = 2  # blocks that are parsed while an earlier one is processed
_KEYS = ROW[:3]
_NUMBERS = ROW[3:]
_SUMS = {"call": ("call_in", "call_out"), "sms": ("sms_in", "sms_out"), "internet": ("internet",)}


@dataclass(frozen=True, eq=False)
class Day:
    """One file: activity (slots, 3, H * W) from slot `first` on (slots of 10 min since 1970), NaN where not covered.

    Attributes:
        path: the file, as messages name it.
        first: its first slot.
        covered: bool (slots,): whether the file has any row of the slot.
        seen: bool (H * W,): whether the file has any row of the cell.
        activity: float32 (slots, 3, H * W).
    """

    path: Path
    first: int
    covered: np.ndarray
    seen: np.ndarray
    activity: np.ndarray


class _BadLineError(Exception):
    """A block breaks a rule; the slow pass finds the line that does."""


def read_day(path: Path, member: str, grid: Grid, on_cut: str) -> Day:
    """Read and check one file, which may be packed; messages name the given file.

    Memory: some 30 bytes for each row (0.15 GB for 300 MB of text), twice that while the rows are put together, and a
    few blocks of text.

    Raises:
        DataError: the file is empty, cut or damaged, or has a bad line.
        MissingExtraError: polars is not installed.
    """
    with plain_file(path, member) as plain:
        if plain == path:
            return _read(path, grid, on_cut)
        shown = path / member if path.suffix.lower() == ".zip" else path
        try:
            return dataclasses.replace(_read(plain, grid, on_cut), path=shown)
        except DataError as error:
            raise DataError(str(error).replace(str(plain), str(shown))) from None


def when(slot: int) -> np.datetime64:
    """Return the start of a slot."""
    return np.datetime64(slot * (SLOT_MS // 1000), "s")


def _read(path: Path, grid: Grid, on_cut: str) -> Day:
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; fetch it again")
    ends_whole, cut = last_line_is_cut(path)
    if cut is not None and on_cut == "error":
        raise DataError(
            f"{path}:{cut.line}: the file was cut in the middle of its last line, {cut.text!r}; fetch it again, or "
            'give on_cut="drop" to leave that line out'
        )
    pl = import_extra("polars", extra="forecast")
    try:
        rows = _Rows.gathered(path, grid, drop_last=cut is not None)
    except (_BadLineError, pl.exceptions.PolarsError) as error:
        check_lines(path, grid, drop_last=cut is not None)
        raise DataError(f"{path} cannot be parsed ({error}); fetch it again") from error
    if len(rows.cell) == 0:
        raise DataError(f"{path} has no whole line; fetch it again")
    if not rows.in_order() and rows.has_disorder():
        check_lines(path, grid, drop_last=cut is not None)
        raise DataError(f"{path} has rows out of order, or twice; fetch it again")
    return _summed(path, rows, grid, ends_whole)


def _summed(path: Path, rows: _Rows, grid: Grid, ends_whole: bool) -> Day:
    cell, slot = rows.cell, rows.slot
    first, count = int(slot.min()), int(slot.max() - slot.min()) + 1
    if count > LONGEST_SPAN:
        raise DataError(
            f"{path} has slots from {when(first)} to {when(first + count - 1)} UTC; a time stamp must be wrong: look "
            "for the lines of the first or last of these"
        )
    size = grid.mask.size
    place = (slot[rows.starts] - first) * size + (cell[rows.starts] - 1)
    covered = np.bincount(slot[rows.starts] - first, minlength=count) > 0
    activity = np.empty((count, len(SERVICES), size), dtype=np.float32)
    for k, weights in enumerate(rows.sums):
        activity[:, k] = np.bincount(place, weights=weights, minlength=count * size).reshape(count, size)
    activity[~covered] = np.nan
    seen = np.zeros(size, dtype=bool)
    seen[cell - 1] = True
    if not ends_whole:
        activity[:, :, ~seen] = np.nan
        activity[int(slot[-1]) - first + 1 :, :, int(cell[-1]) - 1] = np.nan
    return Day(path, first, covered, seen, activity)


@dataclass(frozen=True, eq=False)
class _Rows:
    """The rows of a file: keys (n,), and the sums of the services, float64 (m,) each, over rows of one cell and slot.

    Rows of one cell and slot are together in the published files. Where they are not, or where a block ends between
    them, they have several sums.
    """

    cell: np.ndarray  # int16: the grids have fewer than 2^15 cells
    slot: np.ndarray
    country: np.ndarray
    starts: np.ndarray  # int64 (m,), the first row of each sum
    sums: list[np.ndarray]

    @classmethod
    def gathered(cls, path: Path, grid: Grid, *, drop_last: bool) -> _Rows:
        """Parse a file block by block.

        Raises:
            _BadLineError: a line breaks a rule.
        """
        parts: list[_Rows] = []
        waiting: deque[Future[_Rows]] = deque()
        with ThreadPoolExecutor(_AHEAD) as pool:
            try:
                for block in _blocks(path, drop_last=drop_last):
                    waiting.append(pool.submit(_parse, block, grid))
                    if len(waiting) > _AHEAD:
                        parts.append(waiting.popleft().result())
                parts.extend(future.result() for future in waiting)
            finally:
                for future in waiting:
                    future.cancel()
        if not parts:
            none = np.empty(0, dtype=np.int64)
            return cls(none, none, none, none, [])
        before = np.cumsum([0, *(len(part.cell) for part in parts)])
        return cls(
            np.concatenate([part.cell for part in parts]),
            np.concatenate([part.slot for part in parts]),
            np.concatenate([part.country for part in parts]),
            np.concatenate([part.starts + rows for part, rows in zip(parts, before, strict=False)]),
            [np.concatenate([part.sums[k] for part in parts]) for k in range(len(SERVICES))],
        )

    def in_order(self) -> bool:
        """Return whether each cell's rows are together and ascend by slot and country, as in the published files."""
        same = self.cell[1:] == self.cell[:-1]
        heads = self.cell[np.concatenate([[True], ~same])]
        if len(np.unique(heads)) != len(heads):
            return False
        ascends = self.slot[1:] > self.slot[:-1]
        ascends |= (self.slot[1:] == self.slot[:-1]) & (self.country[1:] > self.country[:-1])
        return bool((ascends | ~same).all())

    def has_disorder(self) -> bool:
        """Return whether time goes back within a cell, or a cell, slot and country appears twice."""
        order = np.argsort(self.cell, kind="stable")  # 16 bits sort by radix
        cell, slot, country = self.cell[order], self.slot[order], self.country[order]
        same = cell[1:] == cell[:-1]
        if (same & (slot[1:] < slot[:-1])).any():
            return True
        # Sorted by cell and time now, so equal rows can only be told apart by country.
        run = np.concatenate([[0], np.cumsum(~same | (slot[1:] != slot[:-1]))])
        _, code = np.unique(country, return_inverse=True)
        row_key = np.sort(run * (int(code.max()) + 1) + code)
        return bool((row_key[1:] == row_key[:-1]).any())


def _blocks(path: Path, *, drop_last: bool) -> Iterator[bytes]:
    """Yield whole lines, about `_BLOCK` bytes at a time, under a header.

    polars takes the number of columns from the first line, which may lack trailing tabs; the header stands in for it.
    """
    header = "\t".join(ROW).encode() + b"\n"
    rest = b""
    with path.open("rb") as file:
        while text := file.read(_BLOCK):
            end = text.rfind(b"\n") + 1
            if end:
                yield b"".join((header, rest, memoryview(text)[:end]))
                rest = text[end:]
            else:
                rest += text
    if rest and not drop_last:
        yield header + rest + b"\n"


def _parse(block: bytes, grid: Grid) -> _Rows:
    """Parse whole lines under a header, and check each by itself."""
    pl = import_extra("polars", extra="forecast")
    kinds = {name: pl.Int64 if name in _KEYS else pl.Float64 for name in ROW} | {"cell": pl.Int16}
    frame = pl.read_csv(block, separator="\t", has_header=True, schema=kinds, quote_char=None)
    if frame.height != block.count(b"\n") - 1:
        raise _BadLineError("a line is empty")
    if frame.height == 0:
        raise _BadLineError("there is no line")
    empty = pl.all_horizontal(pl.col(_NUMBERS).is_null())
    found = frame.select(
        keyless=pl.any_horizontal(pl.col(_KEYS).is_null().any()),
        empty=empty.any(),
        negative=pl.any_horizontal((pl.col(name) < 0).any() for name in _NUMBERS),
    )
    if found["keyless"][0] or found["negative"][0]:
        raise _BadLineError("a field is empty or negative")
    if found["empty"][0]:
        lines = block.split(b"\n")
        if any(lines[i + 1].count(b"\t") < len(_KEYS) for i in frame.select(empty.arg_true()).to_series()):
            raise _BadLineError("a line has too few fields")
    known = {name: frame[name].fill_null(0.0).to_numpy() for name in _NUMBERS}
    cell, time = frame["cell"].to_numpy(), frame["time"].to_numpy()
    if not grid.contains(cell).all():
        raise _BadLineError("a cell is not on the grid")
    slot = time // SLOT_MS
    if (slot * SLOT_MS != time).any() or time.min() < 0:
        raise _BadLineError("a time is not the start of a slot")
    starts = np.flatnonzero(np.concatenate([[True], (slot[1:] != slot[:-1]) | (cell[1:] != cell[:-1])]))
    sums = [np.add.reduceat(sum(known[field] for field in fields), starts) for fields in _SUMS.values()]
    if not all(np.isfinite(values).all() for values in sums):
        raise _BadLineError("a number is not finite")
    return _Rows(cell, slot, frame["country"].to_numpy(), starts, sums)
