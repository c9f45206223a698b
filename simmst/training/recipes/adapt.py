"""Gentle training of a model that has already learned."""

from __future__ import annotations

from torch import nn

from simmst.data import WindowSource
from simmst.distributed import ProcessGroup
from simmst.foundation.progress import Progress
from simmst.training.config import TrainingConfig
from simmst.training.loop import train_stage
from simmst.training.recipes.recipe import Result, WindowSets
from simmst.training.run_folder import RunFolder
from simmst.training.validation import BestWeights, snapshot, validation_score

STAGE = "adapt"
UNTOUCHED = "pretrained"
_SHARES = (0.25, 0.5, 0.75)
_MARGIN = 0.05  # a smaller gain on a few days of validation did not last on the days after


def train(
    model: nn.Module,
    windows: WindowSets,
    config: TrainingConfig,
    run: RunFolder | None,
    progress: Progress,
    processes: ProcessGroup,
) -> Result:
    """Continue the model on the real windows; see `continue_gently`."""
    return continue_gently(model, windows.given("real"), windows, config, run, progress, processes)


def continue_gently(
    model: nn.Module,
    source: WindowSource,
    windows: WindowSets,
    config: TrainingConfig,
    run: RunFolder | None,
    progress: Progress,
    processes: ProcessGroup,
) -> Result:
    """Continue the model on some windows at a low learning rate, then go part of the way back.

    The weights after each epoch, and three blends of the best of them with the initial weights (Wortsman et al. 2022,
    "Robust fine-tuning of zero-shot models"), compete on the real validation split. The initial weights are kept unless
    they lose by a twentieth, so the model ends no worse on that split than it began.
    """
    before = snapshot(model)
    history = train_stage(
        model,
        source,
        windows.validation,
        config.adapting(),
        stage=STAGE,
        run=run,
        keep_initial=True,
        progress=progress,
        processes=processes,
    )
    if windows.validation is None:
        return Result((history,), STAGE)
    after, best = snapshot(model), BestWeights(model)
    best.offer(history.best_score)
    for share in _SHARES if history.best_epoch > 0 else ():
        model.load_state_dict(
            {
                name: tensor.lerp(after[name], share) if tensor.is_floating_point() else tensor
                for name, tensor in before.items()
            }
        )
        where = "the blended weights"
        best.offer(validation_score(model, windows.validation, config, where=where, processes=processes))
    initial = float(history.records[0]["validation_loss"])
    if best.score is None or best.score > (1 - _MARGIN) * initial:
        model.load_state_dict(before)
        return Result((history,), UNTOUCHED, earlier_score=initial)
    best.restore()
    return Result((history,), STAGE, earlier_score=best.score)
