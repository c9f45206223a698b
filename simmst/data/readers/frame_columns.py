"""The roles of a table's columns: times, cells, services, activity. A column without a role is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from simmst.data.readers.time_text import looks_like_time
from simmst.errors import DataError
from simmst.foundation.suggestions import suggest

if TYPE_CHECKING:
    import pandas

LAYOUTS = ("long", "cells", "services", "places")
_TIMES = [
    "ds",
    "datetime",
    "timestamp",
    "time",
    "date",
    "slot",
    "starttime",
    "start",
    "begintime",
    "periodstarttime",
    "resulttime",
    "timeinterval",
]
_IDS = [
    "uniqueid",
    "cellid",
    "cell",
    "cellname",
    "squareid",
    "gridid",
    "id",
    "site",
    "siteid",
    "sitename",
    "sector",
    "sectorid",
    "node",
    "nodeid",
    "enodeb",
    "enodebid",
    "gnodeb",
    "gnodebid",
    "bs",
    "bsid",
    "basestation",
    "station",
    "stationid",
    "area",
    "areaid",
    "zone",
    "zoneid",
    "ci",
    "cgi",
    "eci",
    "ecgi",
    "nci",
    "place",
    "placeid",
]
_SERVICES = ["service", "kpi", "counter", "metric", "measure"]
_VALUES = ["y", "value", "traffic", "activity"]
# Columns with these names are derived from the time or the place; no cell is called that.
_NO_CELLS = [
    "hour",
    "minute",
    "day",
    "week",
    "month",
    "year",
    "weekday",
    "dayofweek",
    "weekend",
    "holiday",
    "isweekend",
    "isholiday",
    "lat",
    "lon",
    "latitude",
    "longitude",
    "lng",
    "index",
    "level0",
    "row",
    "column",
    "countrycode",
]
_OWN_SERVICES = {"call", "calls", "sms", "internet", "presence"}


@dataclass(frozen=True)
class FrameColumns:
    """A table and the roles of its columns: R rows with one time each, and M columns of activity.

    A row or a column names the cell of a value, and a row or a column names its service.

    Attributes:
        times: times of the rows, (R,).
        values: activity, R x M, as the table holds it.
        row_ids: cell of each row, or None where the columns name the cells.
        column_ids: cell of each column, or None where the rows name the cells.
        row_services: service of each row, or None.
        column_services: service of each column, or None.
        names: column names of the roles, as `simmst.data.layout.FrameLayout` keeps them.
        row_label: function that names a row for messages.
        notes: roles that were guessed, in words.
        row_parts: what distinguishes rows of the same cell, service and slot that are to be summed, or None.
        summed: whether rows and columns of the same series are summed, with empty fields as zero.
    """

    times: pandas.Series
    values: pandas.DataFrame
    row_ids: pandas.Series | None = None
    column_ids: list[Any] | None = None
    row_services: pandas.Series | None = None
    column_services: list[Any] | None = None
    names: dict[str, str] = field(default_factory=dict)
    row_label: Callable[[int], str] = "row {}".format
    notes: tuple[str, ...] = ()
    row_parts: pandas.Series | None = None
    summed: bool = False


def find_columns(
    table: pandas.DataFrame,
    pd: Any,
    *,
    time_col: str | Sequence[str] | None = None,
    id_col: str | None = None,
    target_col: str | Sequence[str] | None = None,
    service_col: str | None = None,
    layout: str | None = None,
) -> FrameColumns:
    """Find the roles of a table's columns: see `simmst.data.readers.frames.read_dataframe`.

    Raises:
        DataError: a role is not found or found twice, or a column has no role; the message names it and the remedy.
    """
    if layout is not None and layout not in LAYOUTS:
        raise DataError(f"layout is {layout!r}; it must be one of {', '.join(LAYOUTS)}, or None")
    targets = [target_col] if isinstance(target_col, str) else None if target_col is None else list(target_col)
    label = row_label(table)
    if isinstance(table.columns, pd.MultiIndex):
        return _two_levels(table, pd, label)
    repeated = table.columns[table.columns.duplicated()]
    if len(repeated):
        raise DataError(f"the table has more than one column {repeated[0]!r}; give each a name of its own")
    times_given = [time_col] if isinstance(time_col, str) else list(time_col or [])
    for name in (*times_given, id_col, service_col, *(targets or [])):
        if name is not None and name not in table.columns:
            raise DataError(
                f"the table has no column {name!r}; {suggest(name, map(str, table.columns), otherwise='it has')}"
            )
    told = {*times_given, id_col, service_col, *(targets or [])}
    table, notes = _without_leftovers(table, told)
    identifier = id_col or _one_of(table, _IDS, "cells' identifiers", "id_col", first="unique_id")
    found = _time_column(table, pd, times_given, {identifier, service_col, *(targets or [])})
    if found is None or layout == "places":
        if not times_given and layout in (None, "places") and (labels := _time_labels(table, identifier)):
            return _places(table, labels, identifier, service_col, notes, pd)
        raise DataError(
            f"the table has columns {_listed(table.columns)}, and none is known as the time; wanted unique_id, ds, y "
            "(and service), or ds (a column or the index) and one column per cell; name the time with time_col"
        )
    ds, time_name, used = found
    service = service_col or _one_of(table, _SERVICES, "services' names", "service_col", first="service", needed=False)
    rest = [name for name in table.columns if name not in {*used, identifier, service}]
    names = {"id_col": identifier or "unique_id", "time_col": time_name, "service_col": service or "service"}
    if identifier is None:
        if layout == "long":
            raise DataError(f"a long table needs a column of cells, and it has {_listed(table.columns)}; give id_col")
        return _wide(table, ds, rest, targets, service, layout, names, label, notes)
    if layout == "cells":
        raise DataError(f"layout 'cells' has one column per cell, but {identifier!r} holds cells; leave layout out")
    values, target, more = _value_columns(table, rest, targets, identifier, layout)
    notes = [*notes, *more]
    if (identifier, time_name) != ("unique_id", "ds"):
        notes.insert(
            0, f"{time_name!r} is taken as the time, {identifier!r} as the cell, {_listed(values)} as the activity"
        )
    return FrameColumns(
        ds,
        table[values],
        row_ids=table[identifier],
        row_services=None if service is None else table[service],
        column_services=values if target is None else None,
        names=names if target is None else {**names, "target_col": str(target)},
        row_label=label,
        notes=tuple(notes),
    )


def plain_name(name: object) -> str:
    """Return a column's name in lower case, without anything but letters and digits.

    Example:
        >>> plain_name("Cell_ID"), plain_name("PERIOD START TIME")
        ('cellid', 'periodstarttime')
    """
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def is_identifier(name: object) -> bool:
    """Return whether a column has one of the usual names for cells' identifiers."""
    return plain_name(name) in _IDS


