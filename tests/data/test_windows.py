from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from simmst.data import (
    CALENDAR_FEATURES,
    ConcatWindows,
    Scaler,
    TrafficDataset,
    Windows,
    WindowSpec,
    batches,
    calendar_features,
)
from simmst.errors import ConfigError, DataError


def city(steps=60, services=2, height=4, width=5, seed=0, missing=True, **kwargs):
    values = np.random.default_rng(seed).gamma(1.0, 20.0, (steps, services, height, width))
    mask = np.ones((height, width), dtype=bool)
    if missing:
        values[10, 0, 1, 1] = np.nan
        mask[-1, 0] = False
    options = {"mask": mask, "country": None, "timezone": "UTC"} | kwargs
    return TrafficDataset.from_arrays(
        values, np.arange(steps) * 3600, services=[f"s{i}" for i in range(services)], **options
    )


def windows(data, spec, steps=None, scaler=None):
    steps = range(data.num_steps) if steps is None else steps
    return Windows(data, spec, scaler or Scaler.fit(data, range(30)), steps=steps)


def test_recent_spec():
    spec = WindowSpec.recent(3, 4, daily=2, weekly=1, steps_per_day=24)
    assert spec.offsets == (-168, -167, -166, -48, -47, -46, -24, -23, -22, -4, -3, -2, -1)
    assert (spec.input_length, spec.reach) == (13, 168)
    assert WindowSpec.recent(24, 24, daily=1, steps_per_day=24).input_length == 24  # the two coincide
    assert WindowSpec.recent(30, 0, daily=1, steps_per_day=24).offsets == tuple(range(-24, 0))


@pytest.mark.parametrize(
    "values", [(0, (-1,), 5), (1, (), 5), (1, (0,), 5), (1, (-1, -2), 5), (1, (-2, -2), 5), (1, (-1,), 4)]
)
def test_bad_specs(values):
    with pytest.raises(ConfigError):
        WindowSpec(*values)


