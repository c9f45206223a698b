"""``simmst forecast``."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from simmst.commands.command import Command
from simmst.commands.output import tell
from simmst.commands.tables import add_table_arguments, naming_table_flags, table_options, with_table_flags
from simmst.errors import ConfigError

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
    parser.add_argument(
        "--out", type=str | None, default=None, help="CSV file, else standard output; with --watch a folder"
    )
    parser.add_argument(
        "--watch", type=str | None, default=None, metavar="DIR", help="forecast each file that appears in DIR, once"
    )
    parser.add_argument("--once", action="store_true", help="with --watch: forecast what is there, and end")
    parser.add_argument("--interval", type=float | None, default=None, help="with --watch: seconds between looks; 5")
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

    with _until_a_signal() as stop, naming_table_flags():
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


@contextmanager
def _until_a_signal() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM or SIGINT sets; the same signal again ends the process at once."""
    stop = threading.Event()

    def end(received: int, frame: object) -> None:
        signal.signal(received, signal.SIG_DFL)
        stop.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


COMMAND = Command(
    "forecast",
    "--data FILE | --run FOLDER | --watch DIR [options]",
    brief="forecast a file at once, or with a trained forecaster",
    about="Forecast the slots after the end of a series.",
    run=run,
    add_arguments=add_arguments,
)
