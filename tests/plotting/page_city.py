"""Small cities with forecasts, one of whose names is harmful markup."""

from __future__ import annotations

import base64
import json
import re
import zlib

import numpy as np

from simmst.data import TrafficDataset
from simmst.evaluation import TestedSlots

EVIL = '<script>document.title="taken"</script>'
START = np.datetime64("2013-11-16T23:00:00", "s")  # midnight in Rome


def dataset(geometry="grid", *, days=2, height=3, width=4):
    """Return a city: services "call" and "<b>sms</b>", cells c0, c1, ..., EVIL, a NaN, and on a grid a cell outside."""
    steps = 24 * days
    rng = np.random.default_rng(0)
    shape = (height, width) if geometry == "grid" else (1, height * width)
    daily = 1.5 + np.sin(2 * np.pi * np.arange(steps) / 24)
    activity = 100 * daily[:, None, None, None] * rng.uniform(0.1, 3.0, (1, 2, *shape))
    activity = (activity * rng.uniform(0.9, 1.1, activity.shape)).astype(np.float32)
    activity[5, 0, 0, 1] = np.nan
    mask = np.ones(shape, dtype=bool)
    if geometry == "grid":
        mask[2, 3] = False
        activity[:, :, 2, 3] = np.nan
    names = np.array([f"c{i}" for i in range(height * width)], dtype=object).reshape(shape)
    names[0, 2] = EVIL
    lonlat = None
    if geometry == "places":
        east, north = np.meshgrid(9.1 + 0.01 * np.arange(width), 45.4 + 0.01 * np.arange(height))
        lonlat = np.stack([east.ravel(), north.ravel()], axis=-1)[None]
    return TrafficDataset.from_arrays(
        activity,
        START + np.arange(steps) * np.timedelta64(3600, "s"),
        services=["call", "<b>sms</b>"],
        mask=mask,
        geometry="grid" if geometry == "grid" else "points",
        name="<i>toytown</i>",
        surrogate=True,
        lonlat=lonlat,
    ).with_(cell_name=names)


def forecast_slots(geometry="grid", **sizes):
    """Return forecasts a twentieth above the truth, with intervals from 0.8 to 1.3 times the forecast."""
    city = dataset(geometry, **sizes)
    forecast = np.nan_to_num(city.series(), nan=50.0) * np.float32(1.05)
    ahead = np.arange(city.num_steps) % 6 + 1
    return TestedSlots(city, "a & <u>b</u>", ahead, forecast, (forecast * 0.8, forecast * 1.3))


def element(text, name):
    """Return the text of a script element of a page."""
    found = re.search(rf'<script id="{name}"[^>]*>(.*?)</script>', text, re.DOTALL)
    return found[1]


def data_of(text):
    return json.loads(element(text, "page-data"))


def arrays_of(text):
    """Unpack values as the page's script does."""
    content = zlib.decompress(base64.b64decode(element(text, "page-arrays")))
    arrays = {}
    for entry in data_of(text)["arrays"]:
        size, at = int(np.prod(entry["shape"])), entry["at"]
        if entry["type"] == "f4":
            flat = np.frombuffer(content, "<f4", size, at)
        elif entry["type"] == "u1":
            flat = np.frombuffer(content, "u1", size, at)
        else:
            first, second = (np.frombuffer(content, "u1", size, at + half * size).astype(int) for half in (0, 1))
            flat = first + 256 * second
        arrays[entry["name"]] = flat.reshape(entry["shape"])
    return arrays


def values_of(text, name):
    """Return one of the series of a page, in raw units."""
    arrays = arrays_of(text)
    missing = 255 if name in ("low", "high") else 65535
    low, high = arrays["limits"][..., :1].astype(float), arrays["limits"][..., 1:].astype(float)
    numbers = arrays[name]
    return np.where(numbers == missing, np.nan, low + numbers * (high - low) / (missing - 1))
