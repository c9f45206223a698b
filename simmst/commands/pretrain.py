"""``simmst pretrain``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simmst.commands.command import Command
from simmst.commands.output import progress_bars, tell

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments."""
    from simmst.jobs.pretraining import PretrainingConfig

    parser.add_argument("--out", type=str, required=True, metavar="FOLDER", help="write the run and the weights here")
    parser.add_argument(
        "--prior", type=str | None, default=None, metavar="FILE", help="draw parameters as this YAML file says"
    )
    parser.add_argument(
        "--workers",
        type=int | None,
        default=None,
        metavar="N",
        help="simulate with this many processes per rank (default: one per core)",
    )
    parser.add_class_arguments(PretrainingConfig, "pretraining")


def run(options: Namespace) -> None:
    """Make weights like the shipped ones, in this process or in those that torchrun started."""
    from simmst.distributed import process_group
    from simmst.jobs.pretraining import PretrainingConfig, pretrain
    from simmst.simulation import DomainPrior
    from simmst.training import resolve_device

    config = PretrainingConfig.from_dict(options.pretraining.as_dict())
    prior = DomainPrior.from_yaml(options.prior) if options.prior else None
    with (
        process_group(resolve_device(config.training.device).type) as processes,
        progress_bars(quiet=options.quiet or processes.rank > 0) as progress,
    ):
        path = pretrain(
            options.out, config, prior=prior, workers=options.workers, progress=progress, processes=processes
        )
    if processes.rank == 0:
        tell(f"written: {path}")
        tell(f"written: {path.with_suffix('.json')}")


COMMAND = Command(
    "pretrain",
    "--out FOLDER [options]",
    brief="make the shipped weights again",
    about=(
        "Simulate cities of every kind and train a network on them, as the shipped weights were made. The same command "
        "resumes an interrupted run."
    ),
    settings={
        "pretraining.cities": "learn from this many cities",
        "pretraining.held_out": "choose the epoch on this many further cities",
        "pretraining.side": "simulate cities of this many cells a side",
        "pretraining.horizon": "learn to forecast this many slots",
        "pretraining.training.epochs": "train at most this many epochs",
        "pretraining.training.batch_size": "put this many windows into a batch",
        "pretraining.training.seed": "seed the cities, the weights and the training",
        "pretraining.training.device": "train on this device: auto, cpu or cuda",
    },
    examples=("simmst pretrain --out runs/weights",),
    run=run,
    add_arguments=add_arguments,
    quiet=True,
    resumes=True,
)
