"""The ways to learn from real and simulated windows together, by name; one file each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from simmst.data import CityWindows
from simmst.distributed import ALONE, ProcessGroup
from simmst.errors import ConfigError
from simmst.foundation.progress import Progress, quiet
from simmst.training.config import TrainingConfig
from simmst.training.recipes import adapt, joint, pretrain_finetune, real_only, reweighting
from simmst.training.recipes.recipe import Recipe, Result, WindowSets
from simmst.training.run_folder import RunFolder
from simmst.training.validation import refuse_seen_targets

__all__ = ["RECIPES", "REWEIGHTING", "Recipe", "Result", "WindowSets", "refuse_processes", "solve"]

REWEIGHTING = ("cutting-plane", "qp", "paper", "online")
RECIPES: dict[str, Recipe] = {
    "adapt": Recipe(adapt.train, ("real",), distributed=True),
    "real-only": Recipe(real_only.train, ("real",), distributed=True),
    "joint": Recipe(joint.train, ("real", "simulated"), distributed=True),
    "pretrain-finetune": Recipe(pretrain_finetune.train, ("real", "simulated"), distributed=True),
    **{name: Recipe(partial(reweighting.train, name), ("real", "simulated"), distributed=True) for name in REWEIGHTING},
}


def solve(
    name: str,
    model: nn.Module,
    *,
    real_train: CityWindows | None,
    real_validation: CityWindows | None,
    simulated: CityWindows | None = None,
    parameters: Sequence[Mapping[str, Any]] | None = None,
    config: TrainingConfig,
    run: RunFolder | None = None,
    progress: Progress = quiet,
    processes: ProcessGroup = ALONE,
) -> Result:
    """Train a model by a named recipe; the best weights are in the model afterwards.

    Args:
        name: key of `RECIPES`, the setting `solver` of a forecaster.
        model: model called as ``model(values, marks, mask=mask)``.
        real_train: training windows of the real city.
        real_validation: windows of its validation split, for early stopping and the choice between stages.
        simulated: windows of the simulated cities.
        parameters: parameters of each simulated city, by name, as `DomainPrior.values` returns them; for
            ``weights="parameter"``.
        config: training settings.
        run: run folder for metrics and checkpoints; None writes nothing. A killed run resumes when called again.
        progress: function called after each step.
        processes: processes that share the work; the result of rank 0 counts.

    Returns:
        The history of each stage, and the stage that the model's weights come from.

    Raises:
        ConfigError: there is no recipe of this name, or it needs windows that were not given, or it runs in one
            process.
        DataError: the validation split has slots of the training split.

    Example:
        >>> solve("magic", nn.Linear(1, 1), real_train=None, real_validation=None, config=TrainingConfig())
        Traceback (most recent call last):
            ...
        simmst.errors.ConfigError: there is no solver 'magic'; there are: adapt, cutting-plane, joint, online, \
paper, pretrain-finetune, qp, real-only
    """
    recipe = RECIPES.get(name)
    if recipe is None:
        raise ConfigError(f"there is no solver {name!r}; there are: {', '.join(sorted(RECIPES))}")
    windows = WindowSets(real_train, real_validation, simulated, parameters)
    for kind in recipe.needs:
        if getattr(windows, kind) is None:
            others = [other for other, its in sorted(RECIPES.items()) if kind not in its.needs]
            instead = f", or choose a solver that needs none ({', '.join(others)})" if others else ""
            raise ConfigError(f"solver {name!r} needs {kind} windows and got none; give {kind} data{instead}")
    refuse_seen_targets(real_train, real_validation)
    refuse_processes(name, processes)
    return recipe.train(model, windows, config, run, progress, processes)


def refuse_processes(name: str, processes: ProcessGroup) -> None:
    """Refuse several processes for a recipe that runs in one.

    Raises:
        ConfigError: the recipe runs in one process; the message says which solvers share their work.

    Example:
        >>> refuse_processes("real-only", ALONE)
    """
    if processes.world_size > 1 and not RECIPES[name].distributed:
        shared = ", ".join(other for other, recipe in RECIPES.items() if recipe.distributed)
        raise ConfigError(
            f"solver {name!r} runs in one process, but {processes.world_size} were started; "
            f"start it without torchrun, or choose a solver that shares its work: {shared}"
        )
