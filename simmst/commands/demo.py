"""``simmst demo``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simmst.commands.command import Command
from simmst.commands.output import progress_bars, show_outcome

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--data", type=str | None, default=None, help="traffic file; without it the city is a SURROGATE"
    )
    parser.add_argument("--out", type=str, default="runs/demo", help="run folder; an earlier demo there is replaced")
    parser.add_argument("--quick", action="store_true", help="fewer cells and epochs: see that everything works")
    parser.add_argument("--seed", type=int, default=0, help="seeds the city and the training")
    parser.add_argument("--step", type=int, default=60, help="minutes of a slot")
    parser.add_argument("--services", type=str, nargs="+", help="services to keep; all when left out")


def run(options: Namespace) -> None:
    """Run the demo and show its table."""
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


COMMAND = Command(
    "demo",
    "[--data FILE] [--quick] [options]",
    brief="the main job on an embedded default or on your file",
    about="Forecast a city never seen by weights learned from simulated cities, then adapt them to its few days.",
    run=run,
    add_arguments=add_arguments,
    quiet=True,
    resumes=True,
)
