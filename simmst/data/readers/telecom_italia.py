"""Official daily text files of the Telecom Italia Big Data Challenge (Milan and Trento, 2013)."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from simmst.data.grids import Grid, load_grid
from simmst.data.readers.npz import npz_path, read_npz, source_of, write_npz
from simmst.data.readers.telecom_italia_day import Day, read_day
from simmst.data.readers.telecom_italia_days import DayStore, facts, provenance, sha256_of
from simmst.data.readers.telecom_italia_outline import Outline, check_overlap
from simmst.data.readers.unpacking import members
from simmst.errors import ConfigError, DataError
from simmst.foundation.files import locked, remove_half_written

_AT_ONCE = 2  # files that are read at once: one core sums and writes while another parses
Found = TypeVar("Found")


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

    A file is tab-separated, without a header: square id, slot start in epoch ms, country code, SMS in, SMS out, call
    in, call out, Internet; empty means no activity, trailing tabs may be missing. Countries are summed; SMS = in + out,
    Call = in + out. In a slot for which a file has any row, a cell without a row has activity 0; slots that no file
    covers are NaN. A file that does not end with a line end is a cut download: what it never reached (cells without a
    row, and the last cell after its last row) is NaN, not 0.

    Memory: the dense float32 result (62 days of Milan: 1.1 GB) and the columns of two files (0.4 GB each for 300 MB of
    text).

    Args:
        pattern: file or glob pattern, or several of either; files may be packed as .gz, or as .zip with one or more
            files in it.
        grid: ``"milan"`` or ``"trento"``.
        cells: ``"grid"`` keeps the official grid, ``"observed"`` crops to the bounding box of the cells that have rows
            and masks the others. (Trento without the official list of cells masks those without rows in either case.)
        on_cut: treatment of a file that was cut in the middle of its last line: ``"error"``, or ``"drop"`` to leave
            that line out. A last line without a line end counts as whole if it has all 8 fields and the last has at
            least 10 digits, as the official numbers do.
        cache: .npz file to keep the result in; see `prepare_telecom_italia`.
        progress: function that is called as progress(done, total, file) after each file.

    Raises:
        DataError: there is no file, a file is empty or cut, or a line is bad: fewer than 4 fields or more than 8, a
            field that is not a number, an id outside the grid, a time off the 10-minute grid or going back within a
            cell, the same cell, slot and country twice, negative activity. The message names file, line, value and
            remedy.
        MissingExtraError: polars is not installed.

    Source: Barlacchi et al. 2015, "A multi-source dataset of urban life in the city of Milan and the Province of
    Trentino".
    """
    if cache is not None:
        return read_npz(prepare_telecom_italia(pattern, cache, grid, cells=cells, on_cut=on_cut, progress=progress))
    _check_options(cells, on_cut)
    files = find_files(pattern)
    raster = load_grid(grid)
    days: list[Day] = []
    for path, _, day, last in _in_turn(files, lambda path, member: read_day(path, member, raster, on_cut)):
        check_overlap(days, day)
        days.append(day)
        if progress is not None and last:
            progress(files.index(path) + 1, len(files), path)
    outline = Outline.of(days, raster, cells)
    parts = {number: day.activity for number, day in enumerate(days)}
    days.clear()
    activity = np.empty(outline.shape, dtype=np.float32)  # uses memory as it is filled, while the parts free theirs
    at = 0
    for slab in outline.slabs(parts.__getitem__, parts.__delitem__):
        activity[at : at + len(slab)] = slab
        at += len(slab)
    return outline.attributes(activity)


