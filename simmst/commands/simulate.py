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
    parser.add_argument(
        "--cities", type=int, default=None, metavar="N", help="simulate this many (default: 100 with --compare)"
    )
    parser.add_argument("--out", type=str, required=True, metavar="FOLDER", help="write into this folder")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed the cities")
    parser.add_argument(
        "--city", type=dict[str, Any], default={}, metavar="...", help="fix settings of all, such as --city.days 7"
    )
    parser.add_argument(
        "--prior", type=str | None, default=None, metavar="FILE", help="draw parameters as this YAML file says"
    )
    parser.add_argument(
        "--format", type=str, default="shards", metavar="NAME", help="write shards (Parquet) or official (daily files)"
    )
    parser.add_argument(
        "--workers", type=int | None, default=None, metavar="N", help="use this many processes (default: one per core)"
    )
    files = parser.add_argument_group("to compare with real files")
    files.add_argument("--compare", type=str, nargs="+", metavar="FILE", help="compare simulated cities with these")
    files.add_argument(
        "--place_cells", type=int | None, default=None, metavar="N", help="give each place this many cells a side"
    )


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
            raise ConfigError(f"--{name} cannot go with --compare, because its files decide what is simulated")
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
    brief="simulate cities, or compare them with real ones",
    about=(
        "Simulate cities into a folder; the same command keeps the finished ones. With --compare, measure how real "
        "simulated cities are: each statistic of the files should lie in their 5-95 % band."
    ),
    examples=(
        "simmst simulate --cities 100 --out cities --city.days 14",
        "simmst simulate --compare milan.npz --out realism",
    ),
    run=run,
    add_arguments=add_arguments,
    quiet=True,
    resumes=True,
)
