"""Conversion of official daily files into one .npz file that records its origin."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from simmst.data.readers.npz import npz_path
from simmst.data.readers.telecom_italia import find_files, prepare_telecom_italia
from simmst.data.readers.unpacking import inner_name
from simmst.errors import ConfigError, DataError
from simmst.foundation.documents import DocumentError, read_json
from simmst.foundation.progress import Progress, quiet
from simmst.jobs.official_sources import ATTRIBUTION, FETCHED, LICENCE, SOURCES, Fetched


def prepare(
    source: str | Path,
    out: str | Path | None = None,
    *,
    grid: str | None = None,
    cells: str = "grid",
    on_cut: str = "error",
    progress: Progress = quiet,
) -> Path:
    """Combine official daily files into one .npz file that every command reads; see `prepare_telecom_italia`.

    Args:
        source: folder, pattern or file of daily files, also as .gz or .zip.
        out: file to write; None takes ``milan.npz`` or ``trento.npz``.
        grid: ``"milan"`` or ``"trento"``; None takes the grid that the file names say.
        cells: ``"grid"``, or ``"observed"`` for the smallest rectangle around the cells that have rows.
        on_cut: ``"error"``, or ``"drop"`` to drop a last line that was cut in the middle.
        progress: callable that gets the number of files done and of all files.

    Returns:
        The path written.

    Raises:
        ConfigError: the grid is unknown, or it is not given and the names of the files do not settle it.
        DataError: there is no daily file, a line is bad, or another file is in the way of the output.
    """
    files = _daily_files(Path(source).expanduser(), grid)
    grid = grid or _grid_of(files)
    cache = npz_path(out or f"{grid}.npz")
    if cache.is_dir():
        raise ConfigError(f"{cache} is a folder; give a file for --out")
    sizes = {path: path.stat().st_size / 1e6 for path in files}
    started, read = time.perf_counter(), 0.0
    progress("prepare", 0, len(files))

    def advance(done: int, total: int, path: Path) -> None:
        nonlocal read
        read += sizes[path]
        progress("prepare", done, total, {"MB/s": read / max(time.perf_counter() - started, 1e-9)})

    origin = _origin(files, grid)
    return prepare_telecom_italia(files, cache, grid, cells=cells, on_cut=on_cut, origin=origin, progress=advance)


def _daily_files(source: Path, grid: str | None) -> list[Path]:
    if grid is not None and grid not in SOURCES:
        raise ConfigError(f"unknown grid {grid!r}; give one of {', '.join(SOURCES)}")
    if not source.is_dir():
        return find_files(source)
    text = [path for path in sorted(source.iterdir()) if path.is_file() and _is_text(path)]
    prefixes = tuple(one.prefix for one in SOURCES.values() if grid in (None, one.grid))
    files = [path for path in text if path.name.startswith(prefixes)] or text
    if not files:
        inside = sorted(path for path in source.iterdir() if path.is_dir() and any(map(_is_text, path.iterdir())))
        hint = f"; {inside[0]} has some, give that" if inside else ""
        raise DataError(f"{source} has no daily file, such as {SOURCES[grid or 'milan'].prefix}2013-11-01.txt{hint}")
    return files


def _is_text(path: Path) -> bool:
    return not path.name.startswith(".") and (
        Path(inner_name(path)).suffix.lower() == ".txt" or path.suffix.lower() == ".zip"
    )


def _grid_of(files: list[Path]) -> str:
    grids = {name for name, one in SOURCES.items() if any(path.name.startswith(one.prefix) for path in files)}
    if len(grids) != 1:
        what = "belong to both Milan and Trento" if grids else "do not name their grid"
        raise ConfigError(f"the files {what}; give --grid milan or --grid trento")
    return grids.pop()


def _origin(files: list[Path], grid: str) -> dict[str, Any]:
    """Return DOI and licence, and whether every file is unchanged since `fetch` verified it."""
    checked = all(_is_as_fetched(path, grid) for path in files)
    doi = SOURCES[grid].doi
    return {"doi": doi, "doi_checked": checked, "licence": LICENCE, "attribution": ATTRIBUTION}


def _is_as_fetched(path: Path, grid: str) -> bool:
    record = path.with_name(FETCHED)
    if not record.is_file():
        return False
    try:
        fetched = read_json(record, Fetched)
    except DocumentError as error:
        raise DataError(f"{record} is damaged ({error}); fetch again, or remove it") from error
    known = fetched.files.get(path.name) if fetched.doi == SOURCES[grid].doi else None
    found = path.stat()
    return known is not None and (known.bytes, known.modified_ns) == (found.st_size, found.st_mtime_ns)
