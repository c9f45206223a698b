from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from simmst.data import Scaler, StreamedWindows, TrafficDataset, Windows, WindowSpec
from simmst.errors import ConfigError

SPEC = WindowSpec.recent(2, 6, steps_per_day=24, neighbourhood=3)


def city(seed: int, steps: int = 48) -> TrafficDataset:
    activity = np.random.default_rng(seed).gamma(1.0, 50.0, (steps, 1, 3, 4)).astype(np.float32)
    return TrafficDataset.from_arrays(activity, np.arange(steps) * 3600, country=None, name=f"city {seed}")


class Counted(Sequence):
    """A collection of cities that counts how often each is read."""

    def __init__(self, cities: Sequence[TrafficDataset]) -> None:
        self.cities, self.reads = cities, [0] * len(cities)

    def __len__(self) -> int:
        return len(self.cities)

    def __getitem__(self, index):
        self.reads[index] += 1
        return self.cities[index]


def test_a_sample_is_a_window_of_its_city() -> None:
    cities = [city(seed) for seed in range(3)]
    streamed = StreamedWindows(cities, SPEC, per_city=5, seed=7)
    assert len(streamed) == 15
    batch = streamed.batch([14, 0, 6])
    assert batch.index.tolist() == [14, 0, 6]
    assert streamed.city_of([14, 0, 6]).tolist() == [2, 0, 1]
    for row, number in enumerate((2, 0, 1)):
        whole = Windows(cities[number], SPEC, Scaler.fit(cities[number], range(48)), steps=range(48))
        every = whole.batch(range(len(whole)))
        same = torch.isclose(every.values, batch.values[row], rtol=0, atol=0, equal_nan=True).flatten(1).all(1)
        matches = same & (every.target == batch.target[row]).flatten(1).all(1)
        assert matches.sum() == 1
    again = StreamedWindows(cities[:2], SPEC, per_city=5, seed=7)
    torch.testing.assert_close(again.batch([6]).values, streamed.batch([6]).values, rtol=0, atol=0, equal_nan=True)
    with pytest.raises(IndexError, match="sample 15 is outside the 15 samples"):
        streamed.batch([15])


def test_an_epoch_gives_every_sample_once_and_reads_every_city_once() -> None:
    cities = Counted([city(seed) for seed in range(7)])
    streamed = StreamedWindows(cities, SPEC, per_city=6, keep=3)
    found = [batch.index for batch in streamed.batches(4, seed=1, epoch=0)]
    assert [len(index) for index in found] == [4] * 10 + [2]
    assert sorted(torch.cat(found).tolist()) == list(range(42))
    assert cities.reads == [1] * 7
    assert len(streamed._kept) <= 4
    mixed = {len(set(streamed.city_of(index).tolist())) for index in found}
    assert max(mixed) > 1, "batches mix cities"
    same = [batch.index for batch in streamed.batches(4, seed=1, epoch=0)]
    assert all(torch.equal(one, two) for one, two in zip(found, same, strict=True))
    other = [batch.index for batch in streamed.batches(4, seed=1, epoch=1)]
    assert not torch.equal(torch.cat(found), torch.cat(other))
    assert sum(len(batch.index) for batch in streamed.batches(4, seed=1, epoch=0, limit=9)) == 9


def test_training_batches_come_from_streams_too() -> None:
    from simmst.training.mixing import MixedWindows

    streamed = StreamedWindows([city(seed) for seed in range(3)], SPEC, per_city=4)
    real = Windows(city(9), SPEC, Scaler.fit(city(9), range(48)), steps=range(48))
    alone = list(streamed.batches(5, seed=0, epoch=0))
    assert sorted(torch.cat([batch.index for batch in alone]).tolist()) == list(range(12))
    mixed = list(MixedWindows(real, streamed, 0.5).batches(6, seed=0, epoch=0, limit=60))
    simulated = torch.cat([batch.index for batch in mixed])
    assert (simulated >= len(real)).sum() == 30


def test_wrong_numbers() -> None:
    with pytest.raises(ConfigError, match="per_city is 0"):
        StreamedWindows([city(0)], SPEC, per_city=0)
    with pytest.raises(ConfigError, match="the number of cities is 0"):
        StreamedWindows([], SPEC, per_city=1)
    with pytest.raises(ConfigError, match=r"city 0 has 492 windows, fewer than per_city = 500"):
        StreamedWindows([city(0)], SPEC, per_city=500).batch([0])
    with pytest.raises(ConfigError, match="batch_size and limit must be at least 1"):
        next(StreamedWindows([city(0)], SPEC, per_city=1).batches(0, seed=0, epoch=0))
