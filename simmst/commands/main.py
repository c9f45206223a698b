"""The ``simmst`` command: reads flags and YAML, calls a job, prints what came of it."""

from __future__ import annotations

import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from simmst import __version__
from simmst.errors import ConfigError, SimmstError
from simmst.foundation.extras import import_extra

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
    from rich.console import Console

    from simmst.jobs import Outcome
    from simmst.training import Progress


# Interrupted, these go on where they were when they are called again.
_RESUMED = ("demo", "train", "simulate")


def build_parser() -> ArgumentParser:
    """Build the command line: one subcommand a job, each with ``--config FILE.yaml``.

    A wrong command line or YAML file makes it raise argparse.ArgumentError.

    Raises:
        MissingExtraError: jsonargparse is not installed.
    """
    jsonargparse = import_extra("jsonargparse", extra="forecast")
    from simmst.forecaster.config import ForecasterConfig

    parser: ArgumentParser = jsonargparse.ArgumentParser(
        prog="simmst",
        description="Forecast cellular traffic with Sim-MSTNet.",
        version=__version__,
        exit_on_error=False,
    )
    commands = parser.add_subcommands(required=True)

    def command(
        name: str, usage: str, about: str, *, brief: str, quiet: bool = True, config: bool = True
    ) -> ArgumentParser:
        # The usage that argparse would write lists every one of the settings.
        usage = f"simmst {name} {usage}".strip()
        one: ArgumentParser = jsonargparse.ArgumentParser(description=about, usage=usage, exit_on_error=False)
        if config:
            one.add_argument("--config", action="config", metavar="FILE", help="YAML file with any of these settings")
        if quiet:
            one.add_argument("--quiet", action="store_true", help="show no progress bars")
        commands.add_subcommand(name, one, help=brief)
        return one

    demo = command(
        "demo",
        "[--data FILE] [--quick] [options]",
        "Simulate cities, learn from them, and forecast one city that was held out, or a file's.",
        brief="the main job on an embedded default or on your file",
    )
    demo.add_argument("--data", type=str | None, default=None, help="traffic file; without it the city is a SURROGATE")
    demo.add_argument("--out", type=str, default="runs/demo", help="run folder; an earlier demo there is replaced")
    demo.add_argument("--quick", action="store_true", help="fewer cities and epochs: see that everything works")
    demo.add_argument("--seed", type=int, default=0, help="seeds the cities and the training")
    demo.add_argument("--step", type=int, default=60, help="minutes of a slot")
    demo.add_argument("--services", type=str, nargs="+", help="services to keep; all when left out")

    train = command(
        "train",
        "--data FILE --out FOLDER [options]",
        "Train a forecaster on a traffic file, test it on the file's last days, write a run folder.",
        brief="train on a file",
    )
    train.add_argument("--data", type=str, required=True, help="traffic file")
    train.add_argument("--out", type=str, required=True, help="run folder; a run that was killed goes on")
    train.add_argument("--simulated", type=int | None, default=None, help="cities to simulate; 0 for none")
    train.add_argument("--step", type=int | None, default=None, help="minutes of a slot; the file's when left out")
    train.add_argument("--services", type=str, nargs="+", help="services to keep; all when left out")
    train.add_argument("--test_days", type=int, default=7, help="days at the end to test on")
    train.add_argument("--overwrite", action="store_true", help="throw an earlier run in the folder away")
    train.add_class_arguments(ForecasterConfig, "forecaster")

    evaluate = command(
        "evaluate",
        "--run FOLDER --data FILE [options]",
        "Test a trained forecaster on the part of a file that it has not seen.",
        brief="test on unseen slots, beside the naive baselines",
        quiet=False,
    )
    evaluate.add_argument("--run", type=str, required=True, help="folder of the trained forecaster")
    evaluate.add_argument("--data", type=str, required=True, help="the file it was trained on, or a longer one")
    evaluate.add_argument("--out", type=str | None, default=None, help="JSON file for the report")

    forecast = command(
        "forecast",
        "--run FOLDER [--data FILE] [options]",
        "Forecast the slots after the end of a series.",
        brief="forecast with a trained forecaster",
        quiet=False,
    )
    forecast.add_argument("--run", type=str, required=True, help="folder of the trained forecaster")
    forecast.add_argument(
        "--data", type=str | None, default=None, help="the latest traffic; else the slots it was fitted on"
    )
    forecast.add_argument("--levels", type=int, nargs="+", default=[], help="prediction intervals in percent: 80 95")
    forecast.add_argument("--out", type=str | None, default=None, help="CSV file; else standard output")

    simulate = command(
        "simulate",
        "(--cities NUMBER | --compare FILE...) --out FOLDER [options]",
        "Simulate cities into a folder; finished ones are kept. With --compare, measure how real they are.",
        brief="write simulated cities, or compare them with real files",
    )
    simulate.add_argument("--cities", type=int, default=None, help="how many; 100 with --compare")
    simulate.add_argument(
        "--compare",
        type=str,
        nargs="+",
        help="real files: does every statistic of theirs lie in the 5-95 % band of cities simulated in their shape?",
    )
    simulate.add_argument(
        "--place_cells", type=int | None, default=None, help="cells a side of a place, for files of places (--compare)"
    )
    simulate.add_argument("--out", type=str, required=True, help="folder")
    simulate.add_argument("--seed", type=int, default=0, help="of the family of cities")
    simulate.add_argument("--city", type=dict[str, Any], default={}, help="settings to hold fixed, as --city.days 7")
    simulate.add_argument("--prior", type=str | None, default=None, help="YAML file with the law of the parameters")
    simulate.add_argument(
        "--format", type=str, default="shards", help="shards (Parquet), or official (daily text files, 10 minutes)"
    )
    simulate.add_argument("--workers", type=int | None, default=None, help="processes; one a core when left out")

    command("info", "", "Show this installation.", brief="what runs here", quiet=False, config=False)
    return parser


