"""Loading of data sets, by path or by name in the data folder."""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from simmst.data.dataset import TrafficDataset
from simmst.data.directory import ENVIRONMENT, SUFFIXES, available, data_directory
from simmst.data.readers.hourly_csv import hourly_columns
from simmst.data.readers.tables import TABLES, is_official_text, read_tables, table_name
from simmst.data.readers.telecom_italia import find_files
from simmst.data.readers.unpacking import inner_name, members
from simmst.errors import DataError


def load(
    path_or_name: str | Path | Sequence[str | Path],
    *,
    like: TrafficDataset | None = None,
    covariates: Any = None,
    **options: Any,
) -> TrafficDataset:
    """Load a data set from a file, or from the data folder by name (with or without its suffix).

    - ``.npz``: see `TrafficDataset.from_npz`.
    - ``.csv``, ``.tsv`` and ``.parquet``: tables of any layout, see `TrafficDataset.from_dataframe`. Hourly tables of
      official cells belong to Trento or Milan by the file's name, as below.
    - ``.txt``: official Telecom Italia rows (of Trento if the name contains ``-tn-`` or ``trento``, else of Milan),
      cropped to the cells they hold, see `TrafficDataset.from_telecom_italia`.
    - ``.h5``, ``.hdf5``: the published files of FedDA and STCNet.

    Tables and official rows may be packed as ``.gz`` or ``.zip``, and may be spread over several files: a folder, a
    pattern such as ``"november/*.csv"``, or a list.

    Args:
        path_or_name: file or files, or a name in the data folder.
        like: series of the same cells, which fills in what a table leaves open; see `as_traffic`.
        covariates: numbers that are known in advance, such as the weather: see `TrafficDataset.with_covariates`.
        **options: options of `TrafficDataset.from_dataframe` for tables, of `TrafficDataset.from_telecom_italia` for
            official rows.

    Raises:
        DataError: there is no such file (the message lists those of the data folder), or a file holds no traffic.
    """
    data = _load(path_or_name, like, options)
    return data if covariates is None else data.with_covariates(covariates)


def _load(
    path_or_name: str | Path | Sequence[str | Path], like: TrafficDataset | None, options: dict[str, Any]
) -> TrafficDataset:
    files = _find(path_or_name)
    kinds = {_kind(path) for path in files}
    if len(kinds) > 1:
        raise DataError(
            f"{_shown(path_or_name)} has files of several kinds ({', '.join(sorted(kinds))}); give files of one kind"
        )
    kind, first = kinds.pop(), files[0]
    name = first.name.lower()
    grid = "trento" if "-tn-" in name or "trento" in name else "milan"
    if kind == "text":
        grid = options.pop("grid", grid)
        data = TrafficDataset.from_telecom_italia(files, grid, **{"cells": "observed", **options})
        return data.with_(name=table_name(first)) if len(files) == 1 else data
    if kind == "table":
        frame = read_tables(files, text_columns=(options.get("id_col"), options.get("service_col")))
        known = {} if like is None else _options_like(like, frame.columns)
        if like is None and hourly_columns(frame) is not None:
            known["cells"] = grid
        options = {**known, "name": table_name(first), **options}
        return _named(lambda: TrafficDataset.from_dataframe(frame, **options), path_or_name)
    if len(files) > 1:
        raise DataError(f"{_shown(path_or_name)} has {len(files)} files of {kind}; give one")
    if options:
        raise DataError(f"{first} describes its own contents; leave out {', '.join(options)}")
    if kind == ".npz":
        return TrafficDataset.from_npz(first)
    return TrafficDataset.from_hdf5(first)


