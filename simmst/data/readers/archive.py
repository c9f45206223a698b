"""The arrays of .npz files, with one kind of error for everything that can be wrong with such a file."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from simmst.errors import DataError

# Most bytes of memory that the arrays of a file may take: a city of 100 x 100 cells for two months takes 1.1 GB.
MOST_BYTES = 3 << 29

# The errors that numpy raises for damaged files, depending on the damage, and for a lone array named .npz.
_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    AttributeError,
    TypeError,
    RuntimeError,
    MemoryError,
    LookupError,
    NotImplementedError,
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_archive(path: Path, *wanted: str) -> dict[str, np.ndarray]:
    """Read the arrays of a .npz file by name: the wanted ones that it has, or all.

    Raises:
        DataError: the file is missing or damaged.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is not a readable .npz file (no zip archive); it may be cut short: fetch it again")
    try:
        # numpy leaves a file open if it opened the file itself and cannot read it
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            keys = [key for key in file.files if not wanted or key in wanted]
            total = sum(file.zip.getinfo(key if key in file.zip.namelist() else f"{key}.npy").file_size for key in keys)
            if total > MOST_BYTES:
                raise DataError(
                    f"{path} unpacks to {total:,} bytes, at most {MOST_BYTES:,} are read; leave out arrays that are "
                    "not traffic, or build the data set with TrafficDataset.from_arrays"
                )
            return {key: file[key] for key in keys}
    except DataError:
        raise
    except _UNREADABLE as error:
        raise DataError(f"{path} is not a readable .npz file ({error}); it may be cut short: fetch it again") from error


def check_values(path: Path, key: str, array: np.ndarray) -> None:
    """Check that the activity of a file is finite and not negative, or NaN.

    Raises:
        DataError: a value does not fit; the message names file, array, place and value.
    """
    with np.errstate(over="ignore"):
        wrong = np.isinf(array.astype(np.float32)) | (array < 0)
    if wrong.any():
        where = tuple(np.argwhere(wrong)[0].tolist())
        raise DataError(
            f"{path}: {key}{list(where)} is {array[where]:g}; wanted finite, not negative, NaN where missing"
        )


def check_numbers(path: Path, key: str, array: np.ndarray, shape: str) -> None:
    """Check that an array of a file holds numbers, has as many axes as `shape` names, and is not empty.

    Raises:
        DataError: the array does not fit; the message names file, array, dtype and shape.
    """
    if array.dtype.kind not in "iuf" or array.ndim != len(shape.strip("()").rstrip(",").split(",")) or not array.size:
        raise DataError(f"{path}: {key} is {array.dtype} {array.shape}; wanted numbers {shape}")
