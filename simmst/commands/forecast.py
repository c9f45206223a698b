"""``simmst forecast``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from simmst.commands.command import Command
from simmst.commands.output import tell
from simmst.commands.tables import add_table_arguments, naming_table_flags, table_options

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--run", type=str | None, default=None, help="folder of a trained forecaster; else the shipped weights"
    )
    parser.add_argument(
        "--data", type=str | None, default=None, help="the latest traffic; else the slots it was fitted on"
    )
    parser.add_argument("--horizon", type=int | None, default=None, help="slots ahead, by the shipped weights; 6")
    parser.add_argument("--step", type=int | None, default=None, help="minutes of a slot; the file's when left out")
    parser.add_argument("--services", type=str, nargs="+", help="services to keep; all when left out")
    parser.add_argument("--levels", type=int, nargs="+", default=[], help="prediction intervals in percent: 80 95")
    parser.add_argument("--out", type=str | None, default=None, help="CSV file; else standard output")
    add_table_arguments(parser)


def run(options: Namespace) -> None:
    """Forecast, and write CSV to a file or to standard output."""
    from simmst.jobs import forecast

    with naming_table_flags():
        found = forecast(
            options.run,
            data=options.data,
            horizon=options.horizon,
            step=options.step,
            services=options.services,
            levels=options.levels,
            table=table_options(options),
            out=options.out,
        )
    for note in found.notes:
        sys.stderr.write(f"note: {note}\n")
    if options.out is None:
        sys.stdout.write(found.frame.to_csv(index=False))
    else:
        tell(f"written: {options.out} ({len(found.frame)} rows)")


COMMAND = Command(
    "forecast",
    "--data FILE | --run FOLDER [options]",
    brief="forecast a file at once, or with a trained forecaster",
    about="Forecast the slots after the end of a series.",
    run=run,
    add_arguments=add_arguments,
)
