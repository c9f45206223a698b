"""The memory of a window: all of its context days, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from simmst.data import Scaler, TrafficDataset, Windows, WindowSpec
from simmst.data.calendar import calendar_features, weekday
from simmst.errors import ConfigError

KNOWN = ("values", "marks", "mask", "days", "same_day", "usual", "city", "level", "spread", "context", "steps_per_day")
PLANTED = 1e6


def city(days=6.0, *, step_minutes=60, points=False, seed=0, services=2):
    """Random traffic with gaps; 1 Jan 2024 is a Monday and a holiday in Italy."""
    random = np.random.default_rng(seed)
    steps = int(days * 24 * 60 // step_minutes)
    values = random.gamma(1.0, 20.0, (steps, services, 1 if points else 3, 4))
    values[random.random(values.shape) < 0.1] = np.nan
    mask = np.ones(values.shape[2:], dtype=bool)
    if not points:
        mask[0, 0] = False
    start = np.datetime64("2024-01-01T00:00:00").astype("datetime64[s]").astype(np.int64)
    return TrafficDataset.from_arrays(
        values,
        start + np.arange(steps) * step_minutes * 60,
        services=[f"s{number}" for number in range(services)],
        mask=mask,
        timezone="UTC",
        country="IT",
        geometry="points" if points else "grid",
    )


def direct(data, scaler, spec, context_days, origin, row, col):
    """Return the memory of one window by its definition, slot by slot."""
    z = scaler.transform(data.activity, axis=1)
    z[:, :, ~data.mask] = np.nan
    steps, services, height, width = z.shape
    day, n = data.steps_per_day, spec.neighbourhood
    earliest = max(origin - context_days * day, 0)
    seconds = data.time[0].astype("datetime64[s]").astype(np.int64) + np.arange(-2000, steps + 2000) * (
        data.step_minutes * 60
    )
    rest = calendar_features(seconds.astype("datetime64[s]"), data.timezone, data.country)[:, 6:8].any(1)
    weekdays = weekday(seconds.astype("datetime64[s]"), data.timezone)

    def known(slot):
        return earliest <= slot < origin

    slots = [origin + offset for offset in spec.offsets] + list(range(origin, origin + spec.horizon))
    length = len(spec.offsets)
    found = {
        "days": np.full((spec.memory_days, len(slots), services), np.nan),
        "same_day": np.zeros((spec.memory_days, spec.horizon, 2)),
        "usual": np.full((length, services, n, n), np.nan),
        "city": np.full((length, services), np.nan),
        "level": np.full((services, n, n), np.nan),
        "spread": np.full((services, n, n), np.nan),
        "context": min(origin / day, context_days),
        "steps_per_day": day,
    }
    for j, slot in enumerate(slots):
        for lag in range(1, spec.memory_days + 1):
            before = slot - lag * day
            if known(before):
                found["days"][lag - 1, j] = z[before, :, row, col]
                if j >= length:
                    same = rest[slot + 2000] == rest[before + 2000], weekdays[slot + 2000] == weekdays[before + 2000]
                    found["same_day"][lag - 1, j - length] = same

    def usual(slot):
        past = [z[slot - lag * day] for lag in range(1, context_days) if known(slot - lag * day)]
        return mean(np.array(past)) if past else np.full(z.shape[1:], np.nan)

    def mean(values):
        count = (~np.isnan(values)).sum(0)
        return np.where(count > 0, np.nansum(values, axis=0) / np.maximum(count, 1), np.nan)

    around = range(-(n // 2), n // 2 + 1)
    if data.geometry == "points":
        around = range(1)
    pad = n // 2 if data.geometry == "points" else 0
    context = z[earliest:origin].astype(np.float64)
    level = mean(context)
    spread = np.sqrt(mean((context - level) ** 2))
    for a, dr in enumerate(around):
        for b, dc in enumerate(around):
            r, c = row + dr, col + dc
            if 0 <= r < height and 0 <= c < width:
                found["level"][:, a + pad, b + pad] = level[:, r, c]
                found["spread"][:, a + pad, b + pad] = spread[:, r, c]
                for j in range(length):
                    found["usual"][j, :, a + pad, b + pad] = usual(slots[j])[:, r, c]
    for j in range(length):
        if known(slots[j]):
            unusual = (z[slots[j]] - usual(slots[j])).reshape(services, -1).T
            found["city"][j] = mean(unusual)
    return found


SETTINGS = {
    "hours": (city(6), WindowSpec.recent(3, 6, steps_per_day=24, neighbourhood=3, memory_days=5), 5, 1),
    "a short context": (city(6), WindowSpec.recent(30, 24, steps_per_day=24, neighbourhood=3, memory_days=5), 2, 1),
    "inputs of other days": (
        city(6),
        WindowSpec.recent(2, 3, daily=3, steps_per_day=24, neighbourhood=3, memory_days=5),
        4,
        1,
    ),
    "points": (city(6, points=True), WindowSpec.recent(3, 6, steps_per_day=24, memory_days=4), 4, 1),
    "ten minutes": (
        city(3, step_minutes=10),
        WindowSpec.recent(6, 24, steps_per_day=144, neighbourhood=3, memory_days=3),
        2,
        11,
    ),
    "days": (
        city(40, step_minutes=1440),
        WindowSpec.recent(3, 6, steps_per_day=1, neighbourhood=3, memory_days=28),
        10,
        1,
    ),
    "less than a day": (city(0.5), WindowSpec.recent(2, 6, steps_per_day=24, neighbourhood=3, memory_days=28), 28, 1),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_memory_is_what_its_definition_says(name):
    data, spec, context_days, stride = SETTINGS[name]
    scaler = Scaler.fit(data, range(data.num_steps))
    part = Windows(data, spec, scaler, steps=range(data.num_steps), context_days=context_days)
    assert part.origins[0] == 1
    random = np.random.default_rng(1)
    origins = {0, len(part.origins) - 1, *random.integers(0, len(part.origins), 6).tolist()}
    for place in sorted(origins)[::stride] if stride > 1 else sorted(origins):
        cell = int(random.integers(part.num_cells))
        memory = part.batch([place * part.num_cells + cell]).memory
        wanted = direct(data, scaler, spec, context_days, int(part.origins[place]), *part.cells[cell])
        for field, value in wanted.items():
            got = getattr(memory, field)[0].numpy()
            np.testing.assert_allclose(got, value, rtol=1e-5, atol=1e-5, err_msg=f"{field}, origin {place + 1}")


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("at_once", [1, 40, 700])
def test_a_large_city_is_worked_on_in_stretches_to_the_same_numbers(name, at_once, monkeypatch):
    data, spec, context_days, _ = SETTINGS[name]
    scaler = Scaler.fit(data, range(data.num_steps))
    found = []
    for size in (1 << 30, at_once):
        monkeypatch.setattr("simmst.data.memory._AT_ONCE", size)
        windows = Windows(data, spec, scaler, steps=range(data.num_steps), context_days=context_days)
        found.append(windows.batch(np.arange(len(windows))).memory)
    for whole, cut in zip(*found, strict=True):
        torch.testing.assert_close(cut, whole, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_sample_does_not_depend_on_the_other_origins(name):
    data, spec, context_days, _ = SETTINGS[name]
    scaler = Scaler.fit(data, range(data.num_steps))
    whole = Windows(data, spec, scaler, steps=range(data.num_steps + spec.horizon), context_days=context_days)
    for place in (0, len(whole.origins) // 2, len(whole.origins) - 1):
        start = int(whole.origins[place])
        alone = Windows(data, spec, scaler, steps=range(start, start + spec.horizon), context_days=context_days)
        numbers = np.arange(whole.num_cells)
        one, other = alone.batch(numbers), whole.batch(place * whole.num_cells + numbers)
        for field in KNOWN:
            torch.testing.assert_close(getattr(one, field), getattr(other, field), equal_nan=True, msg=field)


def spoilt(data, slots):
    activity = data.activity.copy()
    activity[slots] = PLANTED
    return data.with_(activity=activity)


@pytest.mark.parametrize("name", SETTINGS)
def test_nothing_at_or_after_the_origin_is_read(name):
    data, spec, context_days, _ = SETTINGS[name]
    scaler = Scaler.fit(data, range(data.num_steps // 2))
    for origin in {1, data.num_steps // 2, data.num_steps - spec.horizon}:
        steps = range(origin, origin + spec.horizon)
        future = spoilt(data, slice(origin, None))
        clean, other = (Windows(one, spec, scaler, steps=steps, context_days=context_days) for one in (data, future))
        numbers = np.arange(len(clean))
        one, two = clean.batch(numbers), other.batch(numbers)
        for field in KNOWN:
            torch.testing.assert_close(getattr(two, field), getattr(one, field), rtol=0, atol=0, equal_nan=True)
        assert (two.target != one.target).any(), "otherwise nothing was changed"
        # nor by a window in a batch with later origins
        steps = range(origin, data.num_steps + spec.horizon)
        many = Windows(future, spec, scaler, steps=steps, context_days=context_days).batch(numbers)
        for field in KNOWN:
            torch.testing.assert_close(getattr(many, field), getattr(one, field), equal_nan=True)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "less than a day"])
def test_nothing_before_the_context_matters(name):
    data, spec, context_days, _ = SETTINGS[name]
    scaler = Scaler.fit(data, range(data.num_steps))
    origin = data.num_steps - spec.horizon
    start = origin - context_days * data.steps_per_day
    assert start > 0
    clean, other = (
        Windows(one, spec, scaler, steps=range(origin - 1, data.num_steps), context_days=context_days)
        for one in (data, spoilt(data, slice(0, start)))
    )
    numbers = clean.num_cells + np.arange(clean.num_cells)  # second of two origins: the first may look further back
    for field in KNOWN:
        one, two = getattr(clean.batch(numbers), field), getattr(other.batch(numbers), field)
        torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-5, equal_nan=True, msg=field)
    first = spoilt(data, slice(start, start + data.steps_per_day))
    inside = Windows(first, spec, scaler, steps=range(origin - 1, data.num_steps), context_days=context_days)
    assert (inside.batch(numbers).level != clean.batch(numbers).level).any(), "the context's own days matter"


@pytest.mark.parametrize("kind", ["relative", "log"])
def test_the_scaler_reads_its_slots_alone(kind):
    data = city()
    one, two = (Scaler.fit(x, range(72), kind).to_dict() for x in (data, spoilt(data, slice(72, None))))
    assert one == two


def test_a_context_longer_than_the_memory_or_of_no_day_is_refused():
    data, spec, *_ = SETTINGS["hours"]
    for days in (6, 0, -1):
        with pytest.raises(ConfigError, match=f"context_days is {days}; the windows have a memory of 5 days"):
            Windows(data, spec, Scaler.fit(data, range(24)), steps=range(48), context_days=days)
    with pytest.raises(ConfigError, match="memory_days must lie between 0 and 28, got 29"):
        WindowSpec(1, (-1,), memory_days=29)


def test_windows_without_a_memory_have_none():
    data = city()
    part = Windows(data, WindowSpec(1, (-2, -1)), Scaler.fit(data, range(24)), steps=range(48))
    assert part.batch([0]).memory is None
    assert part.origins[0] == 2


# The relative scale.


def test_the_relative_scale_is_the_same_in_any_unit():
    data = city()
    for factor in (1e-4, 7.0, 1e5):
        other = data.with_(activity=data.activity * np.float32(factor))
        scaled = [Scaler.fit(x, range(72), "relative").transform(x.activity, axis=1) for x in (data, other)]
        np.testing.assert_allclose(scaled[1], scaled[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shift", [0.0, -30.0])
def test_the_relative_scale_is_undone_by_its_inverse(shift):
    data = city()
    activity = data.activity + np.float32(shift)
    scores = data.with_(activity=activity, unit="z-score") if shift else data
    scaler = Scaler.fit(scores, range(scores.num_steps), "relative")
    back = scaler.inverse(scaler.transform(scores.activity, axis=1), axis=1)
    np.testing.assert_allclose(back, scores.activity, rtol=1e-4, atol=1e-3)
    assert np.isfinite(scaler.inverse(np.array([[1e9, -1e9]]), axis=1)).all()


def test_the_relative_scale_of_a_series_without_values_or_of_zeros_is_finite():
    data = city()
    activity = data.activity.copy()
    activity[:, 0], activity[:, 1] = np.nan, 0.0
    scaler = Scaler.fit(data.with_(activity=activity), range(24), "relative")
    assert (scaler.mean.tolist(), scaler.std.tolist()) == ([0.0, 0.0], [1.0, 1.0])
