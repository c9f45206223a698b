"""The ``simmst`` command: reads flags and YAML, calls a job, prints what came of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from simmst import __version__
from simmst.errors import SimmstError
from simmst.extras import import_extra

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from simmst.training import Progress


def build_parser() -> ArgumentParser:
    """Build the command line: one subcommand a job, each with ``--config FILE.yaml``.

    Raises:
        MissingExtraError: jsonargparse is not installed.
    """
    jsonargparse = import_extra("jsonargparse", extra="forecast")
    from simmst.forecaster_config import ForecasterConfig

    def command(about: str, *, quiet: bool = True, config: bool = True) -> ArgumentParser:
        parser: ArgumentParser = jsonargparse.ArgumentParser(description=about)
        if config:
            parser.add_argument("--config", action="config", help="YAML file with any of these settings")
        if quiet:
            parser.add_argument("--quiet", action="store_true", help="show no progress bars")
        return parser

    parser: ArgumentParser = jsonargparse.ArgumentParser(
        prog="simmst", description="Forecast cellular traffic with Sim-MSTNet.", version=__version__
    )
    commands = parser.add_subcommands(required=True)

    demo = command("Simulate cities, learn from them, and forecast one city that was held out, or a file's.")
    demo.add_argument("--data", type=str | None, default=None, help="traffic file; without it the city is a SURROGATE")
    demo.add_argument("--out", type=str, default="runs/demo", help="run folder")
    demo.add_argument("--quick", action="store_true", help="fewer cities and epochs: see that everything works")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--step", type=int, default=60, help="minutes of a slot")
    demo.add_argument("--services", type=list[str] | None, default=None, help="services of the file to keep")
    commands.add_subcommand("demo", demo, help="the main job on an embedded default or on your file")

    train = command("Train a forecaster on a traffic file, test it on the file's last days, write a run folder.")
    train.add_argument("--data", type=str, required=True, help="traffic file")
    train.add_argument("--out", type=str, required=True, help="run folder; a run that was killed goes on")
    train.add_argument("--simulated", type=int | None, default=None, help="cities to simulate; 0 for none")
    train.add_argument("--step", type=int | None, default=None, help="minutes of a slot")
    train.add_argument("--services", type=list[str] | None, default=None, help="services of the file to keep")
    train.add_argument("--test_days", type=int, default=7, help="days at the end to test on")
    train.add_argument("--overwrite", action="store_true", help="throw an earlier run in the folder away")
    train.add_class_arguments(ForecasterConfig, "forecaster")
    commands.add_subcommand("train", train, help="train on a file")

    evaluate = command("Test a trained forecaster on the part of a file that it has not seen.", quiet=False)
    evaluate.add_argument("--run", type=str, required=True, help="folder of the trained forecaster")
    evaluate.add_argument("--data", type=str, required=True, help="the file it was trained on, or a longer one")
    evaluate.add_argument("--out", type=str | None, default=None, help="JSON file for the report")
    commands.add_subcommand("evaluate", evaluate, help="test on unseen slots, beside the naive baselines")

    forecast = command("Forecast the slots after the end of a series.", quiet=False)
    forecast.add_argument("--run", type=str, required=True, help="folder of the trained forecaster")
    forecast.add_argument("--data", type=str | None, default=None, help="latest traffic; else what it was fitted on")
    forecast.add_argument("--levels", type=list[int], default=[], help="prediction intervals in percent, as [80,95]")
    forecast.add_argument("--out", type=str | None, default=None, help="CSV file")
    commands.add_subcommand("forecast", forecast, help="forecast with a trained forecaster")

    simulate = command("Simulate cities into a folder; finished ones are kept.")
    simulate.add_argument("--cities", type=int, required=True, help="how many")
    simulate.add_argument("--out", type=str, required=True, help="folder")
    simulate.add_argument("--seed", type=int, default=0)
    simulate.add_argument("--city", type=dict[str, Any], default={}, help="settings to hold fixed, as --city.days 7")
    commands.add_subcommand("simulate", simulate, help="write simulated cities")

    commands.add_subcommand(
        "info", command("Show this installation.", quiet=False, config=False), help="what runs here"
    )
    return parser


@contextmanager
def progress_bars(*, quiet: bool) -> Iterator[Progress]:
    """Give a progress that draws bars on standard error, or one that shows nothing."""
    from simmst import training

    if quiet:
        yield training.quiet
        return
    with training.RichProgress() as progress:
        yield progress


def run_demo(options: Namespace) -> None:
    """Run ``simmst demo``."""
    from simmst.demo import demo

    with progress_bars(quiet=options.quiet) as progress:
        outcome = demo(
            options.data,
            options.out,
            quick=options.quick,
            seed=options.seed,
            step=options.step,
            services=options.services,
            progress=progress,
        )
    show_outcome(outcome)


def run_train(options: Namespace) -> None:
    """Run ``simmst train``."""
    from simmst.jobs import train

    with progress_bars(quiet=options.quiet) as progress:
        outcome = train(
            options.data,
            options.out,
            options.forecaster,
            simulated=options.simulated,
            step=options.step,
            services=options.services,
            test_days=options.test_days,
            overwrite=options.overwrite,
            progress=progress,
        )
    show_outcome(outcome)


def run_evaluate(options: Namespace) -> None:
    """Run ``simmst evaluate``."""
    from simmst.jobs import evaluate

    report = evaluate(options.run, options.data, out=options.out)
    console().print(report.to_table())
    if options.out is not None:
        console().print(f"written: {options.out}")


def run_forecast(options: Namespace) -> None:
    """Run ``simmst forecast``."""
    from simmst.jobs import forecast

    frame = forecast(options.run, data=options.data, levels=options.levels, out=options.out)
    if options.out is None:
        sys.stdout.write(frame.to_csv(index=False))
    else:
        console().print(f"written: {options.out} ({len(frame)} rows)")


def run_simulate(options: Namespace) -> None:
    """Run ``simmst simulate``."""
    from simmst.jobs import simulate

    with progress_bars(quiet=options.quiet) as progress:
        paths = simulate(options.cities, options.out, seed=options.seed, progress=progress, **options.city)
    console().print(f"written: {len(paths)} cities and manifest.json in {options.out}")


def run_info(options: Namespace) -> None:
    """Run ``simmst info``."""
    from simmst.info import show

    show(console())


COMMANDS: dict[str, Callable[[Namespace], None]] = {
    "demo": run_demo,
    "train": run_train,
    "evaluate": run_evaluate,
    "forecast": run_forecast,
    "simulate": run_simulate,
    "info": run_info,
}


def show_outcome(outcome: Any) -> None:
    """Print a report and the names of the files beside it."""
    out = console()
    out.print(outcome.report.to_table())
    for path in outcome.files:
        out.print(f"written: {path}", soft_wrap=True)


def console() -> Any:
    """Return a console on standard output, wide enough for a table where the output is no terminal."""
    rich = import_extra("rich.console", extra="forecast")
    return rich.Console(width=None if sys.stdout.isatty() else 140)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, or 2 after an error, told in one line.

    Args:
        arguments: what follows ``simmst``; None takes the process's own.
    """
    try:
        options = build_parser().parse_args(arguments)
        COMMANDS[options.subcommand](options[options.subcommand])
    except (SimmstError, OSError) as error:
        sys.stderr.write(f"simmst: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("simmst: interrupted; the same command goes on from the last checkpoint\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
