from __future__ import annotations

import pytest
import torch

from simmst.core.philox import STREAM_DROPOUT, keep_threshold, philox4x32, philox_indices, philox_words

# Known answers published with Random123: counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, expected: str) -> None:
    result = philox4x32(tuple(torch.tensor([word]) for word in words(counter)), torch.tensor(words(key)))
    assert [int(word) for word in result] == words(expected)


def test_counter_layout() -> None:
    key = torch.tensor([11, 22])
    block = philox_words(torch.tensor([5]), torch.tensor([7]), 10, stream=3, key=key)[0]
    for column in range(10):
        counter = tuple(torch.tensor(word) for word in (column // 4, 7, 5, 3))
        assert block[column] == philox4x32(counter, key)[column % 4]


def test_rows_and_batches_are_independent_of_the_block_they_are_drawn_in() -> None:
    key = torch.tensor([1, 2])
    batch, row = torch.arange(3)[:, None], torch.arange(6).expand(3, 6)
    whole = philox_words(batch, row, 9, stream=STREAM_DROPOUT, key=key)
    part = philox_words(batch[1:2], row[1:2, 4:], 5, stream=STREAM_DROPOUT, key=key)
    assert torch.equal(whole[1:2, 4:, :5], part)
    assert whole.unique().numel() > 0.99 * whole.numel()


def test_words_are_uniform() -> None:
    drawn = philox_words(torch.zeros(200).long(), torch.arange(200), 200, stream=0, key=torch.tensor([3, 4]))
    assert drawn.min() >= 0
    assert drawn.max() < 2**32
    uniform = drawn.double() / 2**32
    assert abs(uniform.mean() - 0.5) < 5 / (12 * drawn.numel()) ** 0.5
    counts = torch.histc(uniform, 16, 0, 1)
    assert ((counts - 2500).abs() < 5 * 2500**0.5).all()


def test_keep_threshold_is_the_exact_comparison() -> None:
    for p in (0.0, 0.1, 0.3, 0.5, 0.999):
        threshold = keep_threshold(p)
        assert threshold / 2**32 >= p
        assert threshold == 0 or (threshold - 1) / 2**32 < p


@pytest.mark.parametrize("upper", [1, 2, 97, 2**31])
def test_indices_stay_below_the_bound(upper: int) -> None:
    drawn = philox_indices(50, 13, upper, key=torch.tensor([9, 9]))
    assert drawn.shape == (50, 13)
    assert drawn.dtype == torch.int64
    assert drawn.min() >= 0
    assert drawn.max() < upper
    assert upper < 97 or drawn.unique().numel() > 60
