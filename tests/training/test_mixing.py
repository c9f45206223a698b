"""One protocol: every kind of windows returns the same samples by number as in its epochs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from training_city import SPEC, city_windows

from simmst.data import ConcatWindows, StreamedWindows
from simmst.errors import DataError
from simmst.training import MixedWindows, WeightedWindows
from simmst.training.chosen_windows import choose_windows

KINDS = {
    "windows": lambda real, cities: real,
    "concat": lambda real, cities: cities,
    "streamed": lambda real, cities: streamed(cities),
    "chosen": lambda real, cities: choose_windows(cities, per_city=9, seed=0),
    "chosen-and-kept": lambda real, cities: choose_windows(cities, per_city=9, seed=0, keep=True),
    "mixed": lambda real, cities: MixedWindows(real, cities, 0.3),
    "mixed-with-streamed": lambda real, cities: MixedWindows(real, streamed(cities), 0.3),
    "weighted": lambda real, cities: WeightedWindows(cities, np.arange(1.0, len(cities) + 1)),
}


def streamed(cities):
    return StreamedWindows([part.dataset for part in cities.parts], SPEC, per_city=6, keep=1)


@pytest.fixture(scope="module")
def cities():
    return ConcatWindows([city_windows(seed, range(96)) for seed in (1, 2)])


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_holds_the_samples_of_its_numbers(real, cities, kind):
    windows = KINDS[kind](real[0], cities)
    found = list(windows.batches(8, seed=1, epoch=2, limit=40))
    assert sum(len(batch.index) for batch in found) >= min(len(windows), 40)
    for batch in found:
        for got, wanted in zip(batch, windows.batch(batch.index), strict=True):
            if wanted is None:
                assert got is None
                continue
            torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)
    again = torch.cat([batch.index for batch in windows.batches(8, seed=1, epoch=2, limit=40)])
    assert torch.equal(torch.cat([batch.index for batch in found]), again)


@pytest.mark.parametrize("kind", KINDS)
def test_no_sample_is_a_batch_too(real, cities, kind):
    batch = KINDS[kind](real[0], cities).batch([3, 1])
    empty = KINDS[kind](real[0], cities).batch(np.empty(0, dtype=np.int64))
    assert batch.index.tolist() == [3, 1]
    for none, some in zip(empty, batch, strict=True):
        assert (none is None) == (some is None)
        assert none is None or none.shape == (0, *some.shape[1:])


def test_cities_are_known_of_windows_in_memory_and_streamed(real, cities):
    assert (real[0].parts, real[0].lengths.tolist()) == ((real[0],), [len(real[0])])
    assert cities.lengths.tolist() == [len(part) for part in cities.parts]
    assert (streamed(cities).parts, streamed(cities).lengths.tolist()) == ((), [6, 6])


def test_windows_are_drawn_as_often_as_their_weight_says(cities):
    weights = np.zeros(len(cities))
    weights[[5, 7]] = 1.0, 3.0
    index = torch.cat([batch.index for batch in WeightedWindows(cities, weights).batches(64, seed=0, epoch=0)])
    assert set(index.tolist()) == {5, 7}
    assert 2 < (index == 7).sum() / (index == 5).sum() < 4.5
    with pytest.raises(DataError, match=r"none of \d+ windows has a weight above 0"):
        WeightedWindows(cities, 0 * weights)
