from __future__ import annotations

import numpy as np
import pytest

from simmst.data import CALENDAR_FEATURES, calendar_features
from simmst.data.calendar import is_holiday, slot_of_day, utc_offset_seconds, weekday
from simmst.errors import DataError


def at(*times):
    return np.array(times, dtype="datetime64[s]")


def feature(times, name, country=None, zone="Europe/Rome"):
    return calendar_features(times, zone, country)[:, CALENDAR_FEATURES.index(name)]


def test_shape_and_type():
    marks = calendar_features(
        at("2013-11-01T00:00:00") + np.arange(300) * np.timedelta64(600, "s"), "Europe/Rome", None
    )
    assert marks.shape == (300, len(CALENDAR_FEATURES))
    assert marks.dtype == np.float32


def test_daylight_saving_changes_within_the_day():
    change = at("2013-10-27T00:00:00", "2013-10-27T00:59:59", "2013-10-27T01:00:00", "2013-10-27T23:00:00")
    assert utc_offset_seconds(change, "Europe/Rome").tolist() == [7200, 7200, 3600, 3600]
    # 06:00 local both in summer (04:00 UTC) and in winter (05:00 UTC)
    assert slot_of_day(at("2013-07-01T04:00:00", "2013-12-02T05:00:00"), "Europe/Rome", 60).tolist() == [6, 6]
    np.testing.assert_allclose(feature(at("2013-07-01T04:00:00", "2013-12-02T05:00:00"), "day_sin"), 1, atol=1e-6)


def test_weekend_is_local():
    assert weekday(at("2013-11-01T12:00:00"), "Europe/Rome").tolist() == [4]
    late = at("2013-11-01T22:59:59", "2013-11-01T23:00:00", "2013-11-03T22:59:59", "2013-11-03T23:00:00")
    assert feature(late, "weekend").tolist() == [0, 1, 1, 0]


def test_week_starts_on_monday():
    monday = at("2013-11-03T23:00:00")
    assert feature(monday, "week_cos")[0] == pytest.approx(1)
    assert feature(monday, "week_sin")[0] == pytest.approx(0, abs=1e-6)


def test_italian_holidays():
    pytest.importorskip("holidays")
    days = at(
        "2013-10-31T23:00:00", "2013-11-01T22:50:00", "2013-11-01T23:00:00", "2013-12-25T12:00:00", "2014-01-01T12:00"
    )
    assert feature(days, "holiday", country="IT").tolist() == [1, 1, 0, 1, 1]
    assert not is_holiday(days, "Europe/Rome", None).any()


def test_unknown_names():
    pytest.importorskip("holidays")
    with pytest.raises(DataError, match="unknown time zone 'Mars/Crater'"):
        calendar_features(at("2013-11-01"), "Mars/Crater", None)
    with pytest.raises(DataError, match="country 'XX'"):
        calendar_features(at("2013-11-01"), "Europe/Rome", "XX")
