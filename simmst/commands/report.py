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
    parser.add_argument(
        "--data", type=str | None, default=None, help="forecast this anew: the file of the run, or a longer one"
    )
    parser.add_argument("--days", type=int | None, default=None, help="last days on the map; as many as are light")
    parser.add_argument("--out", type=str | None, default=None, help="HTML file; else report.html in the folder")
    parser.add_argument("--open", action="store_true", help="show the page in the browser")
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
    brief="one page of a run, with its map, to look at",
    about="Write one self-contained HTML page of a run: map, series, errors, weights, training, record.",
    run=run,
    add_arguments=add_arguments,
)
