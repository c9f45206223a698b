"""``simmst report``."""

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
    parser.add_argument("run", type=str, metavar="RUN", help="folder that simmst train or demo wrote")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument(
        "--out", type=str | None, default=None, metavar="FILE", help="write the page here (default: RUN/report.html)"
    )
    parser.add_argument(
        "--data",
        type=str | None,
        default=None,
        metavar="FILE",
        help="forecast the slots of this file that are new to it",
    )
    parser.add_argument(
        "--days", type=int | None, default=None, metavar="N", help="show this many last days on the map"
    )
    add_table_arguments(parser)


def run(options: Namespace) -> None:
    """Write the page, and open it if asked to."""
    from simmst.jobs import report

    with naming_table_flags():
        path = report(options.run, data=options.data, table=table_options(options), days=options.days, out=options.out)
    tell(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    if options.open:
        import webbrowser

        if not webbrowser.open(path.resolve().as_uri()):
            sys.stderr.write(f"note: no browser was found; open {path} yourself\n")


COMMAND = Command(
    "report",
    "RUN [options]",
    brief="write an HTML page of a run",
    about="Write one self-contained HTML page of a run, with its map, series, errors, training and settings.",
    examples=("simmst report runs/milan --open",),
    run=run,
    add_arguments=add_arguments,
)
