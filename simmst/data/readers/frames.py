"""The attributes of a data set from data frames: long, wide, with a column per counter, or with a row per place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from simmst.data.grids import GRIDS, load_grid
from simmst.data.layout import FrameLayout
from simmst.data.readers.arrays import read_arrays
from simmst.data.readers.frame_columns import find_columns
from simmst.data.readers.frame_numbers import check_activity, read_numbers
from simmst.data.readers.frame_series import FrameSeries
from simmst.data.readers.frame_slots import Slots, find_slots
from simmst.data.readers.frame_times import read_frame_times
from simmst.data.readers.hourly_csv import hourly_columns
from simmst.data.zones import AUTO
from simmst.errors import DataError
from simmst.foundation.extras import import_extra

if TYPE_CHECKING:
    import pandas

Cells = Mapping[Any, tuple[int, int]] | str


def read_dataframe(
    frame: Any,
    *,
    cells: Cells | None = None,
    timezone: str | None = None,
    country: str | None = AUTO,
    events: Iterable[Any] = (),
    service: str = "traffic",
    step_minutes: int | None = None,
    lone_step_minutes: int | None = None,
    unit: str = "CDR units",
    name: str = "traffic",
    surrogate: bool = False,
    cell_size_m: float | None = None,
    time_col: str | Sequence[str] | None = None,
    id_col: str | None = None,
    target_col: str | Sequence[str] | None = None,
    service_col: str | None = None,
    layout: str | None = None,
    dayfirst: bool | None = None,
    time_format: str | None = None,
    decimal: str | None = None,
    round_times: bool = False,
) -> dict[str, Any]:
    """Turn a pandas (or polars) data frame into the attributes of a data set, by name.

    - Long: columns ``unique_id``, ``ds``, ``y`` and, for more than one service, ``service``.
    - One column for each service (counter): ``unique_id``, ``ds`` and the services; without ``unique_id`` where
      `layout` is "services", or the columns are named call, sms, internet.
    - One column for each cell: ``ds`` as a column or the index, and the cells; or columns with two levels (unique_id,
      service).
    - One row for each place: an identifier, and columns whose names are times.
    - The hourly CSV files of Milan: datetime, CellID, countrycode, smsin, smsout, callin, callout, internet.

    Columns with other usual names (Time, CellID, value, ...) are recognised too, and the layout's notes say which roles
    were guessed; a column without a role is refused. Slots that a series lacks are NaN, between its rows as well as
    before its first and after its last. Rows may come in any order.

    Args:
        frame: data frame.
        cells: unique_id -> (row, column) with row 0 south, or "milan" or "trento" for the ids of an official grid;
            gives geometry "grid". None makes the cells "points".
        timezone: IANA name. Times without a time zone are local times there; others are converted. None takes the time
            zone of the times where they have one other than UTC, else Europe/Rome.
        country: ISO code of the country whose public holidays count, None for none, or "auto" for that of the time
            zone.
        events: local days that count as public holidays, dates or text such as ``"2013-12-07"``.
        service: name of the one service where the frame names none.
        step_minutes: length of a slot; by default the shortest distance between two slots, or the most common one where
            the others are not multiples of the shortest.
        lone_step_minutes: length of the slot of a table that has only one; an empty slot is then put before it.
        unit: unit of the activity; negative values need ``"z-score"``.
        name: a short name.
        surrogate: True for simulated data that stands in for a real city.
        cell_size_m: edge of a cell in metres.
        time_col: column of times, or a column of days and a column of clock times.
        id_col: column of the cells' identifiers.
        target_col: column of the activity, or the columns of cells or services.
        service_col: column of the services' names.
        layout: "long", "cells", "services" or "places", where the column names leave it open.
        dayfirst: whether 01/11/2013 is in November; needed where no date shows it.
        time_format: form of times as text, such as ``"%d/%m/%Y %H:%M"``.
        decimal: decimal sign of numbers as text, ``"."`` or ``","``, where the numbers leave it open.
        round_times: whether to move each time to the nearest slot of the local clock, where times jitter.

    Raises:
        DataError: a role is not known; a time is invalid, ambiguous, twice in its series, in an hour that clocks skip,
            or off the grid of slots; a value is not a number, infinite or negative. The message names row, cell and
            value.

    Example:
        >>> import pandas as pd
        >>> ds = pd.date_range("2013-11-01", periods=24, freq="h")
        >>> wide = pd.DataFrame({"ds": ds, "a": range(24), "b": range(24)})
        >>> read_dataframe(wide)["activity"].shape
        (24, 1, 1, 2)
    """
    pd = import_extra("pandas", extra="forecast")
    table, library = _as_pandas(frame, pd)
    if table.empty:
        raise DataError("the data frame has no rows; give at least two slots")
    given = {"time_col": time_col, "id_col": id_col, "target_col": target_col, "service_col": service_col}
    told = layout is not None or any(value is not None for value in given.values())
    columns = None if told or isinstance(table.columns, pd.MultiIndex) else hourly_columns(table)
    if columns is None:
        columns = find_columns(table, pd, layout=layout, **given)  # type: ignore[arg-type]
    elif cells is None:
        cells, unit = "milan", "CDR units"
    times = read_frame_times(
        columns.times, columns.row_label, pd, timezone=timezone, dayfirst=dayfirst, time_format=time_format
    )
    series = FrameSeries.of(columns, service, pd)
    numbers = read_numbers(columns.values, decimal, series.where, pd)
    check_activity(numbers, unit, series.where)
    slots = find_slots(
        times,
        series.row,
        np.isnan(numbers).all(axis=1),
        columns.row_label,
        series.who,
        step_minutes=step_minutes,
        lone_step_minutes=lone_step_minutes or step_minutes,
        round_times=round_times,
    )
    places = _places(series.ids, cells)
    activity = _filled(numbers, slots, series, places, summed=columns.summed)
    attributes = read_arrays(
        activity,
        slots.start + np.arange(len(activity)) * slots.step,
        services=[str(key) for key in series.services],
        timezone=times.timezone,
        country=country,
        events=events,
        unit=unit,
        name=name,
        surrogate=surrogate,
        **_geometry(series.ids, places, cells, cell_size_m),
    )
    notes = columns.notes
    if columns.summed and isinstance(cells, str):
        notes += (f"the cells are those of the {cells} grid",)
    shown = FrameLayout(**columns.names, times=times.shown, wall_offset=slots.wall_offset, library=library, notes=notes)
    return {**attributes, "layout": shown}


def _as_pandas(frame: Any, pd: Any) -> tuple[pandas.DataFrame, str]:
    """Convert a frame to pandas, and return the name of its library."""
    if isinstance(frame, pd.DataFrame):
        return frame, "pandas"
    if hasattr(frame, "collect"):  # polars, lazy
        frame = frame.collect()
    if hasattr(frame, "to_pandas") and hasattr(frame, "columns"):
        library = "polars" if type(frame).__module__.startswith("polars") else "pandas"
        return frame.to_pandas(), library
    raise DataError(f"frame must be a pandas or polars DataFrame, got {type(frame).__name__}")


def _filled(numbers: np.ndarray, slots: Slots, series: FrameSeries, places: np.ndarray, *, summed: bool) -> np.ndarray:
    """Return the activity (T, K, H, W) with every value at its place; NaN where there is none."""
    height, width = (places.max(axis=0) + 1).tolist()
    shape = int(slots.slot.max()) + 1, len(series.services), height, width
    there = slots.slot >= 0
    row, column = places.T
    cell, kind = series.cell.codes(), series.service.codes()  # (R, 1) or (1, M)
    cell, kind = (code[there] if len(code) == len(there) and len(there) > 1 else code for code in (cell, kind))
    at = slots.slot[there][:, None], kind, row[cell], column[cell]
    if not summed:
        activity = np.full(shape, np.nan, dtype=np.float32)
        activity[at] = numbers[there]
        return activity
    sums = np.zeros(shape)
    np.add.at(sums, at, np.nan_to_num(numbers[there]))
    covered = np.zeros(shape[0], dtype=bool)
    covered[slots.slot[there]] = True
    sums[~covered] = np.nan
    return sums.astype(np.float32)


def _geometry(ids: np.ndarray, places: np.ndarray, cells: Cells | None, cell_size_m: float | None) -> dict[str, Any]:
    """Return mask, identifiers and places, as `read_arrays` takes them."""
    shape = tuple((places.max(axis=0) + 1).tolist())
    at = tuple(places.T)
    mask = np.zeros(shape, dtype=bool)
    mask[at] = True
    whole = ids.dtype.kind in "iu" and int(ids.max()) <= np.iinfo(np.int64).max
    cell_id = np.full(shape, -1, dtype=np.int64)
    cell_id[at] = ids if whole else np.arange(len(ids))
    names = None
    if ids.dtype != np.int64:  # int64 would not keep these identifiers
        kept = ids.astype(np.str_) if ids.dtype.kind == "O" else ids
        names = np.zeros(shape, dtype=kept.dtype)
        names[at] = kept
    found: dict[str, Any] = {"mask": mask, "cell_id": cell_id, "cell_name": names, "cell_size_m": cell_size_m}
    found["geometry"] = "points" if cells is None else "grid"
    if isinstance(cells, str):
        grid = load_grid(cells)
        first = grid.positions(ids).min(axis=0)
        _, lonlat = grid.crop(first, first + shape)
        found.update(cell_size_m=cell_size_m or grid.cell_size_m, lonlat=lonlat)
    return found


def _places(ids: np.ndarray, cells: Cells | None) -> np.ndarray:
    """Return the row and column of each cell, int64 (C, 2)."""
    if cells is None:
        return np.stack([np.zeros(len(ids), dtype=np.int64), np.arange(len(ids))], axis=1)
    if isinstance(cells, str):
        if cells not in GRIDS:
            raise DataError(f"cells is {cells!r}; give (row, column) by unique_id, or one of {', '.join(GRIDS)}")
        if ids.dtype.kind not in "iu":
            raise DataError(
                f"unique_id {_plain(ids[0])!r} is not a cell of the {cells} grid, whose ids are whole numbers"
            )
        positions: np.ndarray = load_grid(cells).positions(ids)
        positions -= positions.min(axis=0)
        return positions
    keys = ids.tolist()
    missing = [key for key in keys if key not in cells]
    if missing:
        raise DataError(
            f"cells has no (row, column) for unique_id {missing[0]!r} ({type(missing[0]).__name__}); give one for "
            "every cell"
        )
    places = np.array([cells[key] for key in keys], dtype=np.int64).reshape(-1, 2)
    if (places < 0).any():
        bad = int((places < 0).any(axis=1).argmax())
        raise DataError(
            f"cells puts unique_id {keys[bad]!r} at {tuple(places[bad].tolist())}; rows and columns start at 0"
        )
    distinct, first, count = np.unique(places, axis=0, return_index=True, return_counts=True)
    if (count > 1).any():
        place = tuple(distinct[count.argmax()].tolist())
        raise DataError(f"cells puts more than one unique_id at {place}, among them {keys[first[count.argmax()]]!r}")
    return places


def _plain(key: Any) -> Any:
    return key.item() if isinstance(key, np.generic) else key
