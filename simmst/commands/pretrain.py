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

    parser.add_argument("--out", type=str, required=True, help="run folder; the weights are written there")
    parser.add_class_arguments(PretrainingConfig, "pretraining")
    parser.add_argument("--prior", type=str | None, default=None, help="YAML file with the law of the parameters")
    parser.add_argument(
        "--workers",
        type=int | None,
        default=None,
        help="processes that simulate, for each rank; the cores are shared out when left out",
    )


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
        tell(f"written: {path} and weights.json beside it; Forecaster.pretrained reads both from simmst/pretrained")


COMMAND = Command(
    "pretrain",
    "--out FOLDER [options]",
    brief="make the shipped weights again, from simulated cities",
    about="Simulate cities of every kind and train a network on them: the weights that ship with the package.",
    run=run,
    add_arguments=add_arguments,
    quiet=True,
    resumes=True,
)