def prepare_telecom_italia(
    pattern: str | Path | Iterable[str | Path],
    cache: str | Path,
    grid: str = "milan",
    *,
    cells: str = "grid",
    on_cut: str = "error",
    origin: Mapping[str, Any] | None = None,
    progress: Callable[[int, int, Path], None] | None = None,
) -> Path:
    """Bring official daily files into one .npz file, which loads in seconds.

    Finished days are kept in a folder beside the cache until it is whole, so a killed run resumes after the last of
    them. A cache of the same files (names, sizes, times of change) and options is left unchanged; any other cache is
    written again. The header of the file says where the data comes from: see `provenance_of`. Memory: the columns of
    two files.

    Args:
        pattern: daily files, as in `read_telecom_italia`.
        cache: .npz file to write; the suffix is added if missing.
        grid: ``"milan"`` or ``"trento"``.
        cells: ``"grid"`` or ``"observed"``.
        on_cut: ``"error"`` or ``"drop"``.
        origin: facts about the files to record besides their names, sizes and SHA-256.
        progress: function that is called as progress(done, total, file) after each file.

    Returns:
        Path of the cache.

    Raises:
        DataError: as in `read_telecom_italia`; or `cache` exists and is not a cache.
    """
    _check_options(cells, on_cut)
    files = find_files(pattern)
    raster = load_grid(grid)
    cache = npz_path(cache)
    key = _cache_key(files, raster, cells, on_cut)
    store = DayStore.beside(cache, raster, on_cut)
    if cache.exists():
        source = source_of(cache)
        if source == key:
            if store.folder.is_dir():  # left by a run that was killed after it wrote everything
                with locked(store.folder, ConfigError):
                    store.clear()
            return cache
        if source is None:
            raise DataError(f"{cache} exists and is not a cache of daily files; give another path for the cache")
    days: list[Day] = []
    places: list[tuple[Path, str]] = []
    digests: dict[Path, str] = {}

    def found_or_read(path: Path, member: str) -> tuple[Day, str, bool]:
        found = store.find(path, member)
        return (*found, True) if found else (*_read_unchanged(path, member, raster, on_cut), False)

    with locked(store.folder, ConfigError):
        remove_half_written(cache.parent, glob.escape(cache.stem))  # left by a run that was killed
        for path, member, (day, digest, kept), last in _in_turn(files, found_or_read):
            check_overlap(days, day)
            if not kept:
                store.keep(path, member, day, digest)
            days.append(dataclasses.replace(day, activity=np.empty(0, np.float32)))
            digests[path] = digest
            places.append((path, member))
            if progress is not None and last:
                progress(files.index(path) + 1, len(files), path)
        outline = Outline.of(days, raster, cells)
        write_npz(
            outline.attributes(np.zeros((1, *outline.shape[1:]), dtype=np.float32)),
            cache,
            source=key,
            provenance=provenance(digests.items(), dict(origin or {})),
            slabs=(outline.shape, outline.slabs(lambda number: store.activity(*places[number]))),
        )
        store.clear()
    return cache


def _in_turn(files: Sequence[Path], read: Callable[[Path, str], Found]) -> Iterator[tuple[Path, str, Found, bool]]:
    """Read the members of files in turn, each while the one before is processed.

    Yields:
        The file, the member, what was read, and whether the member is the file's last.
    """
    jobs = [(path, member) for path in files for member in members(path)]
    waiting: deque[Future[Found]] = deque()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            for number, (path, member) in enumerate(jobs):
                while len(waiting) < _AT_ONCE and number + len(waiting) < len(jobs):
                    waiting.append(pool.submit(read, *jobs[number + len(waiting)]))
                last = number + 1 == len(jobs) or jobs[number + 1][0] != path
                yield path, member, waiting.popleft().result(), last
        finally:
            for future in waiting:
                future.cancel()


def _read_unchanged(path: Path, member: str, raster: Grid, on_cut: str) -> tuple[Day, str]:
    """Read a day, and return it with the SHA-256 of its file."""
    before = facts(path)
    day, digest = read_day(path, member, raster, on_cut), sha256_of(path)
    if facts(path) != before:
        raise DataError(f"{path} changed while it was read; wait until it is whole, and start again")
    return day, digest


def _check_options(cells: str, on_cut: str) -> None:
    for what, value, known in (("cells", cells, ("grid", "observed")), ("on_cut", on_cut, ("error", "drop"))):
        if value not in known:
            raise ConfigError(f"{what} must be one of {', '.join(known)}, got {value!r}")


def find_files(pattern: str | Path | Iterable[str | Path]) -> list[Path]:
    """Expand files and glob patterns into a sorted list with each file once.

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


def _cache_key(files: list[Path], grid: Grid, cells: str, on_cut: str) -> str:
    listed = [facts(file) for file in files]
    return hashlib.sha256(json.dumps([listed, grid.name, grid.official, cells, on_cut]).encode()).hexdigest()
