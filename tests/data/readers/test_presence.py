"""Users present, by the clock on the wall: changes of the clocks, gaps, and files that do not fit."""

from __future__ import annotations

import numpy as np
import pytest

from simmst.data import load
from simmst.data.calendar import local_seconds, utc_of_wall_clock
from simmst.errors import DataError

STEP = 1800


def clock(first, rows):
    return (np.datetime64(first, "s") + np.arange(rows) * np.timedelta64(STEP, "s")).astype(np.int64)


def write(path, users=None, **changes):
    shown = changes.pop("time_local_s", clock("2020-09-01T00:00", 8))
    users = np.arange(len(shown) * 2.0).reshape(-1, 2) if users is None else users
    np.savez(path, **({"users": users, "zone": np.array(["a", "b"]), "time_local_s": shown} | changes))
    return path


@pytest.mark.parametrize("timezone", ["Europe/Paris", "America/New_York", "Asia/Shanghai", "Australia/Lord_Howe"])
def test_a_year_of_the_wall_clock_leads_back_to_utc(timezone):
    time = np.datetime64("2020-01-01T00:00:00") + np.arange(366 * 48) * np.timedelta64(STEP, "s")
    np.testing.assert_array_equal(utc_of_wall_clock(local_seconds(time, timezone), timezone), time)


def test_an_hour_shown_twice_is_told_apart_by_order(tmp_path):
    time = np.datetime64("2020-10-24T22:00:00") + np.arange(12) * np.timedelta64(STEP, "s")
    data = load(write(tmp_path / "p.npz", time_local_s=local_seconds(time, "Europe/Paris")))
    np.testing.assert_array_equal(data.time, time)
    assert not np.isnan(data.activity).any()


def test_an_hour_shown_once_where_it_came_twice_leaves_a_gap(tmp_path):
    data = load(write(tmp_path / "p.npz", time_local_s=clock("2020-10-25T01:00", 6)))
    assert data.num_steps == 8
    assert np.isnan(data.series()[:, 0, 0]).nonzero()[0].tolist() == [4, 5]


def test_an_hour_left_out_may_have_empty_rows_alone(tmp_path):
    shown = clock("2020-03-29T01:00", 6)
    users = np.ones((6, 2))
    users[2:4] = np.nan
    data = load(write(tmp_path / "p.npz", users, time_local_s=shown))
    assert (data.num_steps, str(data.time[2])) == (4, "2020-03-29T01:00:00")
    assert not np.isnan(data.activity).any()
    users[2, 0] = 5
    with pytest.raises(DataError, match=r"p\.npz: time_local_s\[2\] = 2020-03-29T02:00:00 does not exist in Europe"):
        load(write(tmp_path / "p.npz", users, time_local_s=shown))


def test_slots_without_a_row_are_missing(tmp_path):
    data = load(write(tmp_path / "p.npz", time_local_s=np.delete(clock("2020-09-01T00:00", 8), 3)))
    assert data.num_steps == 8
    assert np.isnan(data.series()[:, 0, 1]).nonzero()[0].tolist() == [3]


def users(value):
    array = np.ones((8, 2))
    array[4, 1] = value
    return array


def shown(change):
    array = clock("2020-09-01T00:00", 8)
    array[5] += change
    return array


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"users": users(-2)}, r"p\.npz: users\[4, 1\] is -2"),
        ({"users": users(np.inf)}, r"p\.npz: users\[4, 1\] is inf"),
        ({"users": np.ones(8)}, r"p\.npz: users is float64 \(8,\); wanted numbers \(T, Z\)"),
        ({"users": np.full((8, 2), "x")}, r"p\.npz: users is <U1"),
        ({"zone": np.array(["a"])}, r"p\.npz: zone \['a'\] must be 2 distinct names"),
        ({"zone": np.array(["a", "a"])}, r"p\.npz: zone \['a', 'a'\] must be 2 distinct names"),
        ({"zone": np.array([1, 2])}, r"p\.npz: zone \[1, 2\] must be 2 distinct names"),
        ({"time_local_s": shown(0)[:7], "users": users(1)}, r"p\.npz: time_local_s is int64 \(7,\); .* the 8 rows"),
        ({"time_local_s": shown(0) + 0.5}, r"p\.npz: time_local_s is float64"),
        (
            {"time_local_s": shown(-STEP)},
            r"p\.npz: time_local_s: time\[5\] = 2020-09-01T02:00:00 comes after .*T02:00:00",
        ),
        ({"time_local_s": shown(60)}, r"p\.npz: time_local_s\[5\] = 2020-09-01T02:31:00 is off the slots"),
        ({"time_local_s": shown(0) + np.arange(8) // 7 * 10**7 * 9}, r"p\.npz: time_local_s\[7\] = .* slots after"),
    ],
)
def test_what_does_not_fit_is_named_with_the_file(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        load(write(tmp_path / "p.npz", **changes))
