"""The inputs of ridge and gradient boosting: features of the memory of a series."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from simmst.data import Scaler, TrafficDataset, Windows, WindowSpec
from simmst.data.batch import Batch

MEMORY_DAYS = 14
_RECENT = 24  # number of slots before the origin
_MEANS = (1, 3, 6, 12, 24)  # latest slots over which deviations are averaged
_BOUND = 5.0  # a factor of 150 on the log scale: an outage or burst still shows, but has no larger effect
_HIGHER_HARMONICS = (3, 4, 5, 6)  # of the day, which rises and falls more sharply than two harmonics can follow
_CHUNK = 150_000  # windows times steps gathered at a time
_PATCH = 3


class Features(NamedTuple):
    """Features of one service for N windows; every series is relative to its level, and zero means unknown.

    Attributes:
        window: float32 (N, F), features that are the same for every step ahead.
        ahead: float32 (N, T_out, G), features of each slot to forecast.
        usual: float32 (N, T_out), mean of the same slot on previous days, on the scaler's scale; NaN where unknown.
        kin: float32 (N, T_out), the same mean over days of the same kind: working days, or days of rest.
        namesake: float32 (N, T_out), the same mean over the same days of the week.
        known_kin: int64 (N, T_out), number of known days of the same kind.
        known_namesakes: int64 (N, T_out), number of known days that are the same day of the week.
        target: float32 (N, T_out), difference of the target from `usual`; NaN where either is unknown.
    """

    window: np.ndarray
    ahead: np.ndarray
    usual: np.ndarray
    kin: np.ndarray
    namesake: np.ndarray
    known_kin: np.ndarray
    known_namesakes: np.ndarray
    target: np.ndarray


def memory_windows(dataset: TrafficDataset, scaler: Scaler, horizon: int, steps: range) -> Windows:
    """Return windows with the memory that the features are made from."""
    spec = WindowSpec(horizon, tuple(range(-_RECENT, 0)), _PATCH, memory_days=MEMORY_DAYS)
    return Windows(dataset, spec, scaler, steps=steps)


def training_windows(dataset: TrafficDataset, scaler: Scaler, horizon: int, train: range) -> Windows:
    """Return windows of the training slots; targets after them count as missing, and nothing after them is read."""
    past = dataset.slice_steps(0, train.stop)
    return memory_windows(past, scaler, horizon, range(train.start, train.stop + horizon - 1))


def gather_batches(windows: Windows, index: np.ndarray) -> Iterator[tuple[slice, Batch]]:
    """Yield batches of windows and their positions, small enough for their features to fit in memory."""
    size = max(1, _CHUNK // (windows.spec.horizon + _RECENT))
    for start in range(0, len(index), size):
        part = slice(start, min(start + size, len(index)))
        yield part, windows.batch(index[part])


def concat_features(parts: list[Features]) -> Features:
    """Concatenate the features of several batches."""
    return Features(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def memory_features(batch: Batch, service: int) -> Features:
    """Return the features of one service of a batch with memory, from the nearest cells and days in it."""
    memory = batch.memory
    assert memory is not None  # noqa: S101 - `memory_windows` gives it
    centre, wide = _PATCH // 2, batch.values.shape[-1] // 2
    near = slice(wide - centre, wide + centre + 1) if wide > centre else slice(None)
    centre = min(centre, wide)
    patch_level = memory.level[:, service, near, near].numpy()  # (B, n, n)
    level = np.nan_to_num(patch_level[:, centre, centre])
    spread = np.nan_to_num(memory.spread[:, service, near, near][:, centre, centre].numpy())
    patch = batch.values[:, :, service, near, near].numpy()  # (B, T_in, n, n)
    recent = patch[..., centre, centre]
    past = recent.shape[1]
    days = memory.days[:, :MEMORY_DAYS, :, service].numpy()  # (B, L, T_in + T_out)
    same_day = memory.same_day[:, :MEMORY_DAYS].numpy()

    # The latest slots: against their level, their usual days, and the same days of the week.
    usual_recent = _mean(days[..., :past], 1)
    series = np.where(np.isnan(recent), usual_recent, recent) - level[:, None]
    unusual = recent - usual_recent
    weekly = recent - _mean(days[:, 6::7, :past], 1)
    around = patch - memory.usual[:, :, service, near, near].numpy()
    around[..., centre, centre] = np.nan
    around = _mean(around.reshape(*around.shape[:2], -1), 2)
    # Against the level of the same neighbours: a gradient in space that the deviations from usual days do not show.
    nearby = patch[:, -1] - patch_level
    nearby[:, centre, centre] = np.nan
    nearby = _mean(nearby.reshape(len(nearby), -1), 1)
    city = memory.city[..., service].numpy()
    summary = [_mean(one[:, -n:], 1) for one in (unusual, weekly, around, city) for n in _MEANS]
    window = np.stack([*series.T, *unusual[:, -3:].T, *summary, nearby, level, spread], axis=1)

    # The slot to forecast, on previous days.
    slots = days[..., past:]  # (B, L, T_out)
    usual = _mean(slots, 1)
    of_kind, of_name = (np.where(same_day[..., kind] > 0, slots, np.float32(np.nan)) for kind in (0, 1))
    kin, namesake = _mean(of_kind, 1), _mean(of_name, 1)
    latest = _first(slots)
    latest_kin = _first(of_kind)
    marks = batch.marks.numpy()
    ahead_marks = marks[:, past:]
    rest = ahead_marks[..., 6:8].max(-1)
    rest_now = marks[:, past - 1, None, 6:8].max(-1)
    turn = np.arctan2(ahead_marks[..., 0], ahead_marks[..., 1])
    waves = [f(n * turn) for n in _HIGHER_HARMONICS for f in (np.sin, np.cos)]
    daily = [*np.moveaxis(ahead_marks[..., :4], -1, 0), *waves]
    pieces = [
        *(slots - usual[:, None]).transpose(1, 0, 2),
        usual - level[:, None],
        *(one - usual for one in (kin, namesake, latest, latest_kin, recent[:, -1:], usual_recent[:, -1:])),
        *np.moveaxis(ahead_marks[..., 4:], -1, 0),
        *daily,
        *(wave * rest for wave in daily[:6]),
        rest - rest_now,
        rest * (1 - rest_now),
    ]
    target = batch.target[..., service].numpy() - usual
    known_kin, known_namesakes = ((~np.isnan(one)).sum(1) for one in (of_kind, of_name))
    ahead = _bounded(np.stack(pieces, axis=-1))
    return Features(_bounded(window), ahead, usual, kin, namesake, known_kin, known_namesakes, target)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Return the mean of the known values along an axis; NaN where nothing is known."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = np.where(known, values, np.float32(0)).sum(axis) / known.sum(axis).astype(np.float32)
    return mean


def _first(values: np.ndarray) -> np.ndarray:
    """Return the first known value along axis 1; NaN where there is none."""
    known = ~np.isnan(values)
    return np.take_along_axis(values, known.argmax(1)[:, None], 1)[:, 0]


def _bounded(features: np.ndarray) -> np.ndarray:
    bounded: np.ndarray = np.nan_to_num(np.clip(features, -_BOUND, _BOUND)).astype(np.float32, copy=False)
    return bounded
