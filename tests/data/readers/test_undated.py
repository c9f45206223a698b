"""The weekday of a series without dates is found by its mornings, and by nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from simmst.data import load
from simmst.data.calendar import weekday
from simmst.data.readers.undated import find_saturday


def series(saturday, days=7, per_day=24, cells=3, late=0.6, seed=0):
    """Traffic with a peak in the morning, which is lower on two days of each week."""
    generator = np.random.default_rng(seed)
    hour = np.arange(days * per_day) % per_day * 24 / per_day
    weekend = (np.arange(days * per_day) // per_day - saturday) % 7 < 2
    morning = 1 + 2 * np.exp(-((hour - 8) ** 2) / 4) * np.where(weekend, late, 1.0)
    level = np.array([0.01, 1.0, 1000.0])[:cells]
    return morning[:, None] * level * np.exp(generator.normal(0, 0.05, (days * per_day, cells)))


@pytest.mark.parametrize("saturday", range(7))
@pytest.mark.parametrize(("days", "per_day"), [(7, 24), (17, 96)])
def test_every_saturday_is_found(saturday, days, per_day):
    assert find_saturday(series(saturday, days, per_day), per_day) == saturday


@pytest.mark.parametrize(
    "without",
    [
        series(2, days=6),
        series(2, late=1.0),
        np.zeros((168, 2)),
        np.full((168, 2), np.nan),
        np.where(np.arange(168)[:, None] == 50, np.nan, series(2)),
    ],
    ids=["six days", "no weekend", "no traffic", "nothing known", "a slot that all cells miss"],
)
def test_where_no_days_stand_apart_there_is_none(without):
    assert find_saturday(without, 24) is None


@pytest.mark.parametrize("per_day", [1, 4])
def test_slots_that_show_no_morning_have_none(per_day):
    assert find_saturday(series(2, days=14).reshape(14 * per_day, 24 // per_day, 3).sum(axis=1), per_day) is None


def test_missing_cells_do_not_move_it():
    values = series(4)
    values[30:60, 2] = np.nan
    assert find_saturday(np.hstack([values, np.full((168, 1), np.nan)]), 24) == 4


@pytest.mark.parametrize("name", ["milan_block5x5_internet_10min", "milan_three_services_3cells_hourly"])
def test_dated_extracts_agree_with_the_calendar(real_file, name):
    data = load(real_file(f"{name}.npz"))
    days = weekday(data.time, data.timezone)[:: data.steps_per_day]
    for service in range(data.num_services):
        activity = data.activity[:, service].reshape(data.num_steps, -1)
        for first in range(len(days) - 6):
            week = slice(first * data.steps_per_day, (first + 7) * data.steps_per_day)
            saturday = find_saturday(activity[week], data.steps_per_day)
            assert saturday is not None
            assert days[first + saturday] == 5


@pytest.mark.parametrize(
    ("name", "start"), [("shandong_12_patches_hourly", 4), ("nanjing_8_patches_15min", 2)], ids=["Friday", "Wednesday"]
)
def test_undated_weeks_start_where_their_mornings_say(real_file, name, start):
    data = load(real_file(f"{name}.npz"))
    assert weekday(data.time, data.timezone)[0] == start


def test_a_week_without_a_weekend_starts_on_monday(tmp_path):
    np.savez(tmp_path / "p.npz", traffic=np.ones((1, 168, 2, 2)), mask=np.ones((1, 2, 2), bool), step_minutes=60)
    data = load(tmp_path / "p.npz")
    assert weekday(data.time, data.timezone)[0] == 0
