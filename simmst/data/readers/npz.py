"""The attributes of data sets in .npz files: simmst's own layout, and those of the published extracts."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simmst.data.covariates import Covariates
from simmst.data.grids import GRIDS_FILE, load_grid
from simmst.data.layout import FrameLayout
from simmst.data.readers.archive import read_archive
from simmst.data.readers.arrays import DESCRIPTION, read_arrays
from simmst.data.readers.patches import PATCH_ARRAYS, read_patches
from simmst.data.readers.presence import PRESENCE_ARRAYS, read_presence
from simmst.errors import DataError
from simmst.foundation.documents import DocumentError, decode_json
from simmst.foundation.files import write_atomically

_VERSION = 1
_ITALY: dict[str, Any] = {"timezone": "Europe/Rome", "country": "IT", "unit": "CDR units"}

# The extracts of z-scored series carry no times, only "first five days of the customary test week". The 62-day record
# (1 Nov 2013 - 1 Jan 2014) ends with the week from 26 December, and the series agree: on days 1, 3 and 4 (a public
# holiday, Saturday, Sunday) the morning rises about two hours later than on days 2 and 5 (Friday, Monday).
_TEST_WEEK_START = np.datetime64("2013-12-25T23:00:00", "s")  # 26 December 00:00 in Rome


def write_npz(
    attributes: Mapping[str, Any],
    path: str | Path,
    *,
    source: str | None = None,
    provenance: Mapping[str, Any] | None = None,
    slabs: tuple[tuple[int, ...], Iterable[np.ndarray]] | None = None,
) -> Path:
    """Write a data set to a compressed .npz file, whole or not at all.

    Args:
        attributes: attributes of the data set, by name.
        path: file to write; ``.npz`` is added if missing.
        source: fingerprint of the files that the data set was made from, for `source_of`.
        provenance: origin of the data, for `provenance_of`; plain values that JSON can hold.
        slabs: shape of the float32 activity, and its parts along the first axis, for an activity too large for memory.
            The activity in `attributes` is then not written, and nothing is compressed.

    Returns:
        Path of the file.
    """
    path = npz_path(path)
    layout = attributes.get("layout", FrameLayout())
    header = {key: attributes[key] for key in DESCRIPTION}
    header |= {
        "version": _VERSION,
        "source": source,
        "provenance": None if provenance is None else dict(provenance),
        "layout": layout.to_dict(),
        "events": list(attributes.get("events", ())),
    }
    arrays = {
        "activity": attributes["activity"],
        "time_utc_s": attributes["time"].astype(np.int64),
        "mask": attributes["mask"],
        "cell_id": attributes["cell_id"],
        "simmst": np.array(json.dumps(header)),
    }
    if attributes["lonlat"] is not None:
        arrays["lonlat"] = attributes["lonlat"]
    if attributes["cell_name"] is not None:
        arrays["cell_name"] = _without_objects(attributes["cell_name"])
    covariates = attributes.get("covariates")
    if covariates is not None:
        header["covariates"] = list(covariates.names)
        arrays["simmst"] = np.array(json.dumps(header))
        arrays["covariates"], arrays["covariates_time_utc_s"] = covariates.values, covariates.time.astype(np.int64)
    if slabs is None:
        return write_atomically(path, lambda temporary: np.savez_compressed(temporary, **arrays))
    return write_atomically(path, lambda temporary: _write_slabs(temporary, arrays, *slabs))


def _write_slabs(
    path: Path, arrays: dict[str, np.ndarray], shape: tuple[int, ...], slabs: Iterable[np.ndarray]
) -> None:
    # Not compressed: deflating a day takes a third as long as reading its text, and leaves four fifths of its size.
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                if name == "activity":
                    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(member, header)
                    for slab in slabs:
                        member.write(np.ascontiguousarray(slab, dtype="<f4").data.cast("B"))
                else:
                    np.lib.format.write_array(member, array, allow_pickle=False)


def _without_objects(names: np.ndarray) -> np.ndarray:
    return names.astype(np.str_) if names.dtype.kind == "O" else names


def npz_path(path: str | Path) -> Path:
    """Return the path with ``.npz`` added if missing."""
    path = Path(path)
    return path if path.suffix == ".npz" else path.with_name(path.name + ".npz")


def provenance_of(path: str | Path) -> dict[str, Any] | None:
    """Return where the data of a cache of official files comes from; None if the file does not say.

    Returns:
        ``files``, each with ``name``, ``bytes``, ``modified_ns`` and ``sha256``; and, from ``simmst data prepare``,
        ``doi``, ``doi_checked`` (whether the files are those of the DOI by its checksums), ``licence`` and
        ``attribution``.
    """
    header = read_archive(Path(path), "simmst").get("simmst")
    return None if header is None else _header(Path(path), header).provenance


def source_of(path: str | Path) -> str | None:
    """Return the fingerprint that `write_npz` was given; None if it was given none or the file has another layout."""
    header = read_archive(Path(path), "simmst").get("simmst")
    return None if header is None else _header(Path(path), header).source


def read_npz(path: str | Path) -> dict[str, Any]:
    """Read the attributes of a data set from a .npz file, whose layout is recognised by its arrays.

    - simmst's own, as `TrafficDataset.save` writes it;
    - ``internet (T, H, W), cell_id (H, W), time_utc_s (T,)``: a block of the Milan grid;
    - ``internet (T, 100, 100), time_utc_s (T,)``: the whole Milan grid (``internet_undated`` frames have no times and
      are not part of the series: see `read_undated_frames`);
    - ``activity (T, cells, services), cell_id, time_utc_s, service``: cells of the Milan grid, at their places on it;
    - ``activity (T, services), time_utc_s, service``: one place;
    - ``internet_z (T, places)``, with or without ``names`` and ``lonlat``: z-scored series of unrelated places. They
      carry no times; the first slot is taken to be 26 December 2013, 00:00 in Rome, where the last week starts;
    - ``traffic (P, T, H, W), mask (P, H, W), step_minutes``: unrelated patches of cells: see
      `simmst.data.readers.patches.read_patches`;
    - ``users (T, zones), zone, time_local_s``: users present: see `simmst.data.readers.presence.read_presence`.

    Raises:
        DataError: the file is missing, damaged, or has none of these layouts.
    """
    path = Path(path)
    arrays = read_archive(path)
    keys = set(arrays)
    if "simmst" in keys:
        return _own(path, arrays)
    name = path.stem
    if "internet_z" in keys:
        return _places(name, arrays)
    if set(PATCH_ARRAYS) <= keys:
        return read_patches(path)
    if set(PRESENCE_ARRAYS) <= keys:
        return read_presence(path)
    if {"internet", "cell_id", "time_utc_s"} <= keys:
        return _on_milan(path, arrays["cell_id"], arrays["internet"][:, None], arrays["time_utc_s"], ["internet"])
    if {"internet", "time_utc_s"} <= keys:
        grid_ids = np.arange(1, 10_001).reshape(100, 100)
        return _on_milan(path, grid_ids, arrays["internet"][:, None], arrays["time_utc_s"], ["internet"])
    if {"activity", "cell_id", "time_utc_s", "service"} <= keys:
        services = [str(service) for service in arrays["service"]]
        activity = arrays["activity"].transpose(0, 2, 1)  # (T, K, cells)
        return _on_milan(path, arrays["cell_id"], activity, arrays["time_utc_s"], services)
    if {"activity", "time_utc_s", "service"} <= keys:
        services = [str(service) for service in arrays["service"]]
        return read_arrays(arrays["activity"], arrays["time_utc_s"], services=services, name=name, **_ITALY)
    if {"milan_cell_id", "trento_cell_id"} <= keys:
        raise DataError(
            f'{path} holds the official grids, not traffic; call simmst.data.load_grid("milan") or load_grid("trento")'
        )
    raise DataError(
        f"{path} holds {', '.join(sorted(keys)) or 'nothing'}, which is not a known layout; "
        "wanted a file written by TrafficDataset.save, or build the data set with TrafficDataset.from_arrays"
    )


def read_undated_frames(path: str | Path) -> np.ndarray:
    """Read the frames of unknown date that were published beside the dated ones, float32 (N, 100, 100), without times.

    Raises:
        DataError: the file has none.
    """
    return _member(path, "internet_undated")


def read_published_predictions(path: str | Path) -> np.ndarray:
    """Read the published FedGCC one-step predictions beside z-scored series, float32 (T, places).

    Row t forecasts slot t of the data set from the slots before it.

    Raises:
        DataError: the file has none.
    """
    return _member(path, "published_fedgcc_prediction_z")


def _member(path: str | Path, key: str) -> np.ndarray:
    arrays = read_archive(Path(path))
    if key not in arrays:
        raise DataError(f"{path} has no {key}; it holds {', '.join(sorted(arrays))}")
    return arrays[key].astype(np.float32)


def _own(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    header = _header(path, arrays["simmst"])
    absent = [key for key in ("activity", "time_utc_s", "mask", "cell_id") if key not in arrays]
    if absent:
        raise DataError(f"{path} has no {', '.join(absent)}; write it again with TrafficDataset.save")
    if arrays["time_utc_s"].dtype.kind not in "iu":
        raise DataError(f"{path}: time_utc_s is {arrays['time_utc_s'].dtype}; wanted whole seconds")
    return {
        "activity": arrays["activity"],
        "time": arrays["time_utc_s"].astype("datetime64[s]"),
        "mask": arrays["mask"],
        "cell_id": arrays["cell_id"],
        "lonlat": arrays.get("lonlat"),
        "cell_name": arrays.get("cell_name"),
        "layout": header.layout or FrameLayout(),
        "events": header.events,
        "covariates": _covariates(path, header.covariates, arrays),
        **{key: getattr(header, key) for key in DESCRIPTION},
    }


def _covariates(path: Path, names: tuple[str, ...], arrays: dict[str, np.ndarray]) -> Covariates | None:
    if not names:
        return None
    absent = [key for key in ("covariates", "covariates_time_utc_s") if key not in arrays]
    if absent or arrays["covariates_time_utc_s"].dtype.kind not in "iu":
        what = f"no {absent[0]}" if absent else "times of covariates that are not whole seconds"
        raise DataError(f"{path} has {what}; write it again with TrafficDataset.save")
    return Covariates(names, arrays["covariates_time_utc_s"].astype("datetime64[s]"), arrays["covariates"])


@dataclass
class _Versioned:
    version: int


@dataclass
class _Header:
    """The header of a file of simmst's own: everything but the arrays."""

    services: tuple[str, ...]
    geometry: str
    timezone: str
    country: str | None
    unit: str
    name: str
    surrogate: bool
    cell_size_m: float | None
    source: str | None = None
    provenance: dict[str, Any] | None = None
    layout: FrameLayout | None = None
    events: tuple[str, ...] = ()
    covariates: tuple[str, ...] = ()


