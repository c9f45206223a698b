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
    parser.add_argument("action", choices=["prepare", "fetch"], metavar="prepare|fetch", help="what to do")
    parser.add_argument(
        "source", type=str, metavar="SOURCE", help="prepare: folder, pattern or file; fetch: milan or trento"
    )
    parser.add_argument(
        "--out", type=str | None, default=None, help="prepare: file, GRID.npz; fetch: folder, official-GRID"
    )
    parser.add_argument("--grid", type=str | None, default=None, help="prepare: milan or trento; else by the names")
    parser.add_argument("--cells", type=str, default="grid", help="prepare: grid, or observed, cropped to those")
    parser.add_argument("--on_cut", type=str, default="error", help="prepare: error, or drop a last line that was cut")
    parser.add_argument("--server", type=str | None, default=None, help="fetch: another Dataverse than Harvard's")


def run(options: Namespace) -> None:
    """Prepare or fetch official daily files."""
    from simmst.data.readers.npz import provenance_of
    from simmst.jobs import fetch, prepare

    if options.action == "fetch":
        for name, unused in (("grid", None), ("cells", "grid"), ("on_cut", "error")):
            if options[name] != unused:
                raise ConfigError(f"--{name} belongs to simmst data prepare; fetch takes milan or trento alone")
        server = {} if options.server is None else {"server": options.server}
        with progress_bars(quiet=options.quiet) as progress:
            folder = fetch(options.source, options.out, progress=progress, **server)
        tell(f"written: {folder}; next: simmst data prepare {folder}")
        return
    if options.server is not None:
        raise ConfigError("--server belongs to simmst data fetch; prepare reads files that are there")
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
    tell(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB, of {len(files)} files)")
    if "doi" in origin:
        checked = "checked" if origin["doi_checked"] else "not checked: the files did not come from simmst data fetch"
        tell(f"{origin['doi']} ({checked}), {origin['licence']}, {origin['attribution']}")


COMMAND = Command(
    "data",
    "(prepare SOURCE | fetch milan|trento) [options]",
    brief="fetch the official data sets, and bring their files into one",
    about="Download the official daily files of Milan or Trento, or bring such files into one that loads in seconds.",
    run=run,
    add_arguments=add_arguments,
    quiet=True,
    resumes=True,
)
