"""Training: one loop for every model, the solvers built on it, checkpoints and run folders."""

from __future__ import annotations

from simmst.foundation.progress import Progress, RichProgress, quiet
from simmst.training.checkpoint import Checkpoint, load_checkpoint, load_into, save_checkpoint
from simmst.training.config import TrainingConfig, resolve_device
from simmst.training.history import History
from simmst.training.loop import NonFiniteLossError, train_stage
from simmst.training.mixing import MixedWindows, WeightedWindows
from simmst.training.reweighting import WindowWeights
from simmst.training.run_folder import RunFolder
from simmst.training.seeds import derive_seed, seeded
from simmst.training.solvers import REWEIGHTING, SOLVERS, Problem, Result, SolverEntry, solve

__all__ = [
    "REWEIGHTING",
    "SOLVERS",
    "Checkpoint",
    "History",
    "MixedWindows",
    "NonFiniteLossError",
    "Problem",
    "Progress",
    "Result",
    "RichProgress",
    "RunFolder",
    "SolverEntry",
    "TrainingConfig",
    "WeightedWindows",
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
]
