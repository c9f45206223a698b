"""Flags that describe a table of traffic, shared by the commands that read one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from simmst.errors import DataError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

_FLAGS: dict[str, tuple[Any, str, str]] = {
    "time_col": (str, "NAME", "take the starts of slots from this column"),
    "id_col": (str, "NAME", "take the cells from this column"),
    "service_col": (str, "NAME", "take the services from this column"),
    "layout": (str, "NAME", "read the table as long, cells, services or places"),
    "dayfirst": (bool, "true|false", "read 1/11/2013 as 1 November, or as 11 January"),
    "time_format": (str, "FORM", "read times of this form, such as %d/%m/%Y %H:%M"),
    "timezone": (str, "NAME", "set the time zone (default: the table's, else Europe/Rome)"),
    "country": (str, "CODE", "use these holidays, or none (default: by the time zone)"),
    "decimal": (str, "SIGN", "read this sign as the decimal point: . or ,"),
    "round_times": (bool, "true|false", "move each time to the nearest slot"),
    "unit": (str, "NAME", "name the unit of the activity"),
    "cells": (str, "NAME", "place the cells on the official grid of milan or trento"),
    "covariates": (str, "FILE", "add what is known in advance, such as the weather"),
}
_SEVERAL = {
    "target_col": ("NAME", "take the activity from these columns"),
    "events": ("DATE", "count these days as holidays: 2013-12-07 2013-12-08"),
}


def add_table_arguments(parser: ArgumentParser) -> None:
    """Add ``--table.time_col`` and the other ``--table`` flags."""
    group = parser.add_argument_group("to read a table (CSV, Parquet)")
    for name, (kind, metavar, text) in _FLAGS.items():
        group.add_argument(f"--table.{name}", type=kind | None, default=None, metavar=metavar, help=text)
    for name, (metavar, text) in _SEVERAL.items():
        group.add_argument(f"--table.{name}", type=str, nargs="+", metavar=metavar, help=text)


def table_options(options: Namespace) -> dict[str, Any]:
    """Return the given flags as options of `TrafficDataset.from_dataframe`."""
    given = {name: value for name, value in options.table.as_dict().items() if value is not None}
    if str(given.get("country", "")).lower() == "none":
        given["country"] = None
    if len(given.get("target_col", ())) == 1:
        given["target_col"] = given["target_col"][0]
    return given


@contextmanager
def naming_table_flags() -> Iterator[None]:
    """Add the command-line flag to errors that ask for a table option."""
    try:
        yield
    except DataError as error:
        raise DataError(with_table_flags(str(error))) from error


def with_table_flags(message: str) -> str:
    """Add the command-line flag to a message that asks for a table option."""
    asked = [name for name in (*_FLAGS, "target_col") if re.search(rf"\b{name}\b( |=|, )", f"{message} ")]
    flags = ", ".join(f"--table.{name}" for name in asked if name not in ("layout", "unit", "cells"))
    return f"{message} (here: {flags})" if flags else message
