"""Every network in a small size for tests, and windows for it."""

from __future__ import annotations

import numpy as np
import torch

from simmst.baselines.networks import NETWORKS
from simmst.data import Scaler, TrafficDataset, Windows, WindowSpec

NAMES = list(NETWORKS)
WIDE = {"width": 8}
ATTENTION = {"width": 8, "num_heads": 2, "feedforward": 16, "dropout": 0.0}
SMALL = {
    "lstm": {**WIDE, "layers": 1},
    "transformer": {**ATTENTION, "encoder_layers": 1, "label_length": 4},
    "informer": {**ATTENTION, "label_length": 4, "factor": 2},
    "itransformer": ATTENTION,
    "convlstm": WIDE,
    "stgcn": {"width": 8, "bottleneck": 4, "dropout": 0.0},
    "dcrnn": {**WIDE, "layers": 1},
    "staeformer": {
        "input_width": 4, "day_width": 4, "week_width": 4, "adaptive_width": 4,
        "layers": 1, "num_heads": 2, "feedforward": 16, "dropout": 0.0,
    },
    "mttc": {"dense": 16, "scale": 8},
    "ast-mtl": {"graph_width": 4, "width": 8},
    "cslsl": WIDE,
}  # fmt: skip
STEPS, HORIZON, DAYS, SIDE = 12, 3, 3, 3


def small_network(name, *, services=("call", "sms"), seed=0, **changes):
    settings = {
        "services": services,
        "input_length": STEPS,
        "horizon": HORIZON,
        "neighbourhood": SIDE,
        "memory_days": DAYS,
        **SMALL.get(name, {}),
        **changes,
    }
    torch.manual_seed(seed)
    network = NETWORKS[name](NETWORKS[name].config_class.from_dict(settings))
    return network.eval()


def city(days=6, services=("call", "sms"), side=3, seed=0):
    random = np.random.default_rng(seed)
    t = np.arange(days * 24)
    level = random.uniform(20, 60, (len(services), side, side))
    activity = level * (1.5 + np.sin(2 * np.pi * t / 24)[:, None, None, None])
    activity = activity * random.gamma(100, 0.01, activity.shape)
    return TrafficDataset.from_arrays(activity, t * 3600, services=services, timezone="UTC", country=None)


def small_windows(services=("call", "sms"), steps=None, **changes):
    data = city(services=services, **changes)
    spec = WindowSpec(HORIZON, tuple(range(-STEPS, 0)), SIDE, memory_days=DAYS)
    steps = steps or range(data.num_steps)
    return Windows(data, spec, Scaler.fit(data, range(data.num_steps), "relative"), steps=steps)


def call(network, batch):
    memory = {"memory": batch.memory} if network.takes_memory else {}
    return network(batch.values, batch.marks, mask=batch.mask, **memory)


def view_of(network, batch):
    return network.inputs(batch.values, batch.marks, batch.mask, batch.memory)
