from __future__ import annotations

import numpy as np
import pytest

from simmst.simulation import CityConfig, OperatorReporting, StatisticalRadio
from simmst.simulation.reporting.operator import draw_gaps, spread_over_coverage


def setting(**fields):
    config = CityConfig(height=10, width=12, days=2, **fields)
    return config, StatisticalRadio().coverage(config, np.random.default_rng(0))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_spreading_conserves_activity_in_every_slot(share):
    _, coverage = setting()
    activity = np.random.default_rng(1).gamma(0.3, 100.0, (48, 3, 10, 12)).astype(np.float32)
    spread = spread_over_coverage(activity, coverage.association, share)
    np.testing.assert_allclose(
        spread.sum(axis=(2, 3), dtype=np.float64), activity.sum(axis=(2, 3), dtype=np.float64), rtol=1e-5
    )
    assert (spread >= 0).all()
    if share == 0:
        np.testing.assert_array_equal(spread, activity)


def test_spreading_follows_the_published_formula():
    _, coverage = setting()
    dense = coverage.association.dense().astype(np.float64)
    activity = np.random.default_rng(1).random((2, 1, 10, 12))
    records = dense @ activity.reshape(2, -1).T
    expected = (dense.T @ (records / dense.sum(axis=1, keepdims=True))).T.reshape(2, 1, 10, 12)
    np.testing.assert_allclose(spread_over_coverage(activity, coverage.association, 1.0), expected, rtol=1e-4)


def test_spreading_smooths_in_space():
    _, coverage = setting()
    activity = np.random.default_rng(1).lognormal(0, 1, (4, 1, 10, 12))
    spread = spread_over_coverage(activity, coverage.association, 1.0)
    assert np.log(spread).std() < 0.6 * np.log(activity).std()


def test_units_and_scale_multiply():
    config, coverage = setting(missing_share=0.0, flicker_log_std=0.0, coverage_spread=0.0, reporting_scale=0.5)
    activity = np.ones((48, 3, 10, 12), np.float32)
    published = OperatorReporting().apply(config, activity, coverage, np.random.default_rng(0))
    np.testing.assert_array_equal(published, np.float32(0.5) * activity)


def test_gaps_are_missing_for_all_services_and_have_the_asked_share_and_length():
    config, coverage = setting(missing_share=0.2, missing_duration_h=4.0)
    activity = np.ones((48, 3, 10, 12), np.float32)
    published = OperatorReporting().apply(config, activity, coverage, np.random.default_rng(0))
    missing = np.isnan(published)
    assert (missing == missing[:, :1]).all()
    assert missing.mean() == pytest.approx(0.2, abs=0.04)
    for step in (10, 60):
        gaps = draw_gaps(
            CityConfig(days=20, step_minutes=step, missing_share=0.01, missing_duration_h=2.0), np.random.default_rng(0)
        )
        assert gaps.mean() == pytest.approx(0.01, rel=0.15)
        starts = (gaps[1:] & ~gaps[:-1]).sum()
        assert gaps.sum() / starts * step / 60 == pytest.approx(2.0, rel=0.15)


def test_no_gaps_when_none_are_asked_for():
    assert not draw_gaps(CityConfig(missing_share=0.0), np.random.default_rng(0)).any()
