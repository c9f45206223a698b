"""The attributes of data sets in published HDF5 files of Milan and Trento: those of FedDA and of STCNet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from simmst.data.calendar import utc_of_wall_clock
from simmst.data.grids import Grid, load_grid
from simmst.data.readers.archive import MOST_BYTES
from simmst.data.readers.arrays import read_arrays
from simmst.data.readers.frame_numbers import check_activity
from simmst.data.readers.time_text import read_times
from simmst.errors import DataError
from simmst.foundation.extras import import_extra

HDF5 = (".h5", ".hdf5")
_ZONE = "Europe/Rome"
_FEDDA = {"call": "call", "sms": "sms", "net": "internet", "internet": "internet"}
# Channels of STCNet's array by how many there are: in the published file, and in what its script makes.
_CHANNELS: dict[int, dict[str, tuple[int, ...]]] = {
    3: {"call": (1,), "sms": (0,), "internet": (2,)},
    5: {"call": (2, 3), "sms": (0, 1), "internet": (4,)},
}


def read_hdf5(path: str | Path) -> dict[str, Any]:
    """Read the attributes of a data set from a published HDF5 file, whose layout is recognised by its arrays.

    - FedDA: ``idx`` (T,) epoch seconds, ``cell`` (C,) ids, and ``net``, ``sms``, ``call`` (T, all cells) or (T, C),
      with or without ``lng`` and ``lat``; of Trento if the file's name says so, else of Milan.
    - STCNet: ``idx`` (T,) hours as text, and ``data`` (T, 10000, 3) of SMS, call and Internet, or (T, 10000, 5) with
      both directions; either may also be (T, H, W, channels), row 0 south.

    NaN means no activity, as in the official files. The hours are those of Rome: text is wall-clock time, and epoch
    seconds are moments, unless the first one is a whole number of days: then they count wall-clock time too.

    Args:
        path: file to read.

    Raises:
        DataError: the file is missing, damaged, or has neither layout; or a value does not fit.
        MissingExtraError: h5py is not installed.

    Source: Zhang et al. 2021, "Dual Attention-Based Federated Learning for Wireless Traffic Prediction"; Zhang et al.
    2019, "Deep Transfer Learning for Intelligent Cellular Traffic Prediction Based on Cross-Domain Big Data".
    """
    path = Path(path)
    h5py = import_extra("h5py", extra="hdf5")
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    try:
        with h5py.File(path, "r") as file:
            found = {name: item for name, item in file.items() if isinstance(item, h5py.Dataset)}
            total = sum(item.size * item.dtype.itemsize for item in found.values() if item.size)
            if total > MOST_BYTES:
                raise DataError(f"{path} unpacks to {total:,} bytes, at most {MOST_BYTES:,} are read")
            arrays = {name: item[()] for name, item in found.items()}
    except DataError:
        raise
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, MemoryError, NotImplementedError) as error:
        raise DataError(f"{path} cannot be read as HDF5 ({error}); fetch it again") from error
    grid = load_grid("trento" if "trento" in path.name.lower() else "milan")
    services = [name for name in _FEDDA if name in arrays and arrays[name].ndim == 2]
    if {"idx", "cell"} <= set(arrays) and services:
        activity, ids = _fedda(path, arrays, services, grid)
        names = [_FEDDA[name] for name in services]
    elif {"idx", "data"} <= set(arrays) and arrays["data"].ndim in (3, 4) and arrays["data"].shape[-1] in _CHANNELS:
        activity, ids = _stcnet(path, arrays["data"], grid)
        names = list(_CHANNELS[3])
    else:
        raise DataError(
            f"{path} holds {', '.join(sorted(arrays)) or 'no arrays'}; wanted idx, cell and net, sms or call (FedDA), "
            "or idx and data (STCNet); build the data set with TrafficDataset.from_arrays"
        )
    time = _time(path, np.ravel(arrays["idx"]))
    if len(time) != len(activity):
        raise DataError(f"{path} has {len(time)} times in idx for {len(activity)} slots")
    places = grid.positions(ids)
    low, high = places.min(axis=0), places.max(axis=0) + 1
    row, column = (places - low).T
    dense = np.full((*activity.shape[:2], *(high - low).tolist()), np.nan, dtype=np.float32)
    dense[:, :, row, column] = activity
    mask = np.zeros(dense.shape[2:], dtype=bool)
    mask[row, column] = True
    cell_id, lonlat = grid.crop(low, high)
    return read_arrays(
        dense,
        time,
        services=names,
        mask=mask,
        cell_id=cell_id,
        lonlat=lonlat,
        cell_size_m=grid.cell_size_m,
        name=path.stem,
        timezone=_ZONE,
    )


def _fedda(path: Path, arrays: dict[str, np.ndarray], services: list[str], grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Return the activity (T, K, C) and the ids of its cells."""
    ids = np.ravel(arrays["cell"]).astype(np.int64)
    wrong = ~grid.contains(ids)
    if wrong.any():
        raise DataError(f"{path}: cell {ids[wrong][0]} is not on the {grid.name} grid, {grid.describe()}")
    parts = []
    for name in services:
        values = arrays[name].astype(np.float64)
        if values.shape[1] != len(ids):
            if values.shape[1] < ids.max():
                raise DataError(
                    f"{path}: {name} {values.shape} has neither the {len(ids)} cells nor a column for {ids.max()}"
                )
            values = values[:, ids - 1]
        values = np.nan_to_num(values, nan=0.0, posinf=np.inf, neginf=-np.inf)
        check_activity(values, "CDR units", lambda t, c, name=name: f"{path}: {name} of cell {ids[c]} in slot {t}")
        parts.append(values)
    return np.stack(parts, axis=1), ids


def _stcnet(path: Path, data: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Return the activity (T, K, C) and the ids of its cells."""
    height, width = data.shape[1:3] if data.ndim == 4 else grid.mask.shape
    if (
        height > grid.mask.shape[0]
        or width > grid.mask.shape[1]
        or (data.ndim == 3 and data.shape[1] != height * width)
    ):
        raise DataError(f"{path}: data {data.shape} is not of the {grid.name} grid of {grid.mask.shape}")
    ids = (np.arange(height)[:, None] * grid.mask.shape[1] + np.arange(width) + 1).ravel()
    flat = np.nan_to_num(
        data.reshape(len(data), height * width, data.shape[-1]), nan=0.0, posinf=np.inf, neginf=-np.inf
    )
    parts = []
    for name, channels in _CHANNELS[data.shape[-1]].items():
        values = flat[:, :, list(channels)].sum(axis=-1, dtype=np.float64)
        parts.append(values)
        check_activity(values, "CDR units", lambda t, c, name=name: f"{path}: {name} of cell {ids[c]} in slot {t}")
    return np.stack(parts, axis=1), ids


def _time(path: Path, idx: np.ndarray) -> np.ndarray:
    if idx.dtype.kind in "iuf":
        seconds = idx.astype(np.int64)
        on_the_wall = len(seconds) and seconds[0] % 86_400 == 0
        return utc_of_wall_clock(seconds, _ZONE) if on_the_wall else seconds.astype("datetime64[s]")
    texts = [one.decode("latin-1") if isinstance(one, bytes) else str(one) for one in idx.tolist()]
    read = read_times(texts)
    for text, one in zip(texts, read, strict=True):
        if one is None:
            raise DataError(f"{path}: idx {text!r} is not a time; wanted hours such as 2013-11-01 00:00:00")
    walls = np.array([one.wall for one in read if one is not None], dtype="datetime64[s]")
    return utc_of_wall_clock(walls.astype(np.int64), _ZONE)
