from __future__ import annotations

import pytest

from simmst.data import chronological_split
from simmst.errors import DataError


@pytest.mark.parametrize(
    ("days", "train", "validation", "test", "note"),
    [(62, 48, 7, 7, ""), (23, 9, 7, 7, ""), (21, 7, 7, 7, ""), (20, 8, 6, 6, "20 days"), (7, 3, 2, 2, "7 days")],
)
def test_whole_days(days, train, validation, test, note):
    split = chronological_split(days * 144, 144)
    lengths = [len(split.train) / 144, len(split.validation) / 144, len(split.test) / 144]
    assert lengths == [train, validation, test]
    assert split.train.stop == split.validation.start
    assert split.validation.stop == split.test.start
    assert split.test.stop == days * 144
    assert (note in split.note) if note else split.note == ""


def test_a_part_of_a_day_goes_to_training():
    split = chronological_split(7 * 24 + 5, 24)
    assert len(split.test) == 48
    assert split.test.stop == 173


def test_below_three_days_slots_are_cut():
    split = chronological_split(28, 144)
    assert (len(split.train), len(split.validation), len(split.test)) == (10, 9, 9)
    assert "9 slots" in split.note


def test_first_days():
    split = chronological_split(23 * 24, 24).first_days(4, 24)
    assert split.train == range(0, 96)
    assert split.validation == range(9 * 24, 16 * 24)
    assert "first 4 days" in split.note
    with pytest.raises(DataError, match="it has 4 days"):
        split.first_days(5, 24)


def test_too_short():
    with pytest.raises(DataError, match="cannot split 2 slots"):
        chronological_split(2, 24)
