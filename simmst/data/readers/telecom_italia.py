"""Official daily text files of the Telecom Italia Big Data Challenge (Milan and Trento, 2013)."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simmst.data.grids import Grid, load_grid
from simmst.data.readers.arrays import read_arrays
from simmst.data.readers.npz import npz_path, read_npz, source_of, write_npz
from simmst.data.readers.telecom_italia_lines import ROW, SLOT_MS, check_lines, last_line_is_cut
from simmst.data.readers.unpacking import members, plain_file
from simmst.errors import ConfigError, DataError
from simmst.foundation.extras import import_extra

if TYPE_CHECKING:
    import polars

SERVICES = ("call", "sms", "internet")
_LONGEST_SPAN = 3 * 366 * 144  # slots; more than this between two rows is a wrong time stamp, not a series


@dataclass
class _Part:
    """One file: activity (slots, 3, H * W) from slot `first` on (slots of 10 min since 1970), NaN where not covered."""

    path: Path
    first: int
    covered: np.ndarray  # bool (slots,)
    activity: np.ndarray


def read_telecom_italia(
    pattern: str | Path | Iterable[str | Path],
    grid: str = "milan",
    *,
    cells: str = "grid",
    on_cut: str = "error",
    cache: str | Path | None = None,
    progress: Callable[[int, int, Path], None] | None = None,
) -> dict[str, Any]:
    """Read official daily files, one at a time, into call, SMS and Internet activity at 10 minutes.

    A file is tab separated without header: square id, slot start in epoch ms, country code, SMS in, SMS out, call in,
    call out, Internet; empty means no activity, trailing tabs may be missing. Countries are summed; SMS = in + out,
    Call = in + out. In a slot of which a file has any row, a cell without one has activity 0; slots no file covers are
    NaN. A file that does not end with a line end is a cut download: what it never reached (cells without a row, and the
    last cell after its last row) is NaN, not 0.

    Memory: the dense float32 result (62 days of Milan: 1.1 GB) and one file's columns (0.7 GB for 300 MB of text).

    Args:
        pattern: a file, a glob pattern, or several of either; files may be packed as .gz, or as .zip with one
            or more in it.
        grid: ``"milan"`` or ``"trento"``.
        cells: ``"grid"`` keeps the official grid, ``"observed"`` crops to the bounding box of the cells that have rows
            and masks the others. (Trento without the official list of cells masks those without rows in either case.)
        on_cut: what to do when a file was cut in the middle of its last line: ``"error"``, or ``"drop"`` that line. A
            last line without line end is taken as whole when it has all 8 fields and the last has at least 10 digits,
            as the official numbers do.
        cache: an .npz file to keep the result in; it is read instead when it was made from the same files (names,
            sizes, times of change) and options, and written anew otherwise.
        progress: called as progress(done, total, file) after each file.

    Raises:
        DataError: no file, an empty file, a cut file, or a bad line: fewer than 4 fields or more than 8, a field that
            is no number, an id outside the grid, a time off the 10-minute grid or going back within a cell, the same
            cell, slot and country twice, negative activity. The message names file, line, value and remedy.
        MissingExtraError: polars is not installed.

    Source: Barlacchi et al. 2015, "A multi-source dataset of urban life in the city of Milan and the Province of
    Trentino".
    """
    for what, value, known in (("cells", cells, ("grid", "observed")), ("on_cut", on_cut, ("error", "drop"))):
        if value not in known:
            raise ConfigError(f"{what} must be one of {', '.join(known)}, got {value!r}")
    files = find_files(pattern)
    raster = load_grid(grid)
    key = _cache_key(files, raster, cells, on_cut)
    if cache is not None and npz_path(cache).exists():
        source = source_of(npz_path(cache))
        if source == key:
            return read_npz(npz_path(cache))
        if source is None:
            raise DataError(
                f"{npz_path(cache)} is there and is no cache of daily files; give another path for the cache"
            )
    parts: list[_Part] = []
    seen = np.zeros(raster.mask.size, dtype=bool)
    for done, path in enumerate(files, start=1):
        for member in members(path):
            parts.append(_unpack_and_read(path, member, raster, on_cut, seen))
            _check_overlap(parts)
        if progress is not None:
            progress(done, len(files), path)
    attributes = _assemble(parts, raster, seen, cells)
    if cache is not None:
        write_npz(attributes, cache, source=key)
    return attributes


def find_files(pattern: str | Path | Iterable[str | Path]) -> list[Path]:
    """Expand files and glob patterns; sorted, each file once.

    Raises:
        DataError: a pattern matches nothing, or a file is missing.
    """
    patterns = [pattern] if isinstance(pattern, (str, Path)) else list(pattern)
    if not patterns:
        raise DataError("no file was given; give daily files or a pattern such as 'data/sms-call-internet-mi-*.txt'")
    found: set[Path] = set()
    for item in patterns:
        if Path(item).is_dir():
            raise DataError(f"{item} is a folder; give a pattern of its files, such as '{Path(item) / '*.txt'}'")
        matches = [str(item)] if Path(item).is_file() else glob.glob(str(item), recursive=True)  # noqa: PTH207
        matches = [match for match in matches if Path(match).is_file()]
        if not matches:
            what = "no file matches the pattern" if glob.has_magic(str(item)) else "there is no file"
            raise DataError(f"{what} {item} (looked in {Path.cwd()}); check the path")
        found.update(Path(match) for match in matches)
    return sorted(found)


def _unpack_and_read(path: Path, member: str, grid: Grid, on_cut: str, seen: np.ndarray) -> _Part:
    """Read and check one file, which may be packed; messages name the file that was given."""
    with plain_file(path, member) as plain:
        if plain == path:
            return _read_file(path, grid, on_cut, seen)
        shown = path / member if path.suffix.lower() == ".zip" else path
        try:
            return dataclasses.replace(_read_file(plain, grid, on_cut, seen), path=shown)
        except DataError as error:
            raise DataError(str(error).replace(str(plain), str(shown))) from None


def _read_file(path: Path, grid: Grid, on_cut: str, seen: np.ndarray) -> _Part:
    """Read and check one file; marks its cells in `seen` (H * W)."""
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
        frame = _parse(path, None if cut is None else cut.line - 1)
    except pl.exceptions.PolarsError as error:
        check_lines(path, grid, drop_last=cut is not None)
        raise DataError(f"{path} cannot be parsed ({error}); fetch it again") from error
    cell = frame["cell"].to_numpy()
    if len(cell) == 0:
        raise DataError(f"{path} has no whole line; fetch it again")
    if _suspicious(frame, grid):
        check_lines(path, grid, drop_last=cut is not None)
    slot = frame["time"].to_numpy() // SLOT_MS
    first, count = int(slot.min()), int(slot.max() - slot.min()) + 1
    if count > _LONGEST_SPAN:
        raise DataError(
            f"{path} has slots from {_when(first)} to {_when(first + count - 1)} UTC; a time stamp must be wrong: look "
            "for the lines of the first or last of these"
        )
    size = grid.mask.size
    place = (slot - first) * size + (cell - 1)
    covered = np.bincount(slot - first, minlength=count) > 0
    activity = np.empty((count, len(SERVICES), size), dtype=np.float32)
    for k, fields in enumerate((("call_in", "call_out"), ("sms_in", "sms_out"), ("internet",))):
        weights = sum(frame[field].fill_null(0.0).to_numpy() for field in fields)
        activity[:, k] = np.bincount(place, weights=weights, minlength=count * size).reshape(count, size)
    activity[~covered] = np.nan
    present = np.bincount(cell - 1, minlength=size) > 0
    if not ends_whole:
        activity[:, :, ~present] = np.nan
        activity[slot[-1] - first + 1 :, :, cell[-1] - 1] = np.nan
    seen |= present
    return _Part(path, first, covered, activity)


def _parse(path: Path, rows: int | None) -> polars.DataFrame:
    pl = import_extra("polars", extra="forecast")
    kinds = {name: pl.Int64 if name in ("cell", "time", "country") else pl.Float64 for name in ROW}
    with path.open("rb") as file:
        short = file.readline().count(b"\t") < len(ROW) - 1
    # polars takes the number of columns from the first line; where its trailing tabs are missing, a header stands in.
    source = "\t".join(ROW).encode() + b"\n" + path.read_bytes() if short else path
    frame: polars.DataFrame = pl.read_csv(
        source, separator="\t", has_header=short, schema=kinds, quote_char=None, n_rows=rows
    )
    return frame


def _suspicious(frame: polars.DataFrame, grid: Grid) -> bool:
    """Whether any line may break a rule; the quick test over whole columns."""
    pl = import_extra("polars", extra="forecast")
    keys = frame.select(pl.any_horizontal(pl.col("cell", "time", "country").is_null()).any()).item()
    numbers = pl.col("sms_in", "sms_out", "call_in", "call_out", "internet")
    no_number = frame.select(pl.all_horizontal(numbers.is_null()).any()).item()
    bad_number = frame.select(pl.any_horizontal(((numbers < 0) | ~numbers.is_finite()).any())).item()
    if keys or no_number or bad_number:
        return True
    cell, time = frame["cell"].to_numpy(), frame["time"].to_numpy()
    if not grid.contains(cell).all() or (time % SLOT_MS).any() or time.min() < 0:
        return True
    order = np.argsort(cell.astype(np.uint16), kind="stable")  # ids fit; 16 bits sort by radix
    cell, time, country = cell[order], time[order], frame["country"].to_numpy()[order]
    same = cell[1:] == cell[:-1]
    if (same & (time[1:] < time[:-1])).any():
        return True
    # Sorted by cell and time now, so equal rows can only be told apart by country.
    run = np.concatenate([[0], np.cumsum(~same | (time[1:] != time[:-1]))])
    _, code = np.unique(country, return_inverse=True)
    row_key = np.sort(run * (int(code.max()) + 1) + code)
    return bool((row_key[1:] == row_key[:-1]).any())


def _check_overlap(parts: list[_Part]) -> None:
    new = parts[-1]
    for old in parts[:-1]:
        low, high = max(old.first, new.first), min(old.first + len(old.covered), new.first + len(new.covered))
        if low >= high:
            continue
        both = old.covered[low - old.first : high - old.first] & new.covered[low - new.first : high - new.first]
        if both.any():
            raise DataError(
                f"{new.path} and {old.path} both have rows of the slot {_when(low + int(both.argmax()))} UTC; "
                "give each day once"
            )


def _assemble(parts: list[_Part], grid: Grid, seen: np.ndarray, cells: str) -> dict[str, Any]:
    first = min(part.first for part in parts)
    count = max(part.first + len(part.covered) for part in parts) - first
    if count > _LONGEST_SPAN:
        raise DataError(
            f"the files reach from {_when(first)} to {_when(first + count - 1)} UTC, with {len(parts)} files between; "
            "one of them belongs to another time"
        )
    height, width = grid.mask.shape
    mask = grid.mask if cells == "grid" and grid.official else seen.reshape(height, width)
    low, high = np.zeros(2, dtype=np.int64), np.array([height, width])
    if cells == "observed":
        places = np.argwhere(mask)
        low, high = places.min(axis=0), places.max(axis=0) + 1
    box = (slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1])))
    activity = np.full((count, len(SERVICES), *(high - low).tolist()), np.nan, dtype=np.float32)
    while parts:  # freed one by one
        part = parts.pop()
        piece = part.activity.reshape(-1, len(SERVICES), height, width)[:, :, box[0], box[1]]
        view = activity[part.first - first : part.first - first + len(piece)]
        view[part.covered] = piece[part.covered]
    mask = np.ascontiguousarray(mask[box])
    activity[:, :, ~mask] = np.nan
    cell_id, lonlat = grid.crop(low, high)
    seconds = (first + np.arange(count, dtype=np.int64)) * (SLOT_MS // 1000)
    return read_arrays(
        activity,
        seconds.astype("datetime64[s]"),
        services=SERVICES,
        mask=mask,
        cell_id=cell_id,
        cell_size_m=grid.cell_size_m,
        lonlat=lonlat,
        name=grid.name,
    )


def _when(slot: int) -> np.datetime64:
    return np.datetime64(slot * (SLOT_MS // 1000), "s")


def _cache_key(files: list[Path], grid: Grid, cells: str, on_cut: str) -> str:
    facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps([facts, grid.name, grid.official, cells, on_cut]).encode()).hexdigest()
