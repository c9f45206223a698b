"""Training on real and simulated windows together."""

from __future__ import annotations

from torch import nn

from simmst.distributed import ProcessGroup
from simmst.foundation.progress import Progress
from simmst.training.config import TrainingConfig
from simmst.training.loop import train_stage
from simmst.training.mixing import MixedWindows
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
    """Train on batches mixed from real and simulated windows, `config.real_share` of each batch real."""
    history = train_stage(
        model,
        MixedWindows(windows.given("real"), windows.given("simulated"), config.real_share),
        windows.validation,
        config,
        stage="joint",
        run=run,
        fit_highway=config.fit_highway,
        progress=progress,
        processes=processes,
    )
    return Result((history,), "joint")
