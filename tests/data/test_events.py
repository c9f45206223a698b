"""Special days that are known in advance: events, and holidays in parts of a country."""

from __future__ import annotations

import datetime

import numpy as np
import pytest

from simmst.data import Scaler, TrafficDataset, Windows, WindowSpec
from simmst.data.calendar import checked_days, is_holiday
from simmst.errors import DataError

pytest.importorskip("holidays")

DAYS = np.datetime64("2013-12-05T23:00:00") + np.arange(3) * np.timedelta64(86_400, "s")  # midnights in Rome


def test_a_day_of_an_event_is_as_a_holiday():
    assert is_holiday(DAYS, "Europe/Rome", "IT").tolist() == [False, False, True]  # Immaculate Conception
    assert is_holiday(DAYS, "Europe/Rome", "IT", ("2013-12-07",)).tolist() == [False, True, True]
    assert is_holiday(DAYS, "Europe/Rome", None, ("2013-12-06",)).tolist() == [True, False, False]


def test_holidays_of_a_part_of_a_country():
    corpus_christi = np.array(["2013-05-30T10:00"], dtype="datetime64[s]")
    found = [is_holiday(corpus_christi, "Europe/Berlin", code)[0] for code in ("DE", "DE-BY", "DE-HH")]
    assert found == [False, True, False]
    with pytest.raises(DataError, match="no public holidays are known for country 'DE-XX'"):
        is_holiday(corpus_christi, "Europe/Berlin", "DE-XX")


def test_days_are_checked():
    assert checked_days("2013-12-07") == ("2013-12-07",)
    assert checked_days([datetime.datetime(2013, 12, 7, 9), np.datetime64("2013-12-07")]) == ("2013-12-07",)
    with pytest.raises(DataError, match="event '7 December' is not a day; write it as 2013-12-07"):
        checked_days(["7 December"])


def test_windows_mark_events_past_and_coming(tmp_path):
    hours = np.datetime64("2013-12-01T23:00:00") + np.arange(48) * np.timedelta64(1, "h")
    city = TrafficDataset.from_arrays(
        np.ones(48), hours, country=None, events=["2013-12-04", datetime.date(2013, 12, 3)]
    )
    assert city.events == ("2013-12-03", "2013-12-04")
    assert TrafficDataset.from_npz(city.save(tmp_path / "city.npz")).events == city.events
    spec = WindowSpec.recent(24, 48, steps_per_day=24, neighbourhood=1)
    windows = Windows(city, spec, Scaler.fit(city, range(48)), steps=range(48, 72))
    marks = windows.batch([0]).marks[0, :, 7]
    assert marks.tolist() == [0.0] * 24 + [1.0] * 48  # the 2nd, then both event days, the last in the forecast
