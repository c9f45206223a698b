"""``simmst demo``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simmst.commands.command import Command
from simmst.commands.output import progress_bars, show_outcome

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--quick", action="store_true", help="use fewer cells and epochs, to see that everything works")
    parser.add_argument(
        "--data", type=str | None, default=None, metavar="FILE", help="forecast this traffic file, not a simulated city"
    )
    parser.add_argument(
        "--out", type=str, default="runs/demo", metavar="FOLDER", help="write here, in place of an earlier demo"
    )
    parser.add_argument("--services", type=str, nargs="+", metavar="NAME", help="keep only these services")
    parser.add_argument("--step", type=int, default=60, metavar="MINUTES", help="sum the traffic to slots this long")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed the city and the training")


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
    brief="forecast an unseen city, and compare",
    about=(
        "Forecast a city never seen with the shipped weights, which have learned only from simulated cities; then "
        "adapt them to the city's few days, and compare. Without --data the city is simulated: a SURROGATE."
    ),
    examples=("simmst demo --quick", "simmst demo --data milan.npz --services internet --out runs/milan"),
    run=run,
    add_arguments=add_arguments,
    quiet=True,
    resumes=True,
)
