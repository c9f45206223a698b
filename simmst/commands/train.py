"""``simmst train``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simmst.commands.command import Command
from simmst.commands.output import progress_bars, show_outcome
from simmst.commands.tables import add_table_arguments, naming_table_flags, table_options

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments, with every setting of a forecaster."""
    from simmst.forecaster import ForecasterConfig

    parser.add_argument("--data", type=str, required=True, help="traffic file")
    parser.add_argument("--out", type=str, required=True, help="run folder; a run that was killed goes on")
    parser.add_argument("--simulated", type=int | None, default=None, help="cities to simulate; 0 for none")
    parser.add_argument("--step", type=int | None, default=None, help="minutes of a slot; the file's when left out")
    parser.add_argument("--services", type=str, nargs="+", help="services to keep; all when left out")
    parser.add_argument("--test_days", type=int, default=7, help="days at the end to test on")
    parser.add_argument("--overwrite", action="store_true", help="throw an earlier run in the folder away")
    add_table_arguments(parser)
    parser.add_class_arguments(ForecasterConfig, "forecaster")


def run(options: Namespace) -> None:
    """Train, here or with the processes that torchrun started, and show the table."""
    from simmst.distributed import process_group
    from simmst.forecaster import ForecasterConfig
    from simmst.jobs import train
    from simmst.training import resolve_device

    config = ForecasterConfig.from_dict(options.forecaster.as_dict())
    device = resolve_device(config.training.device).type
    with (
        process_group(device) as processes,
        progress_bars(quiet=options.quiet or processes.rank > 0) as progress,
        naming_table_flags(),
    ):
        outcome = train(
            options.data,
            options.out,
            config,
            simulated=options.simulated,
            step=options.step,
            services=options.services,
            table=table_options(options),
            test_days=options.test_days,
            overwrite=options.overwrite,
            progress=progress,
            processes=processes,
        )
    if outcome is not None:  # on the first of several processes
        show_outcome(outcome)


COMMAND = Command(
    "train",
    "--data FILE --out FOLDER [options]",
    brief="train on a file",
    about="Train a forecaster on a traffic file, test it on the file's last days, write a run folder.",
    run=run,
    add_arguments=add_arguments,
    quiet=True,
    resumes=True,
)
