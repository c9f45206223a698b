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

    parser.add_argument("--data", type=str, required=True, metavar="FILE", help="train on this traffic file")
    parser.add_argument(
        "--out", type=str, required=True, metavar="FOLDER", help="write here, or resume the run that is there"
    )
    parser.add_argument(
        "--simulated",
        type=int | None,
        default=None,
        metavar="N",
        help="simulate this many cities, if the solver learns from cities",
    )
    parser.add_argument("--test_days", type=int, default=7, metavar="N", help="hold the last days out for the test")
    parser.add_argument("--services", type=str, nargs="+", metavar="NAME", help="keep only these services")
    parser.add_argument(
        "--step", type=int | None, default=None, metavar="MINUTES", help="sum the traffic to slots this long"
    )
    parser.add_argument("--overwrite", action="store_true", help="delete an earlier run in the folder first")
    parser.add_class_arguments(ForecasterConfig, "forecaster")
    add_table_arguments(parser)


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
    brief="train a forecaster on a file, and test it",
    about=(
        "Train a forecaster on a traffic file, test it on the file's last days beside the naive baselines, and write a "
        "run folder. The same command resumes an interrupted run."
    ),
    settings={
        "forecaster.horizon": "forecast this many slots",
        "forecaster.model": "train this network, such as dcrnn, or baseline",
        "forecaster.solver": "train by this recipe, such as adapt or real-only",
        "forecaster.start": "start from the pretrained weights, or from scratch",
        "forecaster.recent": "put this many latest slots into the input",
        "forecaster.training.epochs": "train at most this many epochs in a stage",
        "forecaster.training.learning_rate": "set the peak learning rate of AdamW",
        "forecaster.training.batch_size": "put this many windows into a batch",
        "forecaster.training.seed": "seed the cities, the weights and the training",
        "forecaster.training.device": "train on this device: auto, cpu or cuda",
    },
    examples=(
        "simmst train --data milan.npz --out runs/milan --forecaster.horizon 6",
        "simmst train --data milan.npz --out runs/dcrnn --forecaster.model dcrnn",
    ),
    run=run,
    add_arguments=add_arguments,
    quiet=True,
    resumes=True,
)
