"""Training: one loop for every model, the recipes built on it, checkpoints and run folders."""

from __future__ import annotations

from simmst.foundation.progress import Progress, RichProgress, quiet
from simmst.training.checkpoint import Checkpoint, load_checkpoint, load_into, save_checkpoint
from simmst.training.config import TrainingConfig, resolve_device
from simmst.training.history import History
from simmst.training.loop import NonFiniteLossError, train_stage
from simmst.training.mixing import MixedWindows, WeightedWindows
from simmst.training.recipes import RECIPES, REWEIGHTING, Recipe, Result, WindowSets, solve
from simmst.training.run_folder import RunFolder
from simmst.training.seeds import derive_seed, seeded
from simmst.training.validation import BestWeights, validation_score
from simmst.training.weighing import WindowWeights

__all__ = [
    "RECIPES",
    "REWEIGHTING",
    "BestWeights",
    "Checkpoint",
    "History",
    "MixedWindows",
    "NonFiniteLossError",
    "Progress",
    "Recipe",
    "Result",
    "RichProgress",
    "RunFolder",
    "TrainingConfig",
    "WeightedWindows",
    "WindowSets",
    "WindowWeights",
    "derive_seed",
    "load_checkpoint",
    "load_into",
    "quiet",
    "resolve_device",
    "save_checkpoint",
    "seeded",
    "solve",
    "train_stage",
    "validation_score",
]
