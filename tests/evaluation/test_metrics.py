from __future__ import annotations

import math

import numpy as np
import pytest

from simmst.errors import DataError
from simmst.evaluation.metrics import QUANTILE_LEVELS, score, score_quantiles, seasonal_naive_error, skill

sklearn_metrics = pytest.importorskip("sklearn.metrics")


@pytest.fixture
def pair():
    random = np.random.default_rng(0)
    truth = random.gamma(2.0, 10.0, (7, 3, 4, 2)).astype(np.float32)
    forecast = truth + random.normal(0, 3, truth.shape).astype(np.float32)
    truth[random.random(truth.shape) < 0.2] = np.nan
    return forecast, truth


def test_scores_equal_their_definitions_over_the_known_points(pair):
    forecast, truth = pair
    error = forecast.astype(np.float64) - truth
    scores = score(forecast, truth)
    np.testing.assert_allclose(scores.mae, np.nanmean(np.abs(error), axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(scores.rmse, np.sqrt(np.nanmean(error**2, axis=(0, 1, 2))), rtol=1e-6)
    np.testing.assert_allclose(scores.mae_by_step, np.nanmean(np.abs(error), axis=(0, 1)), rtol=1e-6)
    np.testing.assert_allclose(scores.rmse_by_step, np.sqrt(np.nanmean(error**2, axis=(0, 1))), rtol=1e-6)
    assert scores.overall_mae == pytest.approx(np.nanmean(np.abs(error)))
    assert scores.overall_rmse == pytest.approx(np.sqrt(np.nanmean(error**2)))
    assert np.isnan(scores.mase).all()


def test_a_missing_target_does_not_count_whatever_the_forecast_says(pair):
    forecast, truth = pair
    before = score(forecast, truth)
    forecast = np.where(np.isnan(truth), 1e9, forecast)
    assert score(forecast, truth).overall_mae == before.overall_mae
    assert score(np.where(np.isnan(truth), np.nan, forecast), truth).overall_mae == before.overall_mae


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_forecast_without_a_value_is_an_error_with_its_place(pair, bad):
    forecast, truth = pair
    truth[2, 1, 3, 0] = 1.0
    forecast[2, 1, 3, 0] = bad
    with pytest.raises(DataError, match=r"1 NaN or infinite values .* = \(2, 1, 3, 0\)"):
        score(forecast, truth)


def test_a_service_nobody_observed_has_no_score(pair):
    forecast, truth = pair
    truth[..., 1] = np.nan
    scores = score(forecast, truth)
    assert math.isnan(scores.mae[1])
    assert math.isfinite(scores.mae[0])


def test_mase_is_the_mean_over_cells_of_the_scaled_error():
    truth = np.zeros((2, 3, 1, 1), dtype=np.float32)
    forecast = truth + np.array([1.0, 10.0, 5.0], dtype=np.float32)[None, :, None, None]
    naive = np.array([[2.0], [100.0], [0.0]])  # the third cell has no scale and is left out
    assert score(forecast, truth, naive_error=naive).mase[0] == pytest.approx((0.5 + 0.1) / 2)


def test_the_naive_error_masks_missing_pairs():
    series = np.array([1.0, 5.0, 2.0, np.nan, 7.0, 5.0]).reshape(6, 1, 1)
    assert seasonal_naive_error(series, 2)[0, 0] == pytest.approx((1 + 5) / 2)
    assert np.isnan(seasonal_naive_error(np.full((6, 1, 1), np.nan), 2)).all()


def test_shapes_are_checked(pair):
    forecast, truth = pair
    with pytest.raises(ValueError, match=r"\(n, C, T_out, K\)"):
        score(forecast[:3], truth)
    with pytest.raises(ValueError, match="naive_error"):
        score(forecast, truth, naive_error=np.ones((2, 2)))


def test_skill_is_undefined_over_a_perfect_reference():
    assert np.isnan(skill(1.0, 0.0))
    assert skill(0.0, 2.0) == 1.0


def test_quantile_scores_equal_their_definitions(pair):
    centre, truth = pair
    shift = np.linspace(-8, 8, 9, dtype=np.float32)
    quantiles = centre[..., None] + shift
    scores = score_quantiles(quantiles, truth)
    known = ~np.isnan(truth)
    for k in range(2):
        points, actual = quantiles[..., k, :][known[..., k]].astype(np.float64), truth[..., k][known[..., k]]
        inside = (points[:, 0] <= actual) & (actual <= points[:, -1])
        assert scores.coverage[k] == pytest.approx(inside.mean())
        losses = [
            2 * sklearn_metrics.mean_pinball_loss(actual, points[:, place], alpha=level)
            for place, level in enumerate(QUANTILE_LEVELS)
        ]
        assert scores.wql[k] == pytest.approx(np.mean(losses) / actual.mean(), rel=1e-5)
    assert scores.wql_by_step.shape == (4, 2)
    step = score_quantiles(quantiles[:, :, 1:2], truth[:, :, 1:2])
    np.testing.assert_allclose(scores.wql_by_step[1], step.wql)
    np.testing.assert_allclose(scores.coverage_by_step[1], step.coverage)


def test_quantiles_that_all_equal_a_point_forecast_have_its_normalised_error(pair):
    forecast, truth = pair
    wql = score_quantiles(np.repeat(forecast[..., None], 9, axis=-1), truth).wql
    np.testing.assert_allclose(wql, score(forecast, truth).mae / np.nanmean(truth, axis=(0, 1, 2)), rtol=1e-5)


def test_quantiles_of_another_shape_are_refused(pair):
    forecast, truth = pair
    with pytest.raises(ValueError, match="quantiles are"):
        score_quantiles(forecast[..., None], truth)
