"""One rank of a training: ``python shared_training.py FOLDER DROPOUT DIES SOLVER...``, under torchrun or alone.

Rank 1 dies at step DIES of its first stage; with 0 it does not. Every solver has its own run folder in FOLDER.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from simmst.data import Scaler, TrafficDataset, Windows, WindowSpec
from simmst.distributed import ALONE, ProcessGroup, process_group
from simmst.models import SimMSTNet, SimMSTNetConfig
from simmst.sim2real import ReweightingConfig
from simmst.training import RunFolder, TrainingConfig, seeded, solve
from simmst.training.recipes import adapt

SOLVERS = ("real-only", "joint", "pretrain-finetune", "adapt", "cutting-plane")
SPEC = WindowSpec(2, tuple(range(-6, 0)), 3, memory_days=2)
# The last batch of an epoch is a single window, so that one of two ranks has none.
CONFIG = TrainingConfig(
    epochs=3,
    samples_per_epoch=46,
    batch_size=9,
    learning_rate=0.001,
    adapt_learning_rate=0.001,
    adapt_epochs=3,
    validation_samples=50,
    seed=3,
    device="cpu",
    gradient_clip=0.05,  # clips at every step
    samples_per_city=10,
    reweighting=ReweightingConfig(
        steps=4, simulated_batch=8, real_batch=8, chunk=8, inner_lr=0.1, checkpoint_every=2, validate_every=2
    ),
)


def windows(seed: int, steps: range) -> Windows:
    """Return windows of a city with missing values, so that ranks have different numbers of observed targets."""
    random = np.random.default_rng(seed)
    t = np.arange(96)
    level = random.uniform(20, 60, (2, 3, 3))
    day = 1.5 + np.sin(2 * np.pi * t / 24)[:, None, None, None]
    activity = level * day + random.normal(0, 5.0, (96, 2, 3, 3)).clip(-15, 15)
    activity[random.random(activity.shape) < 0.3] = np.nan
    city = TrafficDataset.from_arrays(activity, t * 3600, services=["call", "sms"], timezone="UTC", country=None)
    return Windows(city, SPEC, Scaler.fit(city, range(72), "relative"), steps=steps)


def network(dropout: float = 0.0) -> SimMSTNet:
    config = SimMSTNetConfig(
        services=("call", "sms"),
        input_length=6,
        horizon=2,
        label_length=2,
        neighbourhood=3,
        memory_days=2,
        width=8,
        num_heads=2,
        encoder_layers=1,
        feedforward=8,
        dropout=dropout,
        task_weights="loss_share",
    )
    with seeded(0):
        return SimMSTNet(config)


def train(solver: str, folder: Path, processes: ProcessGroup = ALONE, *, dropout: float = 0.0, dies: int = 0):
    def progress(stage, done, total, details):
        if dies and processes.rank == 1 and done == dies:
            os._exit(9)

    settings = {"training": CONFIG.to_dict(), "solver": solver}
    run = RunFolder.create(folder, settings) if processes.rank == 0 else RunFolder(folder)
    processes.broadcast_object()
    model = network(dropout)
    with patch.object(adapt, "_MARGIN", -1.0):  # keep any gain, because the training is compared
        found = solve(
            solver,
            model,
            real_train=windows(0, range(72)),
            real_validation=windows(0, range(72, 96)),
            simulated=windows(1, range(96)),
            config=dataclasses.replace(CONFIG, loss="quantile"),
            run=run,
            progress=progress,
            processes=processes,
        )
    return {
        "model": model.state_dict(),
        "chosen": found.chosen,
        "best": found.best_score,
        "epochs": [history.best_epoch for history in found.histories],
        "stopped": [history.stopped for history in found.histories],
    }


def main(folder: str, dropout: str, dies: str, *solvers: str) -> None:
    torch.set_num_threads(1)
    with process_group("cpu", timeout_seconds=60) as processes:
        results = {
            solver: train(solver, Path(folder) / solver, processes, dropout=float(dropout), dies=int(dies))
            for solver in solvers
        }
        torch.save(results, Path(folder) / f"{processes.rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
