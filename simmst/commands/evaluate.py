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
    parser.add_argument("--data", type=str, required=True, help="traffic file or folder; surrogate simulates a city")
    parser.add_argument(
        "--out", type=str | None, default=None, help="folder of a table (results), or JSON file of a run"
    )
    parser.add_argument("--run", type=str | None, default=None, help="test the trained forecaster in this folder")
    text = "write --table 1 (one service), 2 (several) or 3 (ablations): make that table of the paper; the name in YAML"
    parser.add_argument(_TABLE, type=int | None, default=None, help=text)
    parser.add_argument("--figure", type=int | None, default=None, help="2: draw the best two of a table, too")
    parser.add_argument(
        "--protocol", type=str, default="hourly", help="hourly, tenmin, fedgcc, lowdata, lowdata-tenmin"
    )
    parser.add_argument("--horizons", type=int, nargs="+", help="steps ahead; the protocol's when left out")
    parser.add_argument("--days", type=int, nargs="+", help="days known before the test, of lowdata: 1 2 4 7 14")
    parser.add_argument("--systems", type=str, nargs="+", help="rows of the table, such as dcrnn dcrnn+memory fit")
    parser.add_argument("--services", type=str, nargs="+", help="services; Internet for table 1, else all")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each system")
    parser.add_argument("--quick", action="store_true", help="short trainings of small networks: a look, no result")
    parser.add_argument("--tune", type=int, default=1, help="configurations tried a system, judged on validation days")
    parser.add_argument("--jobs", type=int | None, default=None, help="processes; one a core when left out")
    parser.add_argument("--only_finished", action="store_true", help="the table of finished cells; compute none")
    parser.add_argument("--any_code", action="store_true", help="keep finished cells of other versions of the code")
    add_table_arguments(parser)


def words(given: Sequence[str]) -> list[str]:
    """Let ``--table 1`` name a table of the paper, while ``--table.dayfirst`` describes the data file."""
    return [_TABLE + word.removeprefix("--table") if word.split("=")[0] == "--table" else word for word in given]


def run(options: Namespace) -> None:
    """Test a forecaster, or make a table of the paper, and show it."""
    if options.figure not in (None, 2):
        raise ArgumentError(None, f"figure is {options.figure}; the paper's figure that is drawn here is 2")
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
    brief="test a forecaster on unseen slots, or make the paper's tables",
    about=(
        "Test a trained forecaster on the part of a file that it has not seen, beside the naive baselines; or make a "
        "table of the paper on a file: every system is trained on what precedes the test and forecasts it. Finished "
        "cells are kept: the same command goes on where it ended."
    ),
    run=run,
    add_arguments=add_arguments,
    quiet=True,
    resumes=True,
    words=words,
)