def row_label(table: pandas.DataFrame) -> Callable[[int], str]:
    """Return a function that names a row for messages: by its line in a file, or by its number."""
    if table.index.name == "line":  # set by the reader of CSV files
        lines = table.index.to_numpy()
        return lambda row: lines[row] if isinstance(lines[row], str) else f"line {lines[row]}"
    return "row {}".format


def _without_leftovers(table: pandas.DataFrame, told: set[Any]) -> tuple[pandas.DataFrame, list[str]]:
    """Drop an index that a CSV file has kept, and the empty column that a comma at the ends of lines makes."""
    notes = []
    for name in list(table.columns):
        unnamed = re.fullmatch(r"|Unnamed: \d+|index|level_0", str(name).strip()) is not None
        if name in told or not unnamed:
            continue
        column = table[name]
        if column.isna().all():
            notes.append(f"the empty column {name!r} is left out")
        elif _counts_rows(column):
            notes.append(f"column {name!r}, which numbers the rows, is left out")
        else:
            continue
        table = table.drop(columns=name)
    return table, notes


def _counts_rows(column: pandas.Series) -> bool:
    try:
        numbers = column.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError):
        return False
    return bool((np.diff(numbers) == 1).all()) and numbers[0] in (0, 1)


def _one_of(
    table: pandas.DataFrame, known: list[str], what: str, option: str, *, first: str, needed: bool = True
) -> str | None:
    """Return the only column with one of the known names."""
    if first in table.columns:
        return first
    found = [name for name in table.columns if plain_name(name) in known]
    if len(found) > 1 and needed:
        raise DataError(
            f"columns {_listed(found)} may all be the {what}; name the one with {option}, and leave the others out"
        )
    return found[0] if len(found) == 1 else None