@contextmanager
def progress_bars(*, quiet: bool) -> Iterator[Progress]:
    """Give a progress that draws bars on standard error, or one that shows nothing."""
    from simmst import training

    with ExitStack() as stack:
        bars: list[Progress] = [training.quiet] if quiet else []

        def progress(task: str, done: int, total: int, details: Mapping[str, float] | None = None, /) -> None:
            # Started by the first step of the work: whatever is refused before it is told in one line alone.
            if not bars:
                bars.append(stack.enter_context(training.RichProgress()))
            bars[0](task, done, total, details)

        yield progress


def run_demo(options: Namespace) -> None:
    """Run ``simmst demo``."""
    from simmst.jobs import demo

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
    from simmst.distributed import process_group
    from simmst.forecaster.config import ForecasterConfig
    from simmst.jobs import train
    from simmst.training import resolve_device

    config = ForecasterConfig.from_dict(options.forecaster.as_dict())
    device = resolve_device(config.training.device).type
    with process_group(device) as distribution, progress_bars(quiet=options.quiet or distribution.rank > 0) as progress:
        outcome = train(
            options.data,
            options.out,
            config,
            simulated=options.simulated,
            step=options.step,
            services=options.services,
            test_days=options.test_days,
            overwrite=options.overwrite,
            progress=progress,
            distribution=distribution,
        )
    if outcome is not None:  # on the first of several processes
        show_outcome(outcome)


def run_evaluate(options: Namespace) -> None:
    """Run ``simmst evaluate``."""
    from simmst.jobs import evaluate

    report = evaluate(options.run, options.data, out=options.out)
    report.print(console())
    if options.out is not None:
        tell(f"written: {options.out}")


def run_forecast(options: Namespace) -> None:
    """Run ``simmst forecast``."""
    from simmst.jobs import forecast

    frame = forecast(options.run, data=options.data, levels=options.levels, out=options.out)
    if options.out is None:
        sys.stdout.write(frame.to_csv(index=False))
    else:
        tell(f"written: {options.out} ({len(frame)} rows)")


def run_simulate(options: Namespace) -> None:
    """Run ``simmst simulate``."""
    from simmst.jobs import simulate

    if options.compare:
        run_compare(options)
        return
    if options.cities is None:
        raise ConfigError("simulate needs --cities NUMBER, or --compare FILE; see simmst simulate --help")
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


def run_compare(options: Namespace) -> None:
    """Run ``simmst simulate --compare``."""
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
            workers=options.workers or os.cpu_count() or 1,
            progress=lambda done, total: progress("simulate", done, total),
        )
    report.print(console())
    for path in report.save(options.out):
        tell(f"written: {path}")


def run_info(options: Namespace) -> None:
    """Run ``simmst info``."""
    from simmst.jobs.installation import show

    show(console())


COMMANDS: dict[str, Callable[[Namespace], None]] = {
    "demo": run_demo,
    "train": run_train,
    "evaluate": run_evaluate,
    "forecast": run_forecast,
    "simulate": run_simulate,
    "info": run_info,
}


def show_outcome(outcome: Outcome) -> None:
    """Print a report and the names of the files beside it."""
    outcome.report.print(console())
    if outcome.weights is not None:
        outcome.weights.print(console())
    for path in outcome.files:
        tell(f"written: {path}")


def tell(line: str) -> None:
    """Print one line, however long."""
    sys.stdout.write(line + "\n")


def console() -> Console:
    """Return a console on standard output, wide enough for a table where the output is no terminal."""
    rich = import_extra("rich.console", extra="forecast")
    made: Console = rich.Console(width=None if sys.stdout.isatty() else 140)
    return made


def one_line(error: BaseException) -> str:
    """Return an error's message on one line."""
    return " ".join(str(error).split())


def usage_error(error: ArgumentError, given: Sequence[str]) -> str:
    """Say on one line what is wrong with a command line or its YAML file, in the user's words, and where help is."""
    message = one_line(error)
    # jsonargparse says: Parser key "test_days": Expected a <class 'int'>. Got value: seven
    message = re.sub(r"Expected an? <class '(\w+)'>", r"expected \1", message)
    message = re.sub(r'^Parser key "([^"]+)":', r"\1:", message)
    # and: the following arguments are required: train.data, train.out
    message = re.sub(rf"\b(?:{'|'.join(COMMANDS)})\.(\w+)", r"--\1", message)
    # and: in "<unicode string>", line 1, column 4
    file = re.search(r"--config[= ](\S+)", " ".join(given))
    message = message.replace('"<unicode string>"', file[1] if file else "the YAML text")
    about = " ".join(["simmst", *[word for word in given[:1] if word in COMMANDS]])
    return f"{message.rstrip('.')}; see {about} --help"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, or 2 after an error, told in one line.

    Args:
        arguments: what follows ``simmst``; None takes the process's own.
    """
    command = ""
    try:
        options = build_parser().parse_args(arguments)
        command = options.subcommand
        COMMANDS[command](options[command])
        sys.stdout.flush()
    except ArgumentError as error:
        given = sys.argv[1:] if arguments is None else arguments
        sys.stderr.write(f"simmst: {usage_error(error, given)}\n")
        return 2
    except BrokenPipeError:
        # Whoever read the output has read enough; the interpreter is not to complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (SimmstError, OSError) as error:
        sys.stderr.write(f"simmst: {one_line(error)}\n")
        return 2
    except KeyboardInterrupt:
        hint = "; the same command goes on from there" if command in _RESUMED else ""
        sys.stderr.write(f"simmst: interrupted{hint}\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
