"""The attributes of a data set from long and wide data frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from simmst.data.calendar import zone
from simmst.data.readers.arrays import read_arrays
from simmst.errors import DataError
from simmst.foundation.extras import import_extra

if TYPE_CHECKING:
    import pandas


def read_dataframe(
    frame: Any,
    *,
    cells: Mapping[Any, tuple[int, int]] | None = None,
    timezone: str = "Europe/Rome",
    country: str | None = "IT",
    service: str = "traffic",
    step_minutes: int | None = None,
    unit: str = "CDR units",
    name: str = "traffic",
    surrogate: bool = False,
    cell_size_m: float | None = None,
) -> dict[str, Any]:
    """Bring a pandas (or polars) data frame to the attributes of a data set, by name.

    Long: columns ``unique_id``, ``ds``, ``y`` and, for more than one service, ``service``. Wide: ``ds`` as a column or
    the index, and one column per cell, or columns with two levels (unique_id, service). Slots that a series lacks are
    NaN, between its rows as well as before its first and after its last.

    Args:
        frame: the data.
        cells: unique_id -> (row, column) with row 0 south; gives geometry "grid". Without it the cells are "points".
        timezone: IANA name. Times without a time zone are local times there; others are converted.
        country: ISO code whose public holidays count, or None.
        service: the name of the one service where the frame names none.
        step_minutes: length of a slot; by default the shortest distance between two slots, or the usual one where
            the others are no multiples of the shortest.
        unit: unit of the activity; negative values need ``"z-score"``.
        name: a short name.
        surrogate: True for simulated data that stands in for a real city.
        cell_size_m: edge of a cell in metres.

    Raises:
        DataError: a column is missing; a time is no time, out of order or twice in its series, ambiguous in local time,
            or off the grid of slots; a value is no number. The message names row and value.

    Example:
        >>> import pandas as pd
        >>> ds = pd.date_range("2013-11-01", periods=24, freq="h")
        >>> wide = pd.DataFrame({"ds": ds, "a": range(24), "b": range(24)})
        >>> read_dataframe(wide)["activity"].shape
        (24, 1, 1, 2)
    """
    pd = import_extra("pandas", extra="forecast")
    table = frame if isinstance(frame, pd.DataFrame) else frame.to_pandas() if hasattr(frame, "to_pandas") else None
    if table is None:
        raise DataError(f"frame must be a pandas or polars DataFrame, got {type(frame).__name__}")
    if table.empty:
        raise DataError("the data frame has no rows; give at least two slots")
    long = _long(table, service, pd)
    seconds = _utc_seconds(long, timezone, pd)
    values = _numbers(long, pd)
    ids, id_code = _codes(long, "unique_id", pd)
    services, service_code = _codes(long, "service", pd)
    _check_order(long, seconds, id_code * len(services) + service_code)
    slots, step = _slots(long, seconds, step_minutes)
    rows, cols, shape = _places(ids, cells)
    activity = np.full((int(slots.max()) + 1, len(services), *shape), np.nan, dtype=np.float32)
    activity[slots, service_code, rows[id_code], cols[id_code]] = values
    mask = np.zeros(shape, dtype=bool)
    mask[rows, cols] = True
    cell_id = np.full(shape, -1, dtype=np.int64)
    whole = all(isinstance(key, (int, np.integer)) for key in ids)
    cell_id[rows, cols] = ids if whole else np.arange(len(ids))
    names = np.full(shape, "", dtype=object)
    names[rows, cols] = [str(key) for key in ids]
    return read_arrays(
        activity,
        int(seconds.min()) + np.arange(len(activity)) * step,
        services=[str(key) for key in services],
        mask=mask,
        cell_id=cell_id,
        geometry="points" if cells is None else "grid",
        cell_name=None if whole else names.astype(np.str_),
        timezone=timezone,
        country=country,
        unit=unit,
        name=name,
        surrogate=surrogate,
        cell_size_m=cell_size_m,
    )


def _long(table: pandas.DataFrame, service: str, pd: Any) -> pandas.DataFrame:
    """Bring either form to columns unique_id, service, ds, y and `row`, the row number in the frame given."""
    columns = list(table.columns)
    if {"unique_id", "ds", "y"} <= set(columns):
        long = table[["unique_id", "ds", "y"]].reset_index(drop=True)
        long["service"] = table["service"].to_numpy() if "service" in columns else service
        long["row"] = np.arange(len(long))
        return long
    two_levels = isinstance(table.columns, pd.MultiIndex)
    ds_columns = [c for c in columns if (c[0] if two_levels else c) == "ds"]
    if ds_columns:
        ds = table[ds_columns[0]]
    elif isinstance(table.index, pd.DatetimeIndex):
        ds = table.index.to_series()
    else:
        raise DataError(
            f"the data frame has columns {', '.join(map(str, columns[:8]))}; wanted unique_id, ds, y (and service), "
            "or ds (a column or the index) and one column per cell"
        )
    if {"unique_id", "y"} & set(columns):
        missing = {"unique_id", "y"} - set(columns)
        raise DataError(
            f"the long data frame has no column {', '.join(missing)}; it has {', '.join(map(str, columns))}"
        )
    series = [c for c in columns if c not in ds_columns]
    if not series:
        raise DataError("the wide data frame has no column beside ds; give one column per cell")
    ds = ds.reset_index(drop=True)
    parts = [
        pd.DataFrame(
            {
                "unique_id": pd.Series([c[0] if two_levels else c] * len(ds), dtype=object),
                "service": c[1] if two_levels else service,
                "ds": ds,
                "y": table[c].to_numpy(),
                "row": np.arange(len(ds)),
            }
        )
        for c in series
    ]
    return pd.concat(parts, ignore_index=True)


def _utc_seconds(long: pandas.DataFrame, timezone: str, pd: Any) -> np.ndarray:
    """Slot starts as epoch seconds, int64."""
    ds, rows = long["ds"], long["row"]
    zone(timezone)  # an unknown name is an error before anything else
    if ds.dtype.kind in "iuf":
        raise DataError(f"ds holds numbers such as {ds.iloc[0]}; convert them with pandas.to_datetime and its unit")
    try:
        times = pd.to_datetime(ds, errors="coerce")
    except ValueError as error:  # pandas refuses mixed time zones
        raise DataError(
            f"ds mixes time zones ({error}); convert it with pandas.to_datetime(df.ds, utc=True)"
        ) from error
    if times.dtype == object:
        raise DataError(
            "ds mixes times with and without time zones; convert it with pandas.to_datetime(df.ds, utc=True)"
        )
    if times.isna().any():
        row = int(times.isna().to_numpy().argmax())
        raise DataError(f"row {rows[row]}: ds {ds.iloc[row]!r} is not a time; write it as 2013-11-01 00:00:00")
    if times.dt.tz is None:
        local = times.dt.tz_localize(timezone, ambiguous="NaT", nonexistent="NaT")
        if local.isna().any():
            row = int(local.isna().to_numpy().argmax())
            raise DataError(
                f"row {rows[row]}: ds {times.iloc[row]} comes twice or not at all in {timezone}, where the clocks "
                "change; give times with a time zone, such as UTC: df.ds.dt.tz_localize('UTC')"
            )
        times = local
    utc = times.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy().astype("datetime64[s]")
    seconds: np.ndarray = utc.astype(np.int64)
    return seconds


def _numbers(long: pandas.DataFrame, pd: Any) -> np.ndarray:
    y = long["y"]
    values = pd.to_numeric(y, errors="coerce")
    wrong = (values.isna() & y.notna()).to_numpy()
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"row {long['row'][row]}: y {y.iloc[row]!r} of {long['unique_id'][row]!r} is not a number; "
            "leave missing values empty"
        )
    numbers: np.ndarray = values.to_numpy(dtype=np.float64, na_value=np.nan)
    return numbers


def _codes(long: pandas.DataFrame, what: str, pd: Any) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys in order of appearance, and each row's number among them."""
    codes, keys = pd.factorize(long[what])
    if (codes < 0).any():
        raise DataError(f"row {long['row'][int((codes < 0).argmax())]}: {what} is empty; every row needs one")
    return np.asarray(keys), codes.astype(np.int64)


