"""Flags that describe a table of traffic, shared by the commands that read one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from simmst.errors import DataError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

_FLAGS: dict[str, tuple[Any, str]] = {
    "time_col": (str, "column of the slots' starts"),
    "id_col": (str, "column of the cells"),
    "service_col": (str, "column of the services' names"),
    "layout": (str, "long, cells, services or places"),
    "cells": (str, "milan or trento: the cells are those of this official grid"),
    "timezone": (str, "IANA name of the local time; the table's, else Europe/Rome"),
    "country": (str, "ISO code whose public holidays count, or none; the time zone's"),
    "unit": (str, "unit of the activity"),
    "dayfirst": (bool, "true where 1/11/2013 is in November, false where it is in January"),
    "time_format": (str, "form of times as text, such as %d/%m/%Y %H:%M"),
    "decimal": (str, "sign before decimals: . or ,"),
    "round_times": (bool, "true moves each time to the nearest slot"),
    "covariates": (str, "table of times and of what is known in advance, such as the weather"),
}


def add_table_arguments(parser: ArgumentParser) -> None:
    """Add ``--table.time_col`` and the other ``--table`` flags."""
    for name, (kind, text) in _FLAGS.items():
        parser.add_argument(f"--table.{name}", type=kind | None, default=None, help=text)
    parser.add_argument("--table.events", type=str, nargs="+", help="days as a holiday: 2013-12-07 2013-12-08")
    parser.add_argument("--table.target_col", type=str, nargs="+", help="columns of the activity: of cells or services")


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
