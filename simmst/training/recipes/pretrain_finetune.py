"""Pre-training on simulated windows, then fine-tuning on real ones."""

from __future__ import annotations

from torch import nn

from simmst.data import WindowSource
from simmst.distributed import ProcessGroup
from simmst.foundation.progress import Progress
from simmst.training.config import TrainingConfig
from simmst.training.history import History
from simmst.training.loop import train_stage
from simmst.training.recipes.recipe import Result, WindowSets
from simmst.training.run_folder import RunFolder


def train(
    model: nn.Module,
    windows: WindowSets,
    config: TrainingConfig,
    run: RunFolder | None,
    progress: Progress,
    processes: ProcessGroup,
) -> Result:
    """Train on the simulated windows, then on the real ones at a lower learning rate.

    The real validation split stops both stages. The score of the first stage is the one to beat, so the pre-trained
    model is kept if no epoch of fine-tuning is better on that split.
    """
    pretrained = pretrain(model, windows.given("simulated"), windows, config, run, progress, processes)
    finetuned = finetune(model, windows, config, run, progress, processes)
    return Result((pretrained, finetuned), "finetune" if finetuned.best_epoch > 0 else "pretrain")


def pretrain(
    model: nn.Module,
    simulated: WindowSource,
    windows: WindowSets,
    config: TrainingConfig,
    run: RunFolder | None,
    progress: Progress,
    processes: ProcessGroup,
) -> History:
    """Train an untrained model on simulated windows: those of `windows`, or some drawn from them."""
    return train_stage(
        model,
        simulated,
        windows.validation,
        config,
        stage="pretrain",
        run=run,
        fit_highway=config.fit_highway,
        progress=progress,
        processes=processes,
    )


def finetune(
    model: nn.Module,
    windows: WindowSets,
    config: TrainingConfig,
    run: RunFolder | None,
    progress: Progress,
    processes: ProcessGroup,
) -> History:
    """Continue a trained model on the real windows at a lower learning rate; its weights compete with later ones."""
    return train_stage(
        model,
        windows.given("real"),
        windows.validation,
        config.finetuning(),
        stage="finetune",
        run=run,
        keep_initial=True,
        progress=progress,
        processes=processes,
    )