def test_batch_equals_a_loop():
    data = city()
    spec = WindowSpec(3, (-8, -3, -2, -1), neighbourhood=3)
    part = windows(data, spec)
    scaler = part.scaler
    index = np.random.default_rng(1).integers(0, len(part), 40)
    batch = part.batch(index)
    assert batch.values.shape == (40, 4, 2, 3, 3)
    assert batch.target.shape == (40, 3, 2)
    assert batch.marks.shape == (40, 7, len(CALENDAR_FEATURES))
    for tensor in batch[:4]:
        assert tensor.is_contiguous()
    assert batch.values.dtype == batch.marks.dtype == batch.target.dtype == torch.float32
    assert batch.index.tolist() == index.tolist()
    scaled = scaler.transform(data.activity, axis=1)
    scaled[:, :, ~data.mask] = np.nan
    marks = calendar_features(data.time, "UTC", None)
    for b, i in enumerate(index):
        origin, (row, col) = part.origins[i // part.num_cells], part.cells[i % part.num_cells]
        for t, offset in enumerate(spec.offsets):
            for dr in (-1, 0, 1):
                for dc in (-1, 0, 1):
                    r, c = row + dr, col + dc
                    inside = 0 <= r < 4 and 0 <= c < 5 and bool(data.mask[r, c])
                    assert bool(batch.mask[b, dr + 1, dc + 1]) == inside
                    expected = scaled[origin + offset, :, r, c] if inside else np.full(2, np.nan)
                    np.testing.assert_array_equal(batch.values[b, t, :, dr + 1, dc + 1].numpy(), expected)
            np.testing.assert_array_equal(batch.marks[b, t].numpy(), marks[origin + offset])
        np.testing.assert_array_equal(batch.target[b].numpy(), scaled[origin : origin + 3, :, row, col])
        np.testing.assert_array_equal(part.raw_target([i])[0], data.activity[origin : origin + 3, :, row, col])


def test_origins_keep_the_whole_target_inside_and_reach_back():
    part = windows(city(), WindowSpec(3, (-8, -1)), range(20, 40))
    assert part.origins.tolist() == list(range(20, 38))
    assert windows(city(), WindowSpec(3, (-8, -1)), range(0, 40)).origins[0] == 8
    assert len(part) == 18 * 19


def test_forecasts_beyond_the_end():
    data = city()
    part = windows(data, WindowSpec(3, (-2, -1)), range(60, 63))
    assert part.origins.tolist() == [60]
    batch = part.batch(range(len(part)))
    assert torch.isnan(batch.target).all()
    assert not torch.isnan(batch.values[:, :, :, 2, 2]).any()
    assert np.isnan(part.raw_target([0])).all()
    later = data.time[-1] + np.arange(1, 4) * np.timedelta64(3600, "s")
    np.testing.assert_array_equal(batch.marks[0, 2:].numpy(), calendar_features(later, "UTC", None))
    partly = windows(data, WindowSpec(3, (-2, -1)), range(59, 62))
    assert torch.isnan(partly.batch([0]).target).all(dim=-1).tolist() == [[False, True, True]]


def test_inputs_from_before_the_context_are_unknown():
    data = city(steps=96)
    spec = WindowSpec(2, tuple(range(-48, 0)), memory_days=2)
    scaler = Scaler.fit(data, range(96))
    short, long = (Windows(data, spec, scaler, steps=range(72, 96), context_days=days) for days in (1, 2))
    centre = (slice(None), slice(None), slice(None), 2, 2)
    index = np.arange(len(short))
    near, far = short.batch(index).values[centre], long.batch(index).values[centre]
    assert torch.isnan(near[:, :24]).all()
    assert not torch.isnan(far).any()
    torch.testing.assert_close(near[:, 24:], far[:, 24:], rtol=0, atol=0)


def test_points_have_no_neighbours():
    data = city(height=1, width=6, missing=False, geometry="points")
    spec = WindowSpec(2, (-3, -2, -1), neighbourhood=5)
    part = windows(data, spec)
    batch = part.batch([0, 4])
    assert batch.mask.sum(dim=(1, 2)).tolist() == [1, 1]
    assert bool(batch.mask[:, 2, 2].all())
    assert torch.isnan(batch.values).sum() == 2 * 3 * 2 * 24
    scaled = part.scaler.transform(data.activity, axis=1)
    np.testing.assert_array_equal(batch.values[1, :, :, 2, 2].numpy(), scaled[0:3, :, 0, 4])
    np.testing.assert_array_equal(batch.target[1].numpy(), scaled[3:5, :, 0, 4])


def test_a_window_longer_than_the_series_names_both_lengths():
    with pytest.raises(DataError, match=r"take 171 slots, traffic has 60, and targets may lie in 0\.\.60; use fewer"):
        windows(city(), WindowSpec(3, (-168,)))
    with pytest.raises(DataError, match="no window fits"):
        windows(city(), WindowSpec(30, (-2,)), range(40, 60))


def test_indices_out_of_range():
    part = windows(city(), WindowSpec(3, (-1,)))
    with pytest.raises(IndexError, match=f"sample {len(part)} is outside"):
        part.batch([0, len(part)])
    with pytest.raises(IndexError):
        part.batch([-1])


def test_concat_equals_its_parts():
    spec = WindowSpec(2, (-3, -1), neighbourhood=3)
    first, second = windows(city(), spec), windows(city(steps=50, height=3, seed=4, missing=False), spec)
    both = ConcatWindows([first, second])
    assert len(both) == len(first) + len(second)
    index = torch.tensor([len(first) + 7, 3, len(first) - 1, len(first)])
    assert both.part_of(index).tolist() == [1, 0, 0, 1]
    batch = both.batch(index)
    assert batch.index.tolist() == index.tolist()
    for b, (part, local) in enumerate([(second, 7), (first, 3), (first, len(first) - 1), (second, 0)]):
        single = part.batch([local])
        for got, expected in zip(batch[:4], single[:4], strict=True):
            np.testing.assert_array_equal(got[b].numpy(), expected[0].numpy())
        np.testing.assert_array_equal(both.raw_target(index)[b], part.raw_target([local])[0])
    with pytest.raises(DataError, match="one spec"):
        ConcatWindows([first, windows(city(), WindowSpec(2, (-3, -1), neighbourhood=5))])
    with pytest.raises(DataError, match="at least one"):
        ConcatWindows([])


def order(part, **kwargs):
    return torch.cat([batch.index for batch in batches(part, 32, **kwargs)]).tolist()


def test_batches_depend_on_seed_and_epoch_alone():
    part = windows(city(), WindowSpec(2, (-3, -1), neighbourhood=1))
    first = order(part, seed=3, epoch=1)
    assert sorted(first) == list(range(len(part)))
    assert first == order(part, seed=3, epoch=1)
    assert first != order(part, seed=3, epoch=2)
    assert first != order(part, seed=4, epoch=1)
    assert order(part, shuffle=False) == list(range(len(part)))


def test_limit_draws_again_every_epoch():
    part = windows(city(), WindowSpec(2, (-3, -1), neighbourhood=1))
    draws = [order(part, seed=0, epoch=e, limit=50) for e in range(2)]
    assert [len(set(draw)) for draw in draws] == [50, 50]
    assert set(draws[0]) != set(draws[1])
    assert sorted(order(part, limit=10**9)) == list(range(len(part)))
    ordered = order(part, limit=50, shuffle=False)
    assert ordered == sorted(ordered)
    with pytest.raises(ConfigError):
        next(batches(part, 0))


def test_batch_moves_to_a_device():
    batch = windows(city(), WindowSpec(2, (-1,))).batch([0]).to("cpu")
    assert batch.values.device.type == "cpu"
    assert type(batch).__name__ == "Batch"


def test_batches_are_quick():
    data = city(steps=400, services=3, height=20, width=20, missing=False)
    part = windows(data, WindowSpec(6, tuple(range(-42, 0))))
    index = np.random.default_rng(0).integers(0, len(part), 128)
    part.batch(index)
    start = time.perf_counter()
    for _ in range(5):
        part.batch(index)
    assert (time.perf_counter() - start) / 5 < 0.05  # 1.5 ms alone on one core; room for a busy machine
