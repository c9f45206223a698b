"""Gentle training of a model that has already learned, on the real windows alone."""

from __future__ import annotations

from torch import nn

from simmst.distributed import ProcessGroup
from simmst.foundation.progress import Progress
from simmst.training.config import TrainingConfig
from simmst.training.recipes.pretrain_finetune import finetune
from simmst.training.recipes.recipe import Result, WindowSets
from simmst.training.run_folder import RunFolder
from simmst.training.validation import BestWeights, snapshot, validation_score

_SHARES = (0.25, 0.5, 0.75)


def train(
    model: nn.Module,
    windows: WindowSets,
    config: TrainingConfig,
    run: RunFolder | None,
    progress: Progress,
    processes: ProcessGroup,
) -> Result:
    """Continue the model on the real windows at the lower learning rate of fine-tuning, then go part of the way back.

    The weights before, those after, and three blends of the two (Wortsman et al. 2022, "Robust fine-tuning of zero-shot
    models") compete on the real validation split, so the model ends no worse there than it began.
    """
    before = snapshot(model)
    history = finetune(model, windows, config, run, progress, processes)
    if windows.validation is None or history.best_epoch == 0:
        return Result((history,), "finetune" if history.best_epoch > 0 else "pretrained")
    after, best = snapshot(model), BestWeights(model)
    best.offer(history.best_score)
    for share in _SHARES:
        model.load_state_dict(
            {
                name: tensor.lerp(after[name], share) if tensor.is_floating_point() else tensor
                for name, tensor in before.items()
            }
        )
        where = "the blended weights"
        best.offer(validation_score(model, windows.validation, config, where=where, processes=processes))
    best.restore()
    return Result((history,), "finetune", earlier_score=best.score)
