"""Faults of counters: each has its documented effect, marks where it acts, and leaves the clean traffic unchanged."""

from __future__ import annotations

import numpy as np
import pytest

from simmst.errors import ConfigError
from simmst.simulation import CityConfig, CounterFaults, DomainPrior, simulate_both, simulate_city
from simmst.simulation.reporting.counter_faults import episodes

CITY = {"seed": 5, "height": 6, "width": 7, "days": 14, "missing_share": 0.0, "services": ("call", "internet")}
EVERY = {
    "dip_share": 0.5,
    "maintenance_per_week": 2.0,
    "outages_per_sector_week": 0.3,
    "outage_missing": 0.5,
    "stuck_per_cell_week": 1.0,
    "zero_share": 0.02,
    "spike_share": 0.01,
    "city_gaps_per_week": 1.0,
}


def both(**faults):
    return simulate_both(CityConfig(faults=faults, **CITY))


def series(dataset):
    return dataset.activity.reshape(CITY["days"] * 24, 2, -1)


def test_without_faults_what_is_reported_is_what_is():
    city = both()
    assert city.reported is city.clean
    assert city.wrong is None
    assert not CounterFaults().any


def test_the_clean_traffic_is_that_of_the_city_without_faults():
    city = both(**EVERY)
    np.testing.assert_array_equal(city.clean.activity, both().reported.activity)
    right = ~city.wrong
    np.testing.assert_array_equal(city.reported.activity[right], city.clean.activity[right])
    assert 0.02 < city.wrong.mean() < 0.6
    assert np.isnan(city.reported.activity).mean() > 0.001
    np.testing.assert_array_equal(simulate_city(CityConfig(faults=EVERY, **CITY)).activity, city.reported.activity)


def test_one_fault_changes_no_other():
    fewer = {name: value for name, value in EVERY.items() if name != "zero_share"}
    for name in ("dip_share", "outages_per_sector_week", "city_gaps_per_week"):
        alone = both(**{key: value for key, value in fewer.items() if key in (name, "outage_missing")})
        with_zeros = both(**{name: EVERY[name], "outage_missing": 0.5, "zero_share": 0.02})
        differs = alone.wrong != with_zeros.wrong
        assert (with_zeros.reported.activity[differs] == 0).all()


def test_counters_drop_at_their_hour_each_night_and_everywhere():
    city = both(dip_share=1.0, dip_hour=4.0, dip_level=0.01, dip_log_std=0.3)
    left = series(city.reported)[4::24, 1] / series(city.clean)[4::24, 1]
    assert 0.004 < np.median(left) < 0.025
    assert left.max() < 0.1
    others = np.arange(24 * 14) % 24 != 4
    np.testing.assert_array_equal(series(city.reported)[others], series(city.clean)[others])


def test_a_dip_of_a_quarter_of_an_hour_takes_a_quarter_of_an_hour():
    city = both(dip_share=1.0, dip_hour=4.0, dip_level=0.0, dip_duration_h=0.25)
    left = series(city.reported)[4::24, 1] / series(city.clean)[4::24, 1]
    assert 0.6 < np.median(left) < 0.9


def test_some_nights_go_without_a_dip():
    wrong = both(dip_share=0.5).wrong.reshape(14, 24, -1)[:, 4].any(axis=1)
    assert 2 < wrong.sum() < 12


@pytest.mark.parametrize("missing", [0.0, 1.0])
def test_outages_silence_the_cells_of_a_sector_in_all_services(missing):
    city = both(outages_per_sector_week=0.2, outage_duration_h=20.0, outage_missing=missing)
    silent = city.wrong
    assert 0.005 < silent.mean() < 0.2
    assert (silent[:, :1] == silent).all()
    shown = city.reported.activity[silent]
    assert np.isnan(shown).all() if missing else (shown == 0).all()
    lengths = np.diff(np.flatnonzero(np.diff(np.pad(silent[:, 0].reshape(336, -1).T, ((0, 0), (1, 1))).ravel())))[::2]
    assert lengths.mean() > 6


def test_maintenance_is_at_night_and_concerns_many_cells_at_once():
    wrong = both(maintenance_per_week=4.0, maintenance_duration_h=2.0, maintenance_reach=0.8).wrong[:, 0]
    concerned = wrong.reshape(336, -1).mean(axis=1)
    assert concerned.max() > 0.5
    hours = np.flatnonzero(concerned > 0) % 24
    assert np.mean(hours < 9) > 0.9


def test_stuck_counters_repeat_their_last_number():
    city = both(stuck_per_cell_week=2.0, stuck_duration_h=6.0)
    reported, stuck = series(city.reported), city.wrong.reshape(336, 2, -1)
    assert 0.02 < stuck.mean() < 0.2
    assert not stuck[0].any()
    slot, kind, cell = np.nonzero(stuck)
    np.testing.assert_array_equal(reported[slot, kind, cell], reported[slot - 1, kind, cell])
    assert (stuck[:, 0] != stuck[:, 1]).any(), "each counter counts one service"


def test_zeros_spikes_and_gaps_of_the_whole_city():
    zeros = both(zero_share=0.05)
    assert zeros.wrong.mean() == pytest.approx(0.05, abs=0.01)
    assert (zeros.reported.activity[zeros.wrong] == 0).all()
    spikes = both(spike_share=0.02, spike_log_std=1.5)
    assert spikes.wrong.mean() == pytest.approx(0.02, abs=0.005)
    assert (spikes.reported.activity >= spikes.clean.activity).all()
    gaps = both(city_gaps_per_week=3.0, city_gap_duration_h=5.0)
    lost = np.isnan(series(gaps.reported))
    assert 0 < lost.mean() < 0.4
    assert (lost == lost[:, :1, :1]).all()


def test_rounded_numbers_are_multiples_of_a_step_for_each_service():
    city = both(rounding=0.1)
    assert not city.wrong.any()
    for kind in (0, 1):
        step = 0.1 * series(city.clean)[:, kind].mean()
        multiples = series(city.reported)[:, kind] / step
        np.testing.assert_allclose(multiples, np.rint(multiples), atol=1e-2)


def test_episodes_have_their_rate_and_length():
    rng = np.random.default_rng(0)
    inside = episodes(rng, 1000, 400, per_unit=2.0, mean_steps=20.0)
    assert inside.mean() == pytest.approx(2.0 * 20 / 1000, rel=0.15)
    assert inside[0].mean() == pytest.approx(inside.mean(), rel=0.5), "some episodes begin before the series"


def test_default_cities_have_faults_and_none_is_lost_to_them():
    cities = [simulate_both(DomainPrior.default().sample(8, index, height=4, width=4, days=7)) for index in range(40)]
    at_fault = [0.0 if city.wrong is None else float(city.wrong.mean()) for city in cities]
    assert 10 < sum(share > 0 for share in at_fault) < 36
    assert max(at_fault) < 0.8
    assert all(np.nansum(city.reported.activity) > 0 for city in cities)


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"dip_share": 2.0}, r"CounterFaults.dip_share is 2\.0; it must lie between 0 and 1"),
        ({"dips": 1.0}, "CounterFaults has no field 'dips'"),
        ("none", "CityConfig.faults is 'none'; give a CounterFaults or its fields"),
    ],
)
def test_impossible_faults_are_named(faults, message):
    with pytest.raises(ConfigError, match=message):
        CityConfig(faults=faults)
