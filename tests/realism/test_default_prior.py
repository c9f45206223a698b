"""Cities drawn from the default prior against the real extracts and against known facts about larger real data.

The targets are from Milan, autumn 2013: for space, medians and 5-95 % ranges over 20 x 20 crops of the whole city; for
services and time, the three cells and the city's totals.
"""

from __future__ import annotations

import numpy as np
import pytest

from simmst.data import load
from simmst.realism import compare
from simmst.realism.measurements import measure
from simmst.simulation import CityConfig, DomainPrior, simulate_cities, simulate_city

CITIES = 24


@pytest.fixture(scope="module")
def table():
    rows = [measure(city).values for city in simulate_cities(CITIES, seed=5, days=9, missing_share=0.0)]
    return {name: np.array([row.get(name, np.nan) for row in rows]) for name in rows[0]}


@pytest.mark.parametrize(
    ("subject", "key", "low", "high"),
    [
        ("internet", "cells_1", 0.74, 0.91),
        ("internet", "cells_3", 0.24, 0.65),
        ("internet", "cells_5", 0.0, 0.47),
        ("internet", "log_std", 0.7, 1.3),
        ("internet", "log_skew", -0.5, 0.1),
        ("internet", "hours_1", 0.83, 0.95),
        ("internet", "hours_24", 0.6, 0.92),
        ("internet", "hours_168", 0.6, 0.95),
        ("internet", "night", 0.2, 0.45),
        ("call", "night", 0.002, 0.03),
        ("sms", "night", 0.02, 0.09),
        ("call", "weekend", 0.45, 0.7),
        ("internet", "weekend", 0.7, 1.0),
        ("call-sms", "correlation_50", 0.75, 0.98),
        ("call-internet", "correlation_50", 0.47, 0.95),
    ],
)
def test_the_median_city_is_within_the_real_range(table, subject, key, low, high):
    assert low <= np.median(table[subject, key]) <= high


def test_calls_and_sms_are_more_or_less_alike(table):
    low, high = np.quantile(table["call-sms", "correlation_50"], [0.1, 0.9])
    assert low < 0.85
    assert high > 0.92


def test_whole_cities_vary_over_long_distances():
    fields = {"height": 100, "width": 100, "days": 1, "services": ["internet"], "missing_share": 0.0}
    rows = [measure(city).values for city in simulate_cities(8, seed=6, **fields)]
    for lag, real in ((1, 0.93), (2, 0.85), (3, 0.78), (5, 0.68), (8, 0.58), (12, 0.47), (20, 0.32)):
        values = [row["internet", f"cells_{lag}"] for row in rows]
        assert min(values) <= real <= max(values)


def test_the_calls_of_a_city_all_but_cease_at_night():
    """On working days the quietest ten minutes have less than one per cent of the calls of the busiest."""
    prior = DomainPrior.default().narrow({"diurnal_amplitude": (0.95, 1.05)})
    city = simulate_city(prior.sample(2, 0, height=40, width=40, start="2013-11-05", days=2, step_minutes=10))
    total = np.nansum(city.activity[:, 0], axis=(1, 2))
    assert 0.0005 < total.min() / total.max() < 0.02


def test_all_saints_is_lived_like_a_sunday():
    config = CityConfig(start="2013-10-28", days=7, height=12, width=12, missing_share=0.0, events_per_week=0.0)
    days = simulate_city(config).activity[:, 2].sum(axis=(1, 2)).reshape(7, 24)
    thursday, friday, sunday = days[3], days[4], days[6]  # 1 November 2013 was a Friday
    assert np.abs(np.log(friday / sunday))[6:].mean() < 0.5 * np.abs(np.log(friday / thursday))[6:].mean()


@pytest.mark.parametrize(
    "name",
    [
        "milan_three_services_3cells_hourly",
        *(
            pytest.param(name, marks=pytest.mark.slow(of=("simmst/data", "simmst/realism", "simmst/simulation")))
            for name in (
                "milan_block5x5_internet_10min",
                "milan_city_total_three_services_10min",
                "milan_city100x100_internet_10min_frames",
                "milan_88_quarters_internet_10min_zscored",
                "trento_223_communes_internet_10min_zscored",
            )
        ),
    ],
)
def test_a_real_extract_is_as_usual_as_a_simulated_one(name, real_file):
    (comparison,) = compare([load(real_file(f"{name}.npz"))], cities=40, seed=2).files
    assert len(comparison.rows) >= 8
    assert len(comparison.outside) <= comparison.usual[1]
    assert all(row.note for row in comparison.outside)
