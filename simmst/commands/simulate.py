"""``simmst simulate``, and ``simmst simulate --compare``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from simmst.commands.command import Command
from simmst.commands.output import console, progress_bars, tell
from simmst.errors import ConfigError
from simmst.foundation.workers import available_cores

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--cities", type=int, default=None, help="how many; 100 with --compare")
    parser.add_argument(
        "--compare",
        type=str,
        nargs="+",
        help="real files: does every statistic of theirs lie in the 5-95 % band of cities simulated in their shape?",
    )
    parser.add_argument(
        "--place_cells", type=int | None, default=None, help="cells a side of a place, for files of places (--compare)"
    )
    parser.add_argument("--out", type=str, required=True, help="folder")
    parser.add_argument("--seed", type=int, default=0, help="of the family of cities")
    parser.add_argument("--city", type=dict[str, Any], default={}, help="settings to hold fixed, as --city.days 7")
    parser.add_argument("--prior", type=str | None, default=None, help="YAML file with the law of the parameters")
    parser.add_argument(
        "--format", type=str, default="shards", help="shards (Parquet), or official (daily text files, 10 minutes)"
    )
    parser.add_argument("--workers", type=int | None, default=None, help="processes; one a core when left out")


def run(options: Namespace) -> None:
    """Simulate cities into a folder, or compare them with real files."""
    if options.compare:
        compare(options)
        return
    if options.cities is None:
        raise ConfigError("simulate needs --cities NUMBER, or --compare FILE; see simmst simulate --help")
    from simmst.jobs import simulate

    with progress_bars(quiet=options.quiet) as progress:
        simulate(
            options.cities,
            options.out,
            seed=options.seed,
            city=options.city,
            prior=options.prior,
            format=options.format,
            workers=options.workers,
            progress=progress,
        )
    cities = "1 city" if options.cities == 1 else f"{options.cities} cities"
    tell(f"written: {cities} and manifest.json in {options.out}")


def compare(options: Namespace) -> None:
    """Compare simulated cities with real files."""
    from simmst.realism import compare_files
    from simmst.simulation import DomainPrior

    for name, unused in (("city", bool(options.city)), ("format", options.format != "shards")):
        if unused:
            raise ConfigError(f"--{name} has no place beside --compare, whose files settle what is simulated")
    with progress_bars(quiet=options.quiet) as progress:
        report = compare_files(
            options.compare,
            cities=100 if options.cities is None else options.cities,
            seed=options.seed,
            prior=DomainPrior.from_yaml(options.prior) if options.prior else None,
            place_cells=options.place_cells,
            workers=options.workers or available_cores(),
            progress=lambda done, total: progress("simulate", done, total),
        )
    report.print(console())
    for path in report.save(options.out):
        tell(f"written: {path}")


COMMAND = Command(
    "simulate",
    "(--cities NUMBER | --compare FILE...) --out FOLDER [options]",
    brief="write simulated cities, or compare them with real files",
    about="Simulate cities into a folder; finished ones are kept. With --compare, measure how real they are.",
    run=run,
    add_arguments=add_arguments,
    quiet=True,
    resumes=True,
)
