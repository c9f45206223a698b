"""Statistics of cities drawn from the default prior against bands around those of the real extracts.

The real values (Milan, autumn 2013): autocorrelation of hourly Internet traffic 0.85, 0.71, 0.68 at 1, 24 and 168 h;
spatial autocorrelation of the log of the mean per cell 0.85, 0.47, 0.23 at 1, 3 and 5 cells and its standard deviation
0.93 (20 x 20 crops, medians); correlation of calls and SMS 0.78 to 0.98, of calls and Internet 0.47 to 0.95.
"""

from __future__ import annotations

import numpy as np
import pytest

from simmst.simulation import simulate_cities

CITIES = 20


def temporal(series, lag):
    series = series - np.nanmean(series, axis=0)
    return np.nanmedian(np.nanmean(series[:-lag] * series[lag:], axis=0) / np.nanmean(series**2, axis=0))


def spatial(field, lag):
    field = field - field.mean()
    vertical, horizontal = (field[lag:] * field[:-lag]).mean(), (field[:, lag:] * field[:, :-lag]).mean()
    return (vertical + horizontal) / 2 / (field**2).mean()


def correlations(first, second):
    kept = [~np.isnan(first[:, cell]) for cell in range(first.shape[1])]
    return np.array([np.corrcoef(a[k], b[k])[0, 1] for a, b, k in zip(first.T, second.T, kept, strict=True)])


@pytest.fixture(scope="module")
def table():
    rows = []
    for city in simulate_cities(CITIES, seed=5, days=14):
        series = city.activity.reshape(city.num_steps, 3, -1).astype(np.float64)
        log_mean = np.log(np.nanmean(city.activity[:, 2], axis=0))
        standard = (log_mean - log_mean.mean()) / log_mean.std()
        day = np.nansum(series, axis=2).reshape(-1, 24, 3).mean(axis=0)
        rows.append(
            {
                **{f"hours_{lag}": temporal(series[:, 2], lag) for lag in (1, 24, 168)},
                **{f"cells_{lag}": spatial(log_mean, lag) for lag in (1, 3, 5)},
                "log_std": log_mean.std(),
                "log_skew": (standard**3).mean(),
                "call_sms": np.nanmedian(correlations(series[:, 0], series[:, 1])),
                "call_internet": np.nanmedian(correlations(series[:, 0], series[:, 2])),
                "call_trough": day[:, 0].min() / day[:, 0].max(),
                "internet_trough": day[:, 2].min() / day[:, 2].max(),
            }
        )
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("hours_1", 0.80, 0.95),
        ("hours_24", 0.55, 0.85),
        ("hours_168", 0.60, 0.90),
        ("cells_1", 0.75, 0.92),
        ("cells_3", 0.35, 0.65),
        ("cells_5", 0.12, 0.42),
        ("log_std", 0.70, 1.35),
        ("log_skew", -0.50, 0.10),
        ("call_sms", 0.78, 0.97),
        ("call_internet", 0.60, 0.95),
        ("call_trough", 0.001, 0.012),
        ("internet_trough", 0.12, 0.40),
    ],
)
def test_median_over_cities_lies_in_its_band(table, name, low, high):
    assert low <= np.median(table[name]) <= high


@pytest.mark.parametrize(
    ("name", "real"),
    [
        ("hours_1", 0.85),
        ("hours_24", 0.71),
        ("hours_168", 0.68),
        ("cells_1", 0.85),
        ("cells_3", 0.47),
        ("cells_5", 0.23),
        ("log_std", 0.93),
    ],
)
def test_real_statistics_lie_within_the_simulated_ones(table, name, real):
    assert table[name].min() <= real <= table[name].max()


def test_correlation_of_calls_and_sms_spreads(table):
    low, high = np.quantile(table["call_sms"], [0.1, 0.9])
    assert low < 0.84
    assert high > 0.94
