"""Weighing simulated windows by a solver of `simmst.sim2real`, then training with the weights."""

from __future__ import annotations

import dataclasses

import numpy as np
from torch import nn

from simmst.data import CityWindows
from simmst.distributed import ProcessGroup
from simmst.foundation.progress import Progress
from simmst.training.config import TrainingConfig
from simmst.training.mixing import MixedWindows, WeightedWindows
from simmst.training.recipes.adapt import continue_gently
from simmst.training.recipes.pretrain_finetune import finetune, pretrain
from simmst.training.recipes.recipe import Result, WindowSets
from simmst.training.run_folder import RunFolder
from simmst.training.validation import BestWeights, snapshot, validation_score
from simmst.training.weighing import STAGE, WindowWeights, weigh


def train(
    solver: str,
    model: nn.Module,
    windows: WindowSets,
    config: TrainingConfig,
    run: RunFolder | None,
    progress: Progress,
    processes: ProcessGroup,
) -> Result:
    """Weigh simulated windows by a solver of `simmst.sim2real`, then train with the weights.

    `config.after_reweighting` names the training after the weighing. By default a model that has learned before
    continues gently on simulated windows drawn by their weights and on real ones; any other model is trained again on
    the weighted windows, and then on the real ones. In the second case the solver's model is kept unless the real
    validation split finds a later one better; without a validation split the last model is kept.
    """
    learned = bool(getattr(model, "learned", False))
    after = config.after_reweighting or ("adapt" if learned else "retrain")
    if learned:
        config = dataclasses.replace(config, fit_highway=False)
    simulated, real, untrained = windows.given("simulated"), windows.given("real"), snapshot(model)
    history, weights = weigh(
        solver,
        model,
        simulated,
        real,
        windows.validation,
        config,
        parameters=windows.parameters,
        run=run,
        progress=progress,
        processes=processes,
    )
    if after == "nothing":
        return Result((history,), STAGE, weights)
    if after == "adapt":
        model.load_state_dict(untrained)
        mixed = MixedWindows(real, weighted_windows(simulated, weights, config), config.real_share)
        adapted = continue_gently(model, mixed, windows, config, run, progress, processes)
        return dataclasses.replace(adapted, histories=(history, *adapted.histories), window_weights=weights)
    best = BestWeights(model)
    where = f"stage {STAGE!r}"
    best.offer(validation_score(model, windows.validation, config, where=where, processes=processes))
    histories = [history]
    if after == "retrain":
        model.load_state_dict(untrained)
        weighted = weighted_windows(simulated, weights, config)
        histories.append(pretrain(model, weighted, windows, config, run, progress, processes))
    histories.append(finetune(model, windows, config, run, progress, processes))
    if not best.offer(histories[-1].best_score):
        best.restore()
        return Result(tuple(histories), STAGE, weights, best.score)
    return Result(tuple(histories), [later.stage for later in histories if later.best_epoch > 0][-1], weights)


def weighted_windows(simulated: CityWindows, weights: WindowWeights, config: TrainingConfig) -> WeightedWindows:
    """Return simulated windows to draw by their weights: the weighed windows, or all windows of cities with weights."""
    assert weights.windows is not None  # noqa: S101 - weigh() sets it
    if config.weights == "sample" or not simulated.parts:
        return WeightedWindows(weights.windows, weights.weights)
    lengths = simulated.lengths
    return WeightedWindows(simulated, np.repeat(weights.by_city() / lengths, lengths))
