"""The data folder, and loading any file of it by name or path."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from simmst.errors import DataError
from simmst.extras import import_extra

if TYPE_CHECKING:
    from simmst.data.dataset import TrafficDataset

ENVIRONMENT = "SIMMST_DATA"
GRIDS_FILE = "milan_trento_grids.npz"
_SUFFIXES = (".npz", ".txt", ".csv", ".parquet")


def data_directory() -> Path:
    """The folder of data files: ``$SIMMST_DATA``, else ``shared/data`` beside the repository or the working folder.

    Raises:
        DataError: there is none; the message says how to name one.
    """
    named = os.environ.get(ENVIRONMENT)
    if named:
        folder = Path(named).expanduser()
        if not folder.is_dir():
            raise DataError(f"{ENVIRONMENT}={named} is not a folder; set it to the folder that holds the data files")
        return folder.resolve()
    repository = Path(__file__).resolve().parents[2]
    for base in (repository, Path.cwd()):
        folder = base.parent / "shared" / "data"
        if folder.is_dir():
            return folder
    raise DataError(f"there is no data folder; set {ENVIRONMENT} to the folder that holds the data files")


def find_beside_or_in_library(name: str, path: str | Path | None) -> Path | None:
    """Find a file by name at, in or beside `path`, or in the data folder; None where neither has it.

    Raises:
        DataError: `path` was given and does not lead to the file.
    """
    if path is not None:
        given = Path(path)
        candidates = [given if given.is_file() else given / name]
        if not candidates[0].is_file():
            raise DataError(f"there is no {candidates[0]}; give the path of {name}")
    else:
        try:
            candidates = [data_directory() / name]
        except DataError:  # the folder is optional here
            return None
    return candidates[0] if candidates[0].is_file() else None


def load(path_or_name: str | Path) -> TrafficDataset:
    """Load a data set from a file, or from the data folder by name (with or without its suffix).

    ``.npz`` files are read by `from_npz`, ``.csv`` and ``.parquet`` by `from_dataframe`, ``.txt`` as official Telecom
    Italia rows (Trento where the name has ``-tn-`` or ``trento`` in it, else Milan), cropped to the cells they hold.

    Raises:
        DataError: no such file (the message lists the data folder's), or a file that holds no traffic.
    """
    path = _find(path_or_name)
    suffix = path.suffix.lower()
    if suffix == ".npz":
        from simmst.data.npz import from_npz

        return from_npz(path)
    if suffix == ".txt":
        from simmst.data.telecom_italia import from_telecom_italia

        name = path.name.lower()
        grid = "trento" if "-tn-" in name or "trento" in name else "milan"
        return from_telecom_italia(path, grid, cells="observed").with_(name=path.stem)
    if suffix in (".csv", ".parquet"):
        from simmst.data.frames import from_dataframe

        pd = import_extra("pandas", extra="forecast")
        frame = pd.read_csv(path) if suffix == ".csv" else pd.read_parquet(path)
        return from_dataframe(frame, name=path.stem)
    raise DataError(f"{path} is not a data file: its suffix is none of {', '.join(_SUFFIXES)}")


def available() -> list[str]:
    """Names of the data folder's files; empty where there is no folder."""
    try:
        folder = data_directory()
    except DataError:  # no folder, no names
        return []
    return sorted(file.stem for file in folder.iterdir() if file.suffix in _SUFFIXES)


def _find(path_or_name: str | Path) -> Path:
    path = Path(path_or_name).expanduser()
    if path.is_file():
        return path
    if path.parent == Path() and str(path) not in ("", "."):
        try:
            folder = data_directory()
        except DataError as error:
            raise DataError(f"there is no file {path}, and no data folder to look for that name: {error}") from error
        for candidate in (folder / path, *(folder / f"{path}{suffix}" for suffix in _SUFFIXES)):
            if candidate.is_file():
                return candidate
    names = available()
    hint = f"the data folder has {', '.join(names)}" if names else f"set {ENVIRONMENT} to load by name"
    what = "is a folder, not a file" if path.is_dir() else "does not exist"
    raise DataError(f"{path} {what}; give a file, or a name: {hint}")
