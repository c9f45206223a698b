"""Paired tests that are kept: the same numbers, tested once, and never taken from another test or other errors."""

from __future__ import annotations

import json

import numpy as np
import pytest

from simmst.evaluation import significance
from simmst.evaluation.tables import kept_tests
from simmst.evaluation.tables.kept_tests import KeptTests

for package in ("scipy", "msgspec"):
    pytest.importorskip(package)

ONE, OTHER = np.random.default_rng(0).random((2, 168))


@pytest.fixture
def counted(monkeypatch):
    """The calls of the test itself."""
    calls = []

    def counting(one, other, *, steps_per_day):
        calls.append(len(one))
        return significance_test(one, other, steps_per_day=steps_per_day)

    significance_test = significance.paired_test
    monkeypatch.setattr(significance, "paired_test", counting)
    return calls


@pytest.fixture
def path(tmp_path, counted):
    tests = KeptTests(tmp_path / "kept.json")
    assert tests(ONE, OTHER, 24) == significance.paired_test(ONE, OTHER, steps_per_day=24)
    tests.save()
    counted.clear()
    return tests.path


def test_a_pair_is_tested_once_to_the_last_digit(path, counted):
    written = path.stat().st_mtime_ns
    tests = KeptTests(path)
    kept = tests(ONE, OTHER, 24)
    tests.save()
    assert not counted
    assert kept == significance.paired_test(ONE, OTHER, steps_per_day=24)
    assert path.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("one", "other", "steps"), [(OTHER, ONE, 24), (ONE + 1e-12, OTHER, 24), (ONE, OTHER, 12), (ONE[1:], OTHER[1:], 24)]
)
def test_other_errors_are_tested(path, counted, one, other, steps):
    KeptTests(path)(one, other, steps)
    assert len(counted) == 1


def test_what_another_test_found_is_not_taken(path, counted, monkeypatch):
    monkeypatch.setattr(kept_tests, "version", lambda name: "0.1")
    KeptTests(path)(ONE, OTHER, 24)
    assert len(counted) == 1


@pytest.mark.parametrize("value", ["{", "[]", [2.0, 7], [0.5, -1], [0.5], ["x", 7]])
def test_what_is_damaged_is_tested_again(path, counted, value):
    content = json.loads(path.read_text())
    content["found"] = dict.fromkeys(content["found"], value)
    path.write_text(value if isinstance(value, str) else json.dumps(content))
    KeptTests(path)(ONE, OTHER, 24)
    assert len(counted) == 1


def test_what_is_not_asked_for_any_more_is_forgotten(path):
    tests = KeptTests(path)
    tests(OTHER, ONE, 24)
    tests.save()
    assert len(json.loads(path.read_text())["found"]) == 1
    assert KeptTests(path).known == tests.known