def _header(path: Path, packed: np.ndarray) -> _Header:
    try:
        version = decode_json(str(packed), _Versioned).version
        if version != _VERSION:
            raise DataError(f"{path} has layout version {version}, this simmst reads {_VERSION}; write it again")
        return decode_json(str(packed), _Header)
    except DocumentError as error:
        raise DataError(f"{path} has a damaged header ({error}); write it again with TrafficDataset.save") from error


def _places(name: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    values = arrays["internet_z"]
    steps, places = values.shape
    lonlat, names = arrays.get("lonlat"), arrays.get("names")
    return read_arrays(
        values.reshape(steps, 1, 1, places),
        _TEST_WEEK_START + np.arange(steps) * np.timedelta64(600, "s"),
        services=["internet"],
        geometry="points",
        lonlat=None if lonlat is None else lonlat.reshape(1, places, 2),
        cell_name=None if names is None else names.reshape(1, places),
        name=name,
        **(_ITALY | {"unit": "z-score"}),
    )


def _on_milan(
    path: Path, ids: np.ndarray, activity: np.ndarray, time: np.ndarray, services: list[str]
) -> dict[str, Any]:
    """Put cells (ids of any shape, activity (T, K, *shape)) at their places, cropped to their bounding box."""
    grid = load_grid("milan", path.with_name(GRIDS_FILE) if path.with_name(GRIDS_FILE).is_file() else None)
    flat = ids.reshape(-1)
    places = grid.positions(flat)
    low, high = places.min(axis=0), places.max(axis=0) + 1
    rows, cols = (places - low).T
    height, width = (high - low).tolist()
    cell_id, lonlat = grid.crop(low, high)
    steps, num_services = activity.shape[:2]
    dense = np.full((steps, num_services, height, width), np.nan, dtype=np.float32)
    dense[:, :, rows, cols] = activity.reshape(steps, num_services, -1)
    mask = np.zeros((height, width), dtype=bool)
    mask[rows, cols] = True
    return read_arrays(
        dense,
        time,
        services=services,
        mask=mask,
        cell_id=cell_id,
        lonlat=lonlat,
        cell_size_m=grid.cell_size_m,
        name=path.stem,
        **_ITALY,
    )
