"""The folder of data files that ``SIMMST_DATA`` names."""

from __future__ import annotations

import os
from pathlib import Path

from simmst.errors import DataError

ENVIRONMENT = "SIMMST_DATA"
SUFFIXES = (".npz", ".txt", ".csv", ".tsv", ".parquet", ".h5", ".hdf5")


def data_directory() -> Path:
    """Return the folder of data files, ``$SIMMST_DATA``.

    Raises:
        DataError: the variable is not set, or names no folder.
    """
    named = os.environ.get(ENVIRONMENT)
    if not named:
        raise DataError(f"there is no data folder; set {ENVIRONMENT} to the folder that holds the data files")
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise DataError(f"{ENVIRONMENT}={named} is not a folder; set it to the folder that holds the data files")
    return folder.resolve()


def available() -> list[str]:
    """Return the names of the data folder's files, without suffixes; empty where there is no folder."""
    try:
        folder = data_directory()
    except DataError:  # no folder, no names
        return []
    return sorted(file.stem for file in folder.iterdir() if file.suffix in SUFFIXES)