def as_traffic(source: Any, like: TrafficDataset | None = None) -> TrafficDataset:
    """Return traffic as a data set, from a data set, a data frame, or a file's path or name.

    Args:
        source: the traffic.
        like: series of the same cells, which fills in what a frame leaves open: places, time zone, country, unit, and
            the name of a single service.

    Raises:
        DataError: the source is none of these, or its frame or file holds no traffic.

    Example:
        >>> import numpy as np
        >>> city = TrafficDataset.from_arrays(np.ones(24), np.arange(24) * 3600, services=["call"])
        >>> as_traffic(city.to_dataframe().drop(columns="service"), city).services
        ('call',)
    """
    if isinstance(source, TrafficDataset):
        return source
    if isinstance(source, (str, Path)):
        return load(source, like=like)
    if not hasattr(source, "columns"):
        raise DataError(
            f"the traffic is {type(source).__name__}; give a TrafficDataset, a pandas or polars data frame, or a file"
        )
    return TrafficDataset.from_dataframe(source, **({} if like is None else _options_like(like, source.columns)))


def _options_like(like: TrafficDataset, columns: Any) -> dict[str, Any]:
    """Return the options of a table that a series of the same cells fills in."""
    places = None
    if like.geometry == "grid":
        places = {key: tuple(place) for key, place in zip(like.unique_ids().tolist(), like.cells.tolist(), strict=True)}
    kept = {role: getattr(like.layout, role) for role in ("id_col", "time_col", "target_col", "service_col")}
    return {
        **{role: column for role, column in kept.items() if column in columns},
        "cells": places,
        "timezone": like.timezone,
        "country": like.country,
        "events": like.events,
        "service": like.services[0] if like.num_services == 1 else "traffic",
        "lone_step_minutes": like.step_minutes,
        "unit": like.unit,
        "name": like.name,
        "surrogate": like.surrogate,
        "cell_size_m": like.cell_size_m,
    }


def _kind(path: Path) -> str:
    """Return how a file is read: "table", "text", or its suffix."""
    inner = Path(inner_name(path)) if path.suffix.lower() != ".zip" else Path(members(path)[0])
    suffix = inner.suffix.lower()
    if suffix == ".txt" or (suffix in (".csv", ".tsv") and is_official_text(path)):
        return "text"
    if suffix in TABLES:
        return "table"
    if suffix in SUFFIXES and inner.name == path.name:
        return suffix
    raise DataError(
        f"{path} is not a data file: its suffix is none of {', '.join(SUFFIXES)}, or these with .gz or .zip"
    )


def _named(read: Callable[[], TrafficDataset], source: Any) -> TrafficDataset:
    """Read, and name the file in errors."""
    try:
        return read()
    except DataError as error:
        raise DataError(f"{_shown(source)}: {error}") from error


def _shown(source: Any) -> str:
    return str(source) if isinstance(source, (str, Path)) else f"{len(list(source))} files"


def _find(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the files of a path, a name, a pattern, a folder or a list of them."""
    if not isinstance(source, (str, Path)):
        found = [path for one in source for path in _find(one)]
        if not found:
            raise DataError("no file was given; give at least one")
        return found
    path = Path(source).expanduser()
    if path.is_dir():
        known = (".txt", *TABLES)
        files = [
            one for one in sorted(path.iterdir()) if one.is_file() and Path(inner_name(one)).suffix.lower() in known
        ]
        if files:
            return files
    elif not path.is_file() and glob.has_magic(str(path)):
        return find_files(path)
    return [_find_one(source)]


def _find_one(path_or_name: str | Path) -> Path:
    path = Path(path_or_name).expanduser()
    if path.is_file():
        return path
    if path.parent == Path() and str(path) not in ("", "."):
        try:
            folder = data_directory()
        except DataError as error:
            raise DataError(f"there is no file {path}, nor a data set of that name: {error}") from error
        for candidate in (folder / path, *(folder / f"{path}{suffix}" for suffix in SUFFIXES)):
            if candidate.is_file():
                return candidate
    names = available()
    hint = f"the data folder has {', '.join(names)}" if names else f"set {ENVIRONMENT} to load by name"
    what = "is a folder, not a file" if path.is_dir() else "does not exist"
    raise DataError(f"{path} {what}; give a file, or a name: {hint}")
