"""What a training recipe is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from simmst.data import CityWindows
from simmst.distributed import ProcessGroup
from simmst.foundation.progress import Progress
from simmst.training.config import TrainingConfig
from simmst.training.history import History
from simmst.training.run_folder import RunFolder
from simmst.training.weighing import WindowWeights


@dataclass(frozen=True)
class WindowSets:
    """The windows that a recipe trains on and validates on; None where there are none.

    Args:
        real: training windows of the real city.
        validation: windows of its validation split.
        simulated: windows of the simulated cities.
        parameters: of each simulated city, by name; None where they are not known.
    """

    real: CityWindows | None
    validation: CityWindows | None
    simulated: CityWindows | None
    parameters: Sequence[Mapping[str, Any]] | None = None

    def given(self, kind: str) -> CityWindows:
        """Return the windows of a kind that the recipe names among its needs: "real" or "simulated"."""
        windows: CityWindows | None = getattr(self, kind)
        assert windows is not None  # noqa: S101 - solve() has checked what the recipe needs
        return windows


@dataclass(frozen=True)
class Result:
    """What a recipe leaves beside the trained model.

    Args:
        histories: one a stage, in order.
        chosen: the stage whose weights are in the model.
        window_weights: what a recipe that weighs simulated windows gave them.
        earlier_score: the validation score of the weights in the model where they are older than the last stage.

    Example:
        >>> Result((History("real", best_score=0.5),), "real").best_score
        0.5
    """

    histories: tuple[History, ...]
    chosen: str
    window_weights: WindowWeights | None = None
    earlier_score: float | None = None

    @property
    def best_score(self) -> float | None:
        """The validation score of the weights in the model; None without a validation split."""
        return self.histories[-1].best_score if self.earlier_score is None else self.earlier_score


Train: TypeAlias = Callable[[nn.Module, WindowSets, TrainingConfig, RunFolder | None, Progress, ProcessGroup], Result]


@dataclass(frozen=True)
class Recipe:
    """A way to train a model on real and simulated windows.

    Args:
        train: called as ``train(model, windows, config, run, progress, processes)``; leaves the best weights in the
            model. Writes metrics and checkpoints where `run` is not None, and then resumes from them.
        needs: kinds of windows that it cannot do without, "real" and "simulated".
        distributed: whether several processes can share its work; each calls it, and the result of rank 0 counts.
    """

    train: Train
    needs: tuple[str, ...]
    distributed: bool = False
