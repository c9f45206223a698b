"""A small training for tests; as a script, ``python training_city.py FOLDER SOLVER MODEL`` trains into a run folder."""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import nn

from simmst.data import Scaler, TrafficDataset, Windows, WindowSpec
from simmst.training import RunFolder, TrainingConfig, seeded, solve

SPEC = WindowSpec.recent(2, 6, steps_per_day=24, neighbourhood=3)
CONFIG = TrainingConfig(
    epochs=4, samples_per_epoch=48, batch_size=8, learning_rate=0.01, validation_samples=32, seed=3, device="cpu"
)


def city_windows(seed: int, steps: range) -> Windows:
    random = np.random.default_rng(seed)
    t = np.arange(96)
    level = random.uniform(20, 60, (2, 3, 3))
    day = 1.5 + np.sin(2 * np.pi * t / 24)[:, None, None, None]
    activity = level * day + random.normal(0, 1.0, (96, 2, 3, 3)).clip(-3, 3)
    city = TrafficDataset.from_arrays(activity, t * 3600, services=["call", "sms"], timezone="UTC", country=None)
    return Windows(city, SPEC, Scaler.fit(city, range(72)), steps=steps)


class TinyNet(nn.Module):
    """A network with dropout, so that its training depends on torch's global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.LazyLinear(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4))
        self.net(torch.zeros(1, 6, 2, 3, 3))

    def forward(self, values, marks, *, mask=None):
        return self.net(torch.nan_to_num(values)).reshape(-1, 2, 2)


def tiny_net() -> nn.Module:
    with seeded(0):
        return TinyNet()


def sim_mst_net(windows: Windows) -> nn.Module:
    from simmst.models import SimMSTNet, SimMSTNetConfig

    batch = windows.batch([0])
    config = SimMSTNetConfig(
        services=("call", "sms"),
        input_length=6,
        horizon=2,
        label_length=2,
        neighbourhood=3,
        num_marks=batch.marks.shape[-1],
        width=8,
        num_heads=2,
        encoder_layers=1,
        feedforward=8,
    )
    with seeded(0):
        return SimMSTNet(config)


def main(folder: str, solver: str, model_name: str) -> None:
    torch.set_num_threads(1)
    train = city_windows(0, range(72))
    model = tiny_net() if model_name == "tiny" else sim_mst_net(train)
    run = RunFolder.create(folder, {"training": CONFIG.to_dict(), "solver": solver})
    result = solve(
        solver,
        model,
        real_train=train,
        real_validation=city_windows(0, range(72, 96)),
        simulated=city_windows(1, range(96)),
        config=CONFIG,
        run=run,
    )
    run.finish({"chosen": result.chosen, "best_score": result.best_score})


if __name__ == "__main__":
    main(*sys.argv[1:])
