"""``simmst forecast``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from simmst.commands.command import Command
from simmst.commands.output import tell

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--run", type=str, required=True, help="folder of the trained forecaster")
    parser.add_argument(
        "--data", type=str | None, default=None, help="the latest traffic; else the slots it was fitted on"
    )
    parser.add_argument("--levels", type=int, nargs="+", default=[], help="prediction intervals in percent: 80 95")
    parser.add_argument("--out", type=str | None, default=None, help="CSV file; else standard output")


def run(options: Namespace) -> None:
    """Forecast, and write CSV to a file or to standard output."""
    from simmst.jobs import forecast

    frame = forecast(options.run, data=options.data, levels=options.levels, out=options.out)
    if options.out is None:
        sys.stdout.write(frame.to_csv(index=False))
    else:
        tell(f"written: {options.out} ({len(frame)} rows)")


COMMAND = Command(
    "forecast",
    "--run FOLDER [--data FILE] [options]",
    brief="forecast with a trained forecaster",
    about="Forecast the slots after the end of a series.",
    run=run,
    add_arguments=add_arguments,
)
