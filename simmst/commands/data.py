"""``simmst data prepare`` and ``simmst data fetch``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simmst.commands.command import Command
from simmst.commands.output import progress_bars, tell
from simmst.errors import ConfigError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "action",
        choices=["prepare", "fetch"],
        metavar="prepare|fetch",
        help="combine daily files into one .npz file, or download them",
    )
    parser.add_argument("source", type=str, metavar="SOURCE", help="folder, pattern or file; for fetch milan or trento")
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        metavar="PATH",
        help="write here (default: GRID.npz, for fetch the folder official-GRID)",
    )
    files = parser.add_argument_group("to prepare")
    files.add_argument(
        "--grid",
        type=str | None,
        default=None,
        metavar="NAME",
        help="use the grid of milan or trento (default: as the file names say)",
    )
    files.add_argument(
        "--cells", type=str, default="grid", metavar="NAME", help="keep the whole grid, or the part observed"
    )
    files.add_argument(
        "--on_cut", type=str, default="error", metavar="NAME", help="stop with an error at a cut last line, or drop it"
    )
    server = parser.add_argument_group("to fetch")
    server.add_argument(
        "--server", type=str | None, default=None, metavar="URL", help="download from another Dataverse than Harvard's"
    )


def run(options: Namespace) -> None:
    """Prepare or fetch official daily files."""
    from simmst.data.readers.npz import provenance_of
    from simmst.jobs import fetch, prepare

    if options.action == "fetch":
        for name, unused in (("grid", None), ("cells", "grid"), ("on_cut", "error")):
            if options[name] != unused:
                raise ConfigError(f"--{name} belongs to simmst data prepare; fetch takes only milan or trento")
        server = {} if options.server is None else {"server": options.server}
        with progress_bars(quiet=options.quiet) as progress:
            folder = fetch(options.source, options.out, progress=progress, **server)
        tell(f"written: {folder}; next: simmst data prepare {folder}")
        return
    if options.server is not None:
        raise ConfigError("--server belongs to simmst data fetch; prepare reads files on this machine")
    with progress_bars(quiet=options.quiet) as progress:
        path = prepare(
            options.source,
            options.out,
            grid=options.grid,
            cells=options.cells,
            on_cut=options.on_cut,
            progress=progress,
        )
    origin = provenance_of(path) or {}
    files = origin.get("files", [])
    what = "1 daily file" if len(files) == 1 else f"{len(files)} daily files"
    tell(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB from {what})")
    if "doi" in origin:
        checked = "checked" if origin["doi_checked"] else "not checked: not from simmst data fetch"
        tell(f"source: {origin['doi']} ({checked})")
        tell(f"attribution: {origin['attribution']}")
        tell(f"licence: {origin['licence']}")


COMMAND = Command(
    "data",
    "(prepare SOURCE | fetch milan|trento) [options]",
    brief="fetch or combine the official data sets",
    about="Download the official daily files of Milan or Trento, or combine such files into one that loads in seconds.",
    examples=("simmst data fetch milan --out official-milan", "simmst data prepare official-milan --out milan.npz"),
    run=run,
    add_arguments=add_arguments,
    quiet=True,
    resumes=True,
)
