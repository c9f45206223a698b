"""Gentle training of a model that has already learned, on the real windows alone."""

from __future__ import annotations

from torch import nn

from simmst.distributed import Distribution
from simmst.foundation.progress import Progress
from simmst.training.config import TrainingConfig
from simmst.training.recipes.pretrain_finetune import finetune
from simmst.training.recipes.recipe import Result, WindowSets
from simmst.training.run_folder import RunFolder


def train(
    model: nn.Module,
    windows: WindowSets,
    config: TrainingConfig,
    run: RunFolder | None,
    progress: Progress,
    distribution: Distribution,
) -> Result:
    """Continue the model on the real windows at the lower learning rate of fine-tuning.

    Its weights compete with later ones on the real validation split, so it ends no worse there than it began.
    """
    history = finetune(model, windows, config, run, progress)
    return Result((history,), "finetune" if history.best_epoch > 0 else "pretrained")
