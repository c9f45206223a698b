"""Finished days of official files, kept beside the cache they become so that a killed run resumes after them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simmst.data.grids import Grid
from simmst.data.readers.archive import read_archive
from simmst.data.readers.telecom_italia_day import Day
from simmst.errors import DataError
from simmst.foundation.files import remove_half_written, write_atomically

_VERSION = 1
_SUFFIX = ".day.npz"


def facts(file: Path) -> tuple[str, int, int]:
    """Return what identifies an unchanged file: its path, size and time of change."""
    found = file.stat()
    return str(file.resolve()), found.st_size, found.st_mtime_ns


@dataclass(frozen=True)
class DayStore:
    """The folder of the finished days, each in a file of its own, whole or absent.

    Attributes:
        folder: folder that holds the days.
        grid: grid of their cells.
        on_cut: treatment of cut files.
    """

    folder: Path
    grid: Grid
    on_cut: str

    @classmethod
    def beside(cls, cache: Path, grid: Grid, on_cut: str) -> DayStore:
        """Return the store of a cache: a folder with the name of the cache and ``.days``."""
        return cls(cache.with_name(cache.name + ".days"), grid, on_cut)

    def find(self, file: Path, member: str) -> tuple[Day, str] | None:
        """Return a day without its activity, and the SHA-256 of its file; None if the day is not finished."""
        path = self._path(file, member)
        if not path.is_file():
            return None
        try:
            arrays = read_archive(path, "header", "covered", "seen")
            header = json.loads(str(arrays["header"]))
            day = Day(Path(header["path"]), header["first"], arrays["covered"], arrays["seen"], np.empty(0, np.float32))
            return day, header["sha256"]
        except (DataError, KeyError, ValueError):
            path.unlink()  # damaged: the day is read again
            return None

    def keep(self, file: Path, member: str, day: Day, sha256: str) -> None:
        """Write a day."""
        header = json.dumps({"path": str(day.path), "first": day.first, "sha256": sha256})
        arrays: dict[str, Any] = {
            "activity": day.activity,
            "covered": day.covered,
            "seen": day.seen,
            "header": np.array(header),
        }
        write_atomically(self._path(file, member), lambda temporary: np.savez(temporary, **arrays))

    def activity(self, file: Path, member: str) -> np.ndarray:
        """Return the activity of a finished day."""
        return read_archive(self._path(file, member), "activity")["activity"]

    def clear(self) -> None:
        """Remove the days, including those of other files, and the folder if nothing else is in it."""
        if not self.folder.is_dir():
            return
        remove_half_written(self.folder)
        for path in self.folder.glob(f"*{_SUFFIX}"):
            path.unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _path(self, file: Path, member: str) -> Path:
        key = json.dumps([_VERSION, facts(file), member, self.grid.name, self.grid.official, self.on_cut])
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}{_SUFFIX}"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def provenance(files: Iterable[tuple[Path, str]], origin: dict[str, Any]) -> dict[str, Any]:
    """Return the origin of a cache: `origin`, and name, size, time of change and SHA-256 of its files."""
    listed = [
        {"name": file.name, "bytes": file.stat().st_size, "modified_ns": file.stat().st_mtime_ns, "sha256": sha256}
        for file, sha256 in files
    ]
    return {**origin, "files": listed}
