"""The inputs and the result of a training recipe."""

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
        parameters: parameters of each simulated city, by name; None where they are not known.
    """

    real: CityWindows | None
    validation: CityWindows | None
    simulated: CityWindows | None
    parameters: Sequence[Mapping[str, Any]] | None = None

    def given(self, kind: str) -> CityWindows:
        """Return the windows of a kind that the recipe needs: "real" or "simulated"."""
        windows: CityWindows | None = getattr(self, kind)
        assert windows is not None  # noqa: S101 - solve() has checked what the recipe needs
        return windows


@dataclass(frozen=True)
class Result:
    """The result of a recipe, besides the trained model.

    Args:
        histories: history of each stage, in order.
        chosen: stage whose weights are in the model.
        window_weights: weights of simulated windows, from a recipe that weighs them.
        earlier_score: validation score of the weights in the model, if they are older than the last stage.

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
        train: function called as ``train(model, windows, config, run, progress, processes)``. It leaves the best
            weights in the model, and with a `run` it writes metrics and checkpoints and resumes from them.
        needs: kinds of windows that the recipe cannot do without, "real" and "simulated".
        distributed: whether several processes can share the work; each calls the recipe, and the result of rank 0
            counts.
    """

    train: Train
    needs: tuple[str, ...]
    distributed: bool = False
