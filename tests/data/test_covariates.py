"""Covariates known in advance, besides the calendar: their tables, their slots, and how a data set keeps them."""

from __future__ import annotations

import numpy as np
import pytest

from simmst.data import Covariates, TrafficDataset, load
from simmst.data.joining import append
from simmst.errors import DataError

pd = pytest.importorskip("pandas")

START = np.datetime64("2013-11-01T00:00:00", "s")
HOUR = np.timedelta64(3600, "s")


def hourly(values, names=("rain",), start=START):
    array = np.asarray(values, dtype=np.float32).reshape(len(values), -1)
    return Covariates(names, start + np.arange(len(values)) * HOUR, array)


def city(steps=24, **attributes):
    return TrafficDataset.from_arrays(np.ones(steps), START + np.arange(steps) * HOUR, timezone="UTC", **attributes)


def test_slots_longer_and_shorter_than_theirs():
    weather = hourly(range(48))
    assert weather.at(START + np.array([0, 6]) * HOUR, 180).ravel().tolist() == [1, 7]  # means of three hours
    assert weather.at(START + np.array([0, 10, 60]) * np.timedelta64(60, "s"), 10).ravel().tolist() == [0, 0, 1]
    assert np.isnan(weather.at(START + np.array([-1, 48]) * HOUR, 60)).all()
    assert np.isnan(weather.at(START + np.array([47]) * HOUR, 120)).all()  # half of it is unknown
    daily = Covariates(("warm",), START + np.arange(3) * 24 * HOUR, np.arange(3, dtype=np.float32)[:, None])
    assert daily.at(START + np.array([0, 23, 24]) * HOUR, 60).ravel().tolist() == [0, 0, 1]
    assert daily.at(START + np.array([23, 25]) * HOUR, 1440).ravel().tolist() == [1, 1]  # the clocks have changed


def test_what_is_missing_is_named():
    weather = hourly([[1, 1]] * 30 + [[np.nan, 1]] * 10, ("rain", "wind"))
    slots = START + np.arange(24, 32) * HOUR
    with pytest.raises(DataError, match=r"covariate 'rain' has no value from 2013-11-02T06:00:00Z to .*07:00:00Z \(2 "):
        weather.known_at(slots, 60)
    assert weather.known_at(slots[:6], 60).shape == (6, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ()}, "need names that differ, got none"),
        ({"names": ("a", "a")}, "need names that differ, got a, a"),
        ({"values": np.ones((3, 2))}, r"float32 \(3, 2\) to go with .* got float64"),
        ({"values": np.ones((2, 2), np.float32)}, r"got float32 \(2, 2\)"),
        ({"values": np.full((3, 2), np.inf, np.float32)}, "covariate 'a' is infinite at 2013-11-01T00:00:00Z"),
        ({"time": START + np.array([0, 1, 3]) * HOUR}, "time"),
        ({"time": np.arange(3)}, r"datetime64\[s\]"),
        ({"time": np.zeros((3, 1), "datetime64[s]")}, r"\(T,\)"),
    ],
)
def test_bad_ones_are_refused(change, message):
    good = {"names": ("a", "b"), "time": START + np.arange(3) * HOUR, "values": np.ones((3, 2), np.float32)}
    with pytest.raises(DataError, match=message):
        Covariates(**(good | change))


def test_tables_of_them(tmp_path):
    hours = pd.date_range("2013-11-01", periods=30, freq="h")
    frame = pd.DataFrame({"time": hours.strftime("%d/%m/%Y %H:%M"), "temperature": -1.5, "rain": 0})
    found = city().with_covariates(frame, dayfirst=True).covariates
    assert found.names == ("temperature", "rain")
    assert found.time[[0, -1]].tolist() == [START, START + 29 * HOUR]
    assert found.values[0].tolist() == [-1.5, 0]
    in_rome = TrafficDataset.from_arrays(np.ones(24), START + np.arange(24) * HOUR).with_covariates(
        frame, dayfirst=True, target_col="rain"
    )
    assert in_rome.covariates.time[0] == START - HOUR  # local times of the data set
    assert in_rome.covariates.names == ("rain",)
    frame.assign(time=hours).to_csv(tmp_path / "weather.csv", index=False)
    saved = city().save(tmp_path / "city.npz")
    assert load(saved, covariates=tmp_path / "weather.csv").covariates.names == ("temperature", "rain")
    table = pd.DataFrame({"ds": hours[:24], "a": range(24)})
    assert TrafficDataset.from_dataframe(table, covariates=frame.assign(time=hours)).covariates.names[1] == "rain"
    with pytest.raises(DataError, match=r"the covariates: .*temperature.*'warm'|the covariates: .*warm"):
        city().with_covariates(frame.assign(time=hours, temperature="warm"))
    with pytest.raises(DataError, match=r"none\.csv does not exist; give a table of covariates"):
        city().with_covariates(tmp_path / "none.csv")


def test_they_go_where_the_data_set_goes(tmp_path):
    whole = city().with_covariates(hourly(range(48)))
    again = TrafficDataset.from_npz(whole.save(tmp_path / "city.npz")).covariates
    assert again.names == ("rain",)
    np.testing.assert_array_equal(again.values, whole.covariates.values)
    np.testing.assert_array_equal(again.time, whole.covariates.time)
    part = whole.slice_steps(0, 12)
    assert part.resample(120).covariates is part.covariates is whole.covariates  # with the values to come
    with np.load(tmp_path / "city.npz") as arrays:
        damaged = {name: array for name, array in arrays.items() if name != "covariates"}
    np.savez(tmp_path / "damaged.npz", **damaged)
    with pytest.raises(DataError, match=r"damaged\.npz has no covariates; write it again"):
        load(tmp_path / "damaged.npz")


def test_new_ones_are_joined():
    known = city().with_covariates(hourly(range(30)))
    new = city(26).slice_steps(20, 26).with_covariates(hourly([9, np.nan, 9], start=START + 28 * HOUR))
    joined = append(known, new).covariates
    assert joined.values.ravel().tolist() == [*range(28), 9, 29, 9]
    assert append(known, city(26)).covariates is known.covariates
    earlier = hourly([5, 5], start=START - HOUR)
    assert known.covariates.joined(earlier).values.ravel()[:3].tolist() == [5, 5, 1]
    with pytest.raises(DataError, match=r"the new covariates are wind .* wanted rain"):
        append(known, city(26).with_covariates(hourly([1, 1], ("wind",))))
