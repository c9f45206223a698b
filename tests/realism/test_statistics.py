from __future__ import annotations

import numpy as np
import pytest

from simmst.realism import spatial_statistics as space
from simmst.realism import statistics as st

HOURS = np.arange(24 * 14)
RNG = np.random.default_rng(0)


def daily(cells=3):
    return np.tile(2 + np.sin(2 * np.pi * HOURS / 24)[:, None], (1, cells))


def with_gaps(series, share=0.2):
    return np.where(np.random.default_rng(1).random(series.shape) < share, np.nan, series)


@pytest.mark.parametrize(("lag", "expected"), [(24, 1.0), (12, -1.0), (6, 0.0)])
def test_autocorrelation_of_a_sine(lag, expected):
    assert st.autocorrelation(daily(), lag) == pytest.approx(expected, abs=0.02)
    assert st.autocorrelation(with_gaps(daily()), lag) == pytest.approx(expected, abs=0.06)


def test_autocorrelation_is_the_middle_cells():
    noise = RNG.standard_normal(len(HOURS))
    series = np.stack([daily(1)[:, 0], daily(1)[:, 0], noise], axis=1)
    assert st.autocorrelation(series, 24) == pytest.approx(1.0, abs=0.02)


def test_cross_correlation_per_cell_agrees_with_numpy_and_leaves_gaps_out():
    one, two = RNG.random((50, 4)), RNG.random((50, 4))
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(one.T, two.T, strict=True)]
    np.testing.assert_allclose(st.cross_correlation(one, two), expected)
    gappy = with_gaps(one)
    kept = ~np.isnan(gappy[:, 0])
    expected = np.corrcoef(one[kept, 0], two[kept, 0])[0, 1]
    assert st.cross_correlation(gappy, two)[0] == pytest.approx(expected)
    assert np.isnan(st.cross_correlation(np.ones((50, 1)), two[:, :1])[0])


def test_levels_of_days_and_night():
    free = HOURS // 24 % 7 >= 5
    series = np.where(free, 0.5, 1.0)[:, None] * daily()
    assert st.ratio_of_days(series, free, ~free) == pytest.approx(0.5)
    assert st.shift_of_days(series, free, ~free) < -0.5
    scaled = 7 * series + 3
    assert st.shift_of_days(scaled, free, ~free) == pytest.approx(st.shift_of_days(series, free, ~free))
    assert st.night_trough(daily(), HOURS % 24.0) == pytest.approx(1 / 3, rel=1e-6)
    assert st.mean_day(daily(), HOURS % 24.0).argmax() == 6


def test_tails_see_a_burst():
    flat = 100 + RNG.standard_normal((2000, 5))
    burst = flat.copy()
    burst[777] *= 20
    assert st.burst_kurtosis(flat) == pytest.approx(np.log(3), abs=0.2)
    assert st.burst_kurtosis(burst) > np.log(500)
    assert st.largest_ratio(burst) == pytest.approx(np.log(20), abs=0.05)
    assert st.upper_ratio(np.exp(RNG.standard_normal((20_000, 1))), 0.95) == pytest.approx(1.645, abs=0.05)
    assert st.temporal_std(np.exp(0.5 * RNG.standard_normal((5000, 2)))) == pytest.approx(0.5, abs=0.02)
    assert st.lag_roughness(np.exp(0.1 * RNG.standard_normal((5000, 2)))) == pytest.approx(
        np.log(0.1 * np.sqrt(2) * 0.6745), abs=0.05
    )


def test_synchrony_and_neighbours():
    common = RNG.standard_normal((3000, 1, 1))
    half = common + RNG.standard_normal((3000, 5, 5))
    mask = np.ones((5, 5), bool)
    assert space.neighbour_correlation(half, mask) == pytest.approx(0.5, abs=0.05)
    assert st.synchrony(half.reshape(3000, 25)) == pytest.approx(0.5**0.5, abs=0.05)


def test_distances_of_marginals():
    levels = (np.arange(1000) + 0.5) / 1000
    normal = st.quantile_function(RNG.standard_normal(200_000) * 5 + 3, levels)
    other = st.quantile_function(RNG.random(200_000), levels)
    assert normal[500] == pytest.approx(0.0, abs=0.02)
    assert st.kolmogorov_smirnov(normal, normal) == 0
    assert st.kolmogorov_smirnov(normal, normal + 10) == 1
    assert st.kolmogorov_smirnov(normal, other) == pytest.approx(0.06, abs=0.02)  # uniform against normal, both scaled
    assert st.wasserstein(normal, normal + 0.3) == pytest.approx(0.3)


def test_maps():
    field = RNG.standard_normal((40, 30))
    assert space.map_std(field) == pytest.approx(1.0, abs=0.05)
    assert space.map_skew(np.exp(field)) > 2
    assert space.spatial_autocorrelation(field, 1) == pytest.approx(0.0, abs=0.06)
    stripes = np.tile(np.arange(30) % 2.0, (40, 1))
    assert space.spatial_autocorrelation(stripes, 2) == pytest.approx(1.0)
    assert space.spatial_autocorrelation(stripes, 1) == pytest.approx(0.0, abs=0.02)  # north +1, east -1
    holes = np.where(RNG.random(stripes.shape) < 0.2, np.nan, stripes)
    assert space.spatial_autocorrelation(holes, 2) == pytest.approx(1.0, abs=0.02)
    activity = np.ones((3, 2, 2))
    activity[:, 0, 0] = 0
    mask = np.array([[True, True], [True, False]])
    np.testing.assert_array_equal(np.isnan(space.log_mean_map(activity, mask)), [[True, False], [False, True]])


@pytest.mark.parametrize(
    ("compute", "reason"),
    [
        (lambda: st.autocorrelation(daily()[:5], 24), "no longer than the lag"),
        (lambda: st.autocorrelation(np.ones((50, 2)), 1), "do not change"),
        (lambda: st.log_traffic(np.zeros(3)), "no activity"),
        (lambda: st.log_traffic(np.full(3, np.nan)), "no activity"),
        (lambda: st.night_trough(daily()[:20], HOURS[:20] % 24.0), "4 of the 24 hours"),
        (lambda: st.ratio_of_days(daily(), HOURS < 0, HOURS >= 0), "no such day"),
        (lambda: st.upper_ratio(daily()[:50], 0.99), "too few for the quantile"),
        (lambda: st.upper_ratio(np.eye(50), 0.95), "empty"),
        (lambda: st.burst_kurtosis(daily()[:9]), "too few"),
        (lambda: st.synchrony(daily(2)), "2 cells"),
        (lambda: space.map_std(np.ones((3, 3))), "9 cells"),
        (lambda: space.map_skew(np.ones((5, 5))), "all values are alike"),
        (lambda: space.spatial_autocorrelation(np.ones((5, 5)), 5), "too small for 5"),
        (lambda: space.spatial_autocorrelation(np.where(np.eye(6), 1.0, np.nan), 1), "0 pairs"),
        (lambda: space.spatial_autocorrelation(np.ones((6, 6)), 1), "alike"),
        (lambda: space.neighbour_correlation(np.ones((30, 2, 2)), np.ones((2, 2), bool)), "0 pairs"),
    ],
)
def test_what_means_nothing_is_refused_with_the_reason(compute, reason):
    with pytest.raises(st.NotComputable, match=reason):
        compute()
