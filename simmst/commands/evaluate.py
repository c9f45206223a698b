"""``simmst evaluate``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simmst.commands.command import Command
from simmst.commands.output import console, tell
from simmst.commands.tables import add_table_arguments, naming_table_flags, table_options

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--run", type=str, required=True, help="folder of the trained forecaster")
    parser.add_argument("--data", type=str, required=True, help="the file it was trained on, or a longer one")
    parser.add_argument("--out", type=str | None, default=None, help="JSON file for the report")
    add_table_arguments(parser)


def run(options: Namespace) -> None:
    """Test the forecaster and show the table."""
    from simmst.jobs import evaluate

    with naming_table_flags():
        report = evaluate(options.run, options.data, table=table_options(options), out=options.out)
    report.print(console())
    if options.out is not None:
        tell(f"written: {options.out}")


COMMAND = Command(
    "evaluate",
    "--run FOLDER --data FILE [options]",
    brief="test on unseen slots, beside the naive baselines",
    about="Test a trained forecaster on the part of a file that it has not seen.",
    run=run,
    add_arguments=add_arguments,
)
