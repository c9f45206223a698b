"""``simmst forecast``."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, TextIO

from simmst.commands.command import Command
from simmst.commands.output import tell
from simmst.commands.signals import until_a_signal
from simmst.commands.tables import add_table_arguments, naming_table_flags, table_options, with_table_flags
from simmst.errors import ConfigError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--data", type=str | None, default=None, metavar="FILE", help="read the latest traffic from this file"
    )
    parser.add_argument(
        "--run", type=str | None, default=None, metavar="FOLDER", help="use this forecaster, not the shipped weights"
    )
    parser.add_argument(
        "--horizon",
        type=int | None,
        default=None,
        metavar="N",
        help="forecast this many slots (default: 6, or the run's own)",
    )
    parser.add_argument(
        "--levels", type=int, nargs="+", default=[], metavar="PERCENT", help="add prediction intervals, such as 80 95"
    )
    parser.add_argument(
        "--out", type=str | None, default=None, metavar="FILE", help="write CSV here, not to standard output"
    )
    parser.add_argument("--services", type=str, nargs="+", metavar="NAME", help="keep only these services")
    parser.add_argument(
        "--step", type=int | None, default=None, metavar="MINUTES", help="sum the traffic to slots this long"
    )
    folder = parser.add_argument_group("to watch a folder (--out is then a folder)")
    folder.add_argument(
        "--watch",
        type=str | None,
        default=None,
        metavar="FOLDER",
        help="forecast each file that appears in this folder",
    )
    folder.add_argument("--once", action="store_true", help="forecast the files already there, and stop")
    folder.add_argument(
        "--interval",
        type=float | None,
        default=None,
        metavar="SECONDS",
        help="look into the folder this often (default: 5)",
    )
    add_table_arguments(parser)


def run(options: Namespace) -> None:
    """Forecast, and write CSV to a file or to standard output."""
    from simmst.jobs import forecast

    if options.watch is not None:
        watch_folder(options)
        return
    for name, given in (("once", options.once), ("interval", options.interval is not None)):
        if given:
            raise ConfigError(f"--{name} goes with --watch DIR, which is missing")
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


def watch_folder(options: Namespace) -> None:
    """Forecast the files that appear in a folder until a signal ends the watch."""
    from simmst.jobs import watch
    from simmst.jobs.watching import INTERVAL

    if options.data is not None:
        raise ConfigError("give --data FILE for one file or --watch DIR for those that appear in a folder, not both")

    def line(to: TextIO, text: str) -> None:
        to.write(f"{text}\n")
        to.flush()

    with until_a_signal(signal.SIGTERM, signal.SIGINT) as stop, naming_table_flags():
        watch(
            options.watch,
            run=options.run,
            horizon=options.horizon,
            step=options.step,
            services=options.services,
            levels=options.levels,
            table=table_options(options),
            out=options.out,
            once=options.once,
            interval=INTERVAL if options.interval is None else options.interval,
            stop=stop,
            tell=lambda text: line(sys.stdout, text),
            complain=lambda text: line(sys.stderr, with_table_flags(text)),
        )


COMMAND = Command(
    "forecast",
    "--data FILE | --run FOLDER | --watch FOLDER [options]",
    brief="forecast the next slots of a file",
    about=(
        "Forecast the slots after the end of a series and write CSV: at once with the shipped weights, or with a "
        "forecaster that simmst train wrote."
    ),
    examples=(
        "simmst forecast --data latest.csv --horizon 24 --levels 80 95",
        "simmst forecast --run runs/milan --data latest.npz --out forecast.csv",
        "simmst forecast --watch incoming --out forecasts",
    ),
    run=run,
    add_arguments=add_arguments,
)