def _time_column(
    table: pandas.DataFrame, pd: Any, given: list[str], taken: set[Any]
) -> tuple[pandas.Series, str, list[Any]] | None:
    """Return the times of the rows, their name, and the columns they come from."""
    found = given or (["ds"] if "ds" in table.columns else [])
    if not found:
        found = [name for name in table.columns if name not in taken and plain_name(name) in _TIMES]
        pair = {plain_name(name): name for name in table.columns if name not in taken}
        if "date" in pair and ("time" in pair or "hour" in pair) and len(found) <= 2:
            found = [pair["date"], pair["time"] if "time" in pair else pair["hour"]]
        elif len(found) > 1:
            raise DataError(f"columns {_listed(found)} may all be the time; name the one with time_col")
    if not found:
        found = [
            name
            for name in table.columns
            if name not in taken and pd.api.types.is_datetime64_any_dtype(table[name].dtype)
        ]
        if len(found) > 1:
            raise DataError(f"columns {_listed(found)} all hold times; name the slots' starts with time_col")
    if len(found) == 2:
        return _date_and_clock(table, found[0], found[1], pd), str(found[0]), found
    if found:
        return table[found[0]].reset_index(drop=True), str(found[0]), found
    if isinstance(table.index, (pd.DatetimeIndex, pd.PeriodIndex)):
        name = "ds" if table.index.name is None else str(table.index.name)
        return table.index.to_series(name=name).reset_index(drop=True), name, []
    return None


def _date_and_clock(table: pandas.DataFrame, day: str, clock: str, pd: Any) -> pandas.Series:
    """Join a column of days and a column of clock times or hours into one of times."""
    days = table[day]
    if pd.api.types.is_datetime64_any_dtype(days.dtype):
        days = days.dt.strftime("%Y-%m-%d")
    times = table[clock].astype(str).str.strip()
    hours = times.str.fullmatch(r"\d{1,2}(\.0)?")
    times = times.where(~hours, times.str.replace(".0", "", regex=False) + ":00")
    joined = days.astype(str).str.strip() + " " + times
    return joined.rename(f"{day} {clock}").reset_index(drop=True)


def _value_columns(
    table: pandas.DataFrame, rest: list[Any], targets: list[str] | None, identifier: str, layout: str | None
) -> tuple[list[Any], Any, list[str]]:
    """Return the activity columns of a table with a column of cells, the only one if the table is long, and notes."""
    if targets is not None:
        others = [name for name in rest if name not in targets]
        notes = [f"left out: {_listed(others)}"] if others else []
        return targets, targets[0] if len(targets) == 1 else None, notes
    single = next((name for name in rest if str(name) == "y"), None)
    named = [name for name in rest if plain_name(name) in _VALUES]
    if single is None and len(named) == 1 and (len(rest) == 1 or layout == "long"):
        single = named[0]
    if single is not None and layout != "services":
        others = [name for name in rest if name != single]
        return [single], single, [f"left out: {_listed(others)}"] if others else []
    if not rest:
        raise DataError(
            f"the table has cells in {identifier!r} and no column y of their activity; it has {_listed(table.columns)}"
        )
    if layout == "long":
        raise DataError(f"columns {_listed(rest)} may all be the activity; name the one with target_col")
    for name in rest:
        _refuse_no_activity(table, name)
    return rest, None, []


def _wide(
    table: pandas.DataFrame,
    ds: pandas.Series,
    rest: list[Any],
    targets: list[str] | None,
    service: str | None,
    layout: str | None,
    names: dict[str, str],
    label: Callable[[int], str],
    notes: list[str],
) -> FrameColumns:
    columns = rest if targets is None else targets
    if not columns:
        raise DataError("the wide data frame has no column besides ds; give one column per cell")
    if targets is None:
        for name in columns:
            _refuse_no_activity(table, name)
    of_services = layout == "services" or (
        layout is None and len(columns) > 1 and {plain_name(name) for name in columns} <= _OWN_SERVICES
    )
    if of_services and layout is None:
        notes = [
            *notes,
            f"{_listed(columns)} are taken as services of one place; give layout='cells' if they are cells",
        ]
    elif names["time_col"] != "ds":
        notes = [*notes, f"{names['time_col']!r} is taken as the time, {_listed(columns)} as cells"]
    if targets is not None and (others := [name for name in rest if name not in targets]):
        notes = [*notes, f"left out: {_listed(others)}"]
    return FrameColumns(
        ds,
        table[columns],
        column_ids=[0] * len(columns) if of_services else columns,
        row_services=None if service is None or of_services else table[service],
        column_services=columns if of_services else None,
        names=names,
        row_label=label,
        notes=tuple(notes),
    )


