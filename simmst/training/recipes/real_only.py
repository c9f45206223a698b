"""Training on the real windows only."""

from __future__ import annotations

from torch import nn

from simmst.distributed import ProcessGroup
from simmst.foundation.progress import Progress
from simmst.training.config import TrainingConfig
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
    """Train on the real windows only."""
    history = train_stage(
        model,
        windows.given("real"),
        windows.validation,
        config,
        stage="real",
        run=run,
        fit_highway=config.fit_highway,
        progress=progress,
        processes=processes,
    )
    return Result((history,), "real")
