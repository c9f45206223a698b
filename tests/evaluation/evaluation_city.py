"""A small city with a daily rhythm, for tests of the evaluation."""

from __future__ import annotations

import numpy as np

from simmst.data import TrafficDataset


def city(days: int = 9, *, step_minutes: int = 60, seed: int = 0, **attributes) -> TrafficDataset:
    random = np.random.default_rng(seed)
    t = np.arange(days * 24 * 60 // step_minutes)
    day = 1.5 + np.sin(2 * np.pi * t * step_minutes / (24 * 60))[:, None, None, None]
    level = random.uniform(20, 60, (2, 3, 4))
    activity = (level * day + random.normal(0, 2, (len(t), 2, 3, 4))).clip(0)
    mask = np.ones((3, 4), dtype=bool)
    mask[0, 0] = False
    options = {"services": ["call", "sms"], "mask": mask, "timezone": "UTC", "country": None, **attributes}
    return TrafficDataset.from_arrays(activity, t * step_minutes * 60, **options)
