"""Habits of other places: their effects on the day, the week and the months."""

from __future__ import annotations

import datetime

import numpy as np
import pytest

from simmst.errors import ConfigError
from simmst.simulation import CityConfig, Habits, simulate_city
from simmst.simulation.clock import SUNDAY, Clock
from simmst.simulation.habits import DAY_SHAPES

CALM = {
    "seed": 3,
    "height": 6,
    "width": 6,
    "start": "2013-11-04",
    "services": ("internet",),
    "country": None,
    "missing_share": 0.0,
    "events_per_week": 0.0,
    "burst_rate_per_sector_hour": 0.0,
    "noise_log_std": 0.02,
    "users_per_cell": 5000.0,
}


def total(days=7, **habits):
    return simulate_city(CityConfig(days=days, habits=habits, **CALM)).activity.sum(axis=(1, 2, 3))


def mean_day(days=4, **habits):
    return total(days, **habits).reshape(-1, 24).mean(axis=0)


USUAL = mean_day()


@pytest.mark.parametrize(
    ("shape", "busier", "quieter"),
    [
        ("late-evening", 22, 8),
        ("business", 10, 21),
        ("two-peaked", 18, 13),
        ("school", 12, 14),
        ("early", 6, 21),
        ("siesta", 19, 15),
        ("nightlife", 1, 10),
    ],
)
def test_each_shape_moves_traffic_to_its_hours(shape, busier, quieter):
    day = mean_day(day_shape=shape)
    assert day[busier] / day[quieter] > 1.4 * USUAL[busier] / USUAL[quieter]


def test_a_flat_day_is_flat_and_random_days_differ():
    spread = np.log(USUAL).std()
    assert np.log(mean_day(day_shape="flat")).std() < 0.7 * spread
    first, second = (
        np.log(simulate_city(CityConfig(days=2, index=index, habits={"day_shape": "random"}, **CALM)).activity)
        .sum(axis=(1, 2, 3))
        .reshape(2, 24)
        .mean(axis=0)
        for index in (0, 1)
    )
    assert np.corrcoef(first, second)[0, 1] < 0.9
    assert set(DAY_SHAPES) >= {"usual", "flat", "random"}


def test_noon_peaks_and_nights_are_as_deep_as_asked():
    noon, night = mean_day(noon_log_peak=0.8), mean_day(night_log_depth=1.5)
    assert np.log(noon[12] / noon[15]) - np.log(USUAL[12] / USUAL[15]) == pytest.approx(0.7, abs=0.15)
    assert np.log(night[4] / night[15]) - np.log(USUAL[4] / USUAL[15]) == pytest.approx(-1.45, abs=0.15)


def test_a_calm_city_is_smooth():
    def roughness(unrest):
        noisy = {**CALM, "noise_log_std": 0.5, "load_flicker_log_std": 0.3, "flicker_log_std": 0.3}
        city = simulate_city(CityConfig(days=4, habits={"unrest": unrest}, **noisy))
        return np.diff(np.log(city.activity + 1), axis=0).std()

    assert roughness(0.05) < 0.7 * roughness(1.0)


def test_a_wrong_clock_moves_days_and_weeks_but_not_the_file():
    right, late = total(14), total(14, clock_error_h=6.0)
    assert np.corrcoef(right[:-6], late[6:])[0, 1] > 0.98 > np.corrcoef(right, late)[0, 1]
    config = CityConfig(days=2, habits=Habits(clock_error_h=6.0), **CALM)
    np.testing.assert_array_equal(Clock.of(config).start_utc, Clock.of(CityConfig(days=2, **CALM)).start_utc)


def test_weekends_fall_where_they_are_said_to():
    config = CityConfig(days=7, habits=Habits(weekend_start=4), **CALM)
    noon = Clock.of(config).day_type.reshape(7, -1).T[len(Clock.of(config).day_type) // 14]
    assert noon.tolist() == [0, 0, 0, 0, 1, 2, 0]  # Friday and Saturday of a week from Monday on


def test_free_days_are_lived_as_sundays_and_are_the_same_in_a_longer_file():
    def free(days):
        clock = Clock.of(CityConfig(days=days, habits=Habits(free_day_share=0.4), **CALM))
        return clock.day_type.reshape(days, -1)[:, 72] == SUNDAY

    assert 2 < free(14).sum() < 12
    np.testing.assert_array_equal(free(14)[:5], free(5))
    assert not Clock.of(CityConfig(days=5, **CALM)).day_type.reshape(5, -1)[:, 72].any()


def test_growth_drift_and_sudden_changes():
    weeks = total(28, trend_per_week=0.3).reshape(4, -1).sum(axis=1) / total(28).reshape(4, -1).sum(axis=1)
    np.testing.assert_allclose(np.diff(np.log(weeks)), 0.3, atol=0.03)
    drifting = np.log(total(28, drift_log_std=0.5) / total(28))
    assert drifting.std() > 0.1
    assert np.abs(np.diff(drifting)).max() < 0.1
    config = CityConfig(days=14, habits={"level_changes_per_week": 0.5, "level_change_log_std": 1.5}, **CALM)
    change = np.log(simulate_city(config).activity / simulate_city(CityConfig(days=14, **CALM)).activity)
    steps = np.abs(np.diff(change.reshape(336, -1), axis=0)).max(axis=0)
    assert (steps > 0.5).any()


def test_some_weekdays_are_busier_than_others():
    ratio = (total(14, weekday_log_std=0.5) / total(14)).reshape(2, 7, 24)[:, :, 12]
    np.testing.assert_allclose(ratio[0], ratio[1], rtol=0.05)
    assert np.log(ratio[0]).std() > 0.2


def test_the_defaults_change_nothing_and_habits_survive_plain_values():
    config = CityConfig(habits=Habits(day_shape="early", trend_per_week=0.1))
    assert CityConfig.from_dict(config.to_dict()) == config
    assert CityConfig(habits={}) == CityConfig()


@pytest.mark.parametrize("step_minutes", [5, 15, 30, 1440])
def test_other_slots_sum_up_to_the_same_days(step_minutes):
    def days(step):
        city = simulate_city(CityConfig(days=3, step_minutes=step, **CALM))
        assert city.step_minutes == step
        return city.activity.sum(axis=(1, 2, 3)).reshape(3, -1).sum(axis=1)

    np.testing.assert_allclose(days(step_minutes), days(60), rtol=0.05)
    clock = Clock.of(CityConfig(days=1, step_minutes=step_minutes, **CALM))
    assert str(clock.start_utc[0]) == str(datetime.datetime(2013, 11, 3, 23)).replace(" ", "T")


@pytest.mark.parametrize(
    ("habits", "message"),
    [
        ({"day_shape": "siestas"}, "Habits.day_shape is 'siestas'; choose one of usual"),
        ({"weekend_start": 7}, "Habits.weekend_start is 7"),
        ({"clock_error_h": 13.0}, r"Habits.clock_error_h is 13\.0; it must lie between -12 and 12"),
        ({"trend": 1.0}, "Habits has no field 'trend'"),
        (3, "CityConfig.habits is 3; give a Habits or its fields"),
    ],
)
def test_impossible_habits_are_named(habits, message):
    with pytest.raises(ConfigError, match=message):
        CityConfig(habits=habits)