def _refuse_no_activity(table: pandas.DataFrame, name: Any) -> None:
    """Refuse a column without a role: its name or its content shows that it is not activity."""
    column = table[name]
    remedy = "leave it out, or name the columns of activity with target_col"
    if plain_name(name) in _NO_CELLS or str(name).startswith("Unnamed:"):
        raise DataError(f"column {name!r} has no role: its name shows that it is not activity; {remedy}")
    if column.dtype.kind in "iuf":
        return
    if column.dtype.kind in "bMm":
        raise DataError(f"column {name!r} has no role: it holds {column.dtype} such as {column.iloc[0]}; {remedy}")
    texts = column.dropna()
    odd = [value for value in texts.iloc[:200] if isinstance(value, str) and not re.search(r"\d", value)]
    if len(odd) * 2 > min(len(texts), 200):
        raise DataError(f"column {name!r} has no role: it holds text such as {odd[0]!r}; {remedy}")


def _two_levels(table: pandas.DataFrame, pd: Any, label: Callable[[int], str]) -> FrameColumns:
    """Find the roles of columns with two levels (cell, service)."""
    times = [name for name in table.columns if name[0] in ("ds", table.index.name or "ds")]
    if times:
        ds = table[times[0]].reset_index(drop=True).rename("ds")
    elif isinstance(table.index, (pd.DatetimeIndex, pd.PeriodIndex)):
        ds = table.index.to_series(name="ds").reset_index(drop=True)
    else:
        raise DataError(
            f"the table with two levels of columns has no ds, neither as a column nor as the index: "
            f"{_listed(table.columns)}"
        )
    if table.columns.nlevels != 2:
        raise DataError(f"the table's columns have {table.columns.nlevels} levels; give them two, cell and service")
    columns = [name for name in table.columns if name not in times]
    if not columns:
        raise DataError("the wide data frame has no column besides ds; give one column per cell and service")
    return FrameColumns(
        ds,
        table[columns],
        column_ids=[name[0] for name in columns],
        column_services=[name[1] for name in columns],
        row_label=label,
    )


def _time_labels(table: pandas.DataFrame, identifier: str | None) -> list[Any]:
    """Return the columns whose names are times: those of a table with one row for each place."""
    labels = [
        name for name in table.columns if name != identifier and (looks_like_time(name) or hasattr(name, "isoformat"))
    ]
    return labels if len(labels) >= 2 else []


def _places(
    table: pandas.DataFrame, labels: list[Any], identifier: str | None, service: str | None, notes: list[str], pd: Any
) -> FrameColumns:
    """Find the roles of a table with one row for each place and one column for each slot."""
    others = [name for name in table.columns if name not in labels and name not in (identifier, service)]
    if identifier is None and len(others) == 1:
        identifier, others = others[0], []
    service = service or next((name for name in others if plain_name(name) in _SERVICES), None)
    others = [name for name in others if name != service]
    ids = table.index.to_list() if identifier is None else table[identifier].to_list()
    if others:
        notes = [*notes, f"left out: {_listed(others)}"]
    turned = pd.DataFrame({number: table[labels].iloc[number].to_numpy() for number in range(len(table))})
    return FrameColumns(
        pd.Series(labels, dtype=object, name="column"),
        turned,
        column_ids=ids,
        column_services=None if service is None else table[service].to_list(),
        names={"id_col": str(identifier or table.index.name or "unique_id"), "service_col": str(service or "service")},
        row_label=lambda row: f"column {labels[row]!r}",
        notes=(*notes, "each row is taken as a place, each column as a slot"),
    )


def _listed(names: Any) -> str:
    shown = [repr(str(name)) if " " in str(name) or not str(name) else str(name) for name in list(names)[:8]]
    return ", ".join(shown) + (", ..." if len(list(names)) > 8 else "")