def _check_order(long: pandas.DataFrame, seconds: np.ndarray, series: np.ndarray) -> None:
    """Within a series, times must ascend."""
    order = np.argsort(series, kind="stable")
    same = np.diff(series[order]) == 0
    bad = same & (np.diff(seconds[order]) <= 0)
    if not bad.any():
        return
    first = order[1:][bad].min()
    before = order[np.flatnonzero(order == first)[0] - 1]
    who = f"{long['unique_id'].iloc[first]!r}, service {long['service'].iloc[first]!r}"
    what = (
        "is there twice"
        if seconds[first] == seconds[before]
        else f"comes after {long['ds'].iloc[before]}, out of order"
    )
    raise DataError(
        f"row {long['row'].iloc[first]}: ds {long['ds'].iloc[first]} of {who} {what}; sort the frame by unique_id, "
        "service and ds and keep each slot once"
    )


def _slots(long: pandas.DataFrame, seconds: np.ndarray, step_minutes: int | None) -> tuple[np.ndarray, int]:
    """Each row's slot number, and the step in seconds."""
    distinct = np.unique(seconds)
    if len(distinct) < 2:
        raise DataError(f"the data frame has the one slot {long['ds'].iloc[0]}; at least two are needed")
    if step_minutes is None:
        gaps, count = np.unique(np.diff(distinct), return_counts=True)
        # One odd time makes a short gap that nothing else fits; the usual gap then shows which time is odd.
        step = int(gaps[0] if not (gaps % gaps[0]).any() else gaps[count.argmax()])
    else:
        step = step_minutes * 60
    slots, rest = np.divmod(seconds - distinct[0], step)
    if rest.any():
        row = int((rest != 0).argmax())
        raise DataError(
            f"row {long['row'].iloc[row]}: ds {long['ds'].iloc[row]} is no whole number of {step / 60:g} min slots "
            f"after the first one; give step_minutes, or bring the times to one grid"
        )
    if slots.max() > 100 * len(distinct) + 1000:
        row = int(slots.argmax())
        raise DataError(
            f"row {long['row'].iloc[row]}: ds {long['ds'].iloc[row]} lies {int(slots[row])} slots of {step / 60:g} min "
            f"after the first, and only {len(distinct)} of them have rows; check that time"
        )
    return slots, step


def _places(
    ids: np.ndarray, cells: Mapping[Any, tuple[int, int]] | None
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Row and column of each cell, and the raster's shape."""
    if cells is None:
        return np.zeros(len(ids), dtype=np.int64), np.arange(len(ids)), (1, len(ids))
    missing = [key for key in ids if key not in cells]
    if missing:
        raise DataError(f"cells has no (row, column) for unique_id {missing[0]!r}; give one for every cell")
    places = np.array([cells[key] for key in ids], dtype=np.int64).reshape(-1, 2)
    if (places < 0).any():
        bad = int((places < 0).any(axis=1).argmax())
        raise DataError(
            f"cells puts unique_id {ids[bad]!r} at {tuple(places[bad].tolist())}; rows and columns start at 0"
        )
    distinct, first, count = np.unique(places, axis=0, return_index=True, return_counts=True)
    if (count > 1).any():
        place = tuple(distinct[count.argmax()].tolist())
        raise DataError(f"cells puts more than one unique_id at {place}, among them {ids[first[count.argmax()]]!r}")
    height, width = (places.max(axis=0) + 1).tolist()
    return places[:, 0], places[:, 1], (height, width)
