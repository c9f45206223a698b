"""Loading any data set, by path or by its name in the data folder."""

from __future__ import annotations

from pathlib import Path

from simmst.data.dataset import TrafficDataset
from simmst.data.directory import ENVIRONMENT, SUFFIXES, available, data_directory
from simmst.errors import DataError
from simmst.foundation.extras import import_extra


def load(path_or_name: str | Path) -> TrafficDataset:
    """Load a data set from a file, or from the data folder by name (with or without its suffix).

    `TrafficDataset.from_npz` reads ``.npz`` files, `TrafficDataset.from_dataframe` ``.csv`` and ``.parquet``;
    ``.txt`` files are official Telecom Italia rows (of Trento where the name has ``-tn-`` or ``trento`` in it, else of
    Milan), cropped to the cells they hold.

    Raises:
        DataError: no such file (the message lists the data folder's), or a file that holds no traffic.
    """
    path = _find(path_or_name)
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return TrafficDataset.from_npz(path)
    if suffix == ".txt":
        name = path.name.lower()
        grid = "trento" if "-tn-" in name or "trento" in name else "milan"
        return TrafficDataset.from_telecom_italia(path, grid, cells="observed").with_(name=path.stem)
    if suffix in (".csv", ".parquet"):
        pd = import_extra("pandas", extra="forecast")
        frame = pd.read_csv(path) if suffix == ".csv" else pd.read_parquet(path)
        return TrafficDataset.from_dataframe(frame, name=path.stem)
    raise DataError(f"{path} is not a data file: its suffix is none of {', '.join(SUFFIXES)}")


def _find(path_or_name: str | Path) -> Path:
    path = Path(path_or_name).expanduser()
    if path.is_file():
        return path
    if path.parent == Path() and str(path) not in ("", "."):
        try:
            folder = data_directory()
        except DataError as error:
            raise DataError(f"there is no file {path}, and no data folder to look for that name: {error}") from error
        for candidate in (folder / path, *(folder / f"{path}{suffix}" for suffix in SUFFIXES)):
            if candidate.is_file():
                return candidate
    names = available()
    hint = f"the data folder has {', '.join(names)}" if names else f"set {ENVIRONMENT} to load by name"
    what = "is a folder, not a file" if path.is_dir() else "does not exist"
    raise DataError(f"{path} {what}; give a file, or a name: {hint}")
