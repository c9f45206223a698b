"""The columns of the hourly CSV files of Milan that circulate on Kaggle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simmst.data.readers.frame_columns import FrameColumns, plain_name, row_label

if TYPE_CHECKING:
    import pandas

# By service: countries and directions are summed, as in the official files.
_FIELDS = {"callin": "call", "callout": "call", "smsin": "sms", "smsout": "sms", "internet": "internet"}
_TIMES = ("datetime", "timeinterval")
_IDS = ("cellid", "squareid", "gridid")


def hourly_columns(table: pandas.DataFrame) -> FrameColumns | None:
    """Return the roles of ``datetime, CellID, countrycode, smsin, smsout, callin, callout, internet``; None for others.

    Country codes may be missing, and columns may be in any order. A service needs both its directions, or its only
    column. Empty fields mean no activity.
    """
    by_name = {plain_name(name): name for name in table.columns}
    time = next((by_name[name] for name in _TIMES if name in by_name), None)
    cell = next((by_name[name] for name in _IDS if name in by_name), None)
    fields = [name for name in _FIELDS if name in by_name]
    services = {_FIELDS[name] for name in fields}
    whole = [
        name for name in services if sum(_FIELDS[one] == name for one in fields) == (1 if name == "internet" else 2)
    ]
    if time is None or cell is None or not fields or len(whole) < len(services):
        return None
    if services == {"internet"} and "countrycode" not in by_name:
        return None  # a long table like any other
    return FrameColumns(
        table[time].reset_index(drop=True),
        table[[by_name[name] for name in fields]],
        row_ids=table[cell],
        row_parts=table[by_name["countrycode"]] if "countrycode" in by_name else None,
        column_services=[_FIELDS[name] for name in fields],
        names={"id_col": str(cell), "time_col": str(time)},
        row_label=row_label(table),
        notes=("the rows are summed over countries and directions, and empty fields are no activity",),
        summed=True,
    )
