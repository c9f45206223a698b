"""Loading any data set, by path or by its name in the data folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def as_traffic(source: Any, like: TrafficDataset | None = None) -> TrafficDataset:
    """Return traffic as a data set: one as it is, a data frame, or a file by its path or name.

    Args:
        source: the traffic.
        like: a series of the same cells, which says what a frame leaves open: their places, time zone, country, unit,
            and the name of the one service.

    Raises:
        DataError: the source is nothing of these, or its frame or file holds no traffic.

    Example:
        >>> import numpy as np
        >>> city = TrafficDataset.from_arrays(np.ones(24), np.arange(24) * 3600, services=["call"])
        >>> as_traffic(city.to_dataframe().drop(columns="service"), city).services
        ('call',)
    """
    if isinstance(source, TrafficDataset):
        return source
    if isinstance(source, (str, Path)):
        return load(source)
    if not hasattr(source, "columns"):
        raise DataError(
            f"the traffic is {type(source).__name__}; give a TrafficDataset, a pandas or polars data frame, or a file"
        )
    if like is None:
        return TrafficDataset.from_dataframe(source)
    places = None
    if like.geometry == "grid":
        places = {key: tuple(place) for key, place in zip(like.unique_ids().tolist(), like.cells.tolist(), strict=True)}
    kept = {role: getattr(like.layout, role) for role in ("id_col", "time_col", "target_col", "service_col")}
    return TrafficDataset.from_dataframe(
        source,
        **{role: column for role, column in kept.items() if column in source.columns},
        cells=places,
        timezone=like.timezone,
        country=like.country,
        service=like.services[0] if like.num_services == 1 else "traffic",
        unit=like.unit,
        name=like.name,
        surrogate=like.surrogate,
        cell_size_m=like.cell_size_m,
    )


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
