"""``simmst evaluate``."""

from __future__ import annotations

import sys
from argparse import ArgumentError
from collections.abc import Sequence
from typing import TYPE_CHECKING

from simmst.commands.command import Command
from simmst.commands.output import console, progress_bars, tell
from simmst.commands.tables import add_table_arguments, naming_table_flags, table_options

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

_TABLE = "--paper_table"  # the parser's name for --table, because --table.dayfirst and others form a group there


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--data", type=str, required=True, metavar="FILE", help="test on this traffic; surrogate simulates a city"
    )
    parser.add_argument(
        "--run", type=str | None, default=None, metavar="FOLDER", help="test the trained forecaster in this folder"
    )
    text = "make a table of the paper: 1 one service, 2 several, 3 ablations"
    parser.add_argument(_TABLE, type=int | None, default=None, metavar="1|2|3", help=text)
    parser.add_argument(
        "--figure", type=int | None, default=None, metavar="2", help="draw the best two systems of the table"
    )
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        metavar="PATH",
        help="write a table into this folder (default: results), or --run's report to this JSON file",
    )
    table = parser.add_argument_group("to make a table")
    table.add_argument("--quick", action="store_true", help="train small networks briefly: a first look, not a result")
    table.add_argument(
        "--protocol",
        type=str,
        default="hourly",
        metavar="NAME",
        help="split by hourly, tenmin, fedgcc, lowdata or lowdata-tenmin",
    )
    table.add_argument("--horizons", type=int, nargs="+", metavar="N", help="forecast these numbers of steps ahead")
    table.add_argument("--systems", type=str, nargs="+", metavar="NAME", help="make only these rows, such as dcrnn fit")
    table.add_argument(
        "--services", type=str, nargs="+", metavar="NAME", help="keep these (default: Internet for table 1, else all)"
    )
    table.add_argument(
        "--days", type=int, nargs="+", metavar="N", help="know this many days before the test, in lowdata"
    )
    table.add_argument("--seeds", type=int, default=3, metavar="N", help="train each system this many times")
    table.add_argument("--tune", type=int, default=1, metavar="N", help="try this many configurations of each system")
    table.add_argument(
        "--jobs", type=int | None, default=None, metavar="N", help="use this many processes (default: one per core)"
    )
    table.add_argument("--only_finished", action="store_true", help="show the finished cells, and train none")
    table.add_argument("--any_code", action="store_true", help="keep finished cells of other versions of the code")
    add_table_arguments(parser)


def words(given: Sequence[str]) -> list[str]:
    """Let ``--table 1`` name a table of the paper, while ``--table.dayfirst`` describes the data file."""
    return [_TABLE + word.removeprefix("--table") if word.split("=")[0] == "--table" else word for word in given]


def run(options: Namespace) -> None:
    """Test a forecaster, or make a table of the paper, and show it."""
    if options.figure not in (None, 2):
        raise ArgumentError(None, f"figure is {options.figure}; only the paper's Figure 2 can be drawn")
    table = 1 if options.paper_table is None and options.figure is not None else options.paper_table
    if (options.run is None) == (table is None):
        what = "give one of" if options.run is None else "give only one of"
        raise ArgumentError(None, f"{what} --run FOLDER (a trained forecaster) and --table 1, 2 or 3 (of the paper)")
    if table is None:
        _test(options)
    else:
        _make(table, options)


def _test(options: Namespace) -> None:
    from simmst.jobs import evaluate

    if options.services is not None:
        raise ArgumentError(None, "a run has services of its own; leave --services out")
    with naming_table_flags():
        report = evaluate(options.run, options.data, table=table_options(options), out=options.out)
    report.print(console())
    if options.out is not None:
        tell(f"written: {options.out}")


def _make(table: int, options: Namespace) -> None:
    from simmst.evaluation.tables import print_table
    from simmst.jobs.tables import make_table

    with naming_table_flags(), progress_bars(quiet=options.quiet) as progress:
        made = make_table(
            table,
            options.data,
            options.out or "results",
            protocol=options.protocol,
            horizons=options.horizons,
            days=options.days,
            systems=options.systems,
            services=options.services,
            seeds=options.seeds,
            quick=options.quick,
            budget=options.tune,
            jobs=options.jobs,
            figure=options.figure is not None,
            any_code=options.any_code,
            only_finished=options.only_finished,
            file_options=table_options(options),
            progress=progress,
        )
    for line in made.warnings:
        sys.stderr.write(f"simmst: {line}\n")
    print_table(made.table, console())
    for path in made.files:
        tell(f"written: {path}")


COMMAND = Command(
    "evaluate",
    "--data FILE (--run FOLDER | --table 1|2|3 | --figure 2) [options]",
    brief="test a forecaster, or make the paper's tables",
    about=(
        "Test a trained forecaster on the slots of a file that it has not seen, beside the naive baselines; or make a "
        "table of the paper on a file. For a table, every system is trained on the slots before the test. Finished "
        "cells are kept, so the same command resumes an interrupted table."
    ),
    examples=(
        "simmst evaluate --run runs/milan --data longer.npz",
        "simmst evaluate --table 1 --data milan.npz --quick --out results",
    ),
    run=run,
    add_arguments=add_arguments,
    quiet=True,
    resumes=True,
    words=words,
)
