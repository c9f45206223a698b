from __future__ import annotations

import numpy as np
import pytest

from simmst.errors import DataError
from simmst.evaluation.significance import LEVEL, block_length, paired_test


def autocorrelated(rng, n, memory=0.85):
    noise = rng.normal(size=n)
    for t in range(1, n):
        noise[t] += memory * noise[t - 1]
    return noise


def test_equal_forecasts_are_seldom_told_apart_though_errors_are_autocorrelated():
    rng = np.random.default_rng(0)
    found = [paired_test(autocorrelated(rng, 336), np.zeros(336), steps_per_day=24)[0] for _ in range(100)]
    # A test that takes hours as independent would call half of these pairs different.
    assert np.mean(np.array(found) < LEVEL) < 0.15


def test_a_constant_difference_is_told_and_the_order_does_not_matter():
    rng = np.random.default_rng(1)
    error = rng.gamma(2, 1, 168)
    worse = error + 0.2 + 0.05 * rng.normal(size=168)
    assert paired_test(error, worse, steps_per_day=24) == (2 / 2**7, 7)
    assert paired_test(worse, error, steps_per_day=24) == (2 / 2**7, 7)


def test_short_tests_take_quarters_of_a_day():
    assert block_length(48, 24) == 6
    assert paired_test(np.zeros(48), np.ones(48), steps_per_day=24)[1] == 8
    assert block_length(1008, 144) == 144


def test_origins_without_a_target_are_left_out():
    error = np.ones(168)
    error[:24] = np.nan
    p_value, blocks = paired_test(error, error + 1, steps_per_day=24)
    assert blocks == 6
    assert p_value == 2 / 2**6


def test_nothing_is_told_of_one_block_or_of_equal_errors():
    assert paired_test(np.ones(3), np.zeros(3), steps_per_day=24)[0] == 1.0
    assert paired_test(np.ones(168), np.ones(168), steps_per_day=24) == (1.0, 7)


def test_other_origins_are_refused():
    with pytest.raises(DataError, match=r"\(24,\) and \(23,\) origins"):
        paired_test(np.ones(24), np.ones(23), steps_per_day=24)
