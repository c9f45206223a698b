from __future__ import annotations

import datetime

import numpy as np
import pytest

from simmst.errors import ConfigError
from simmst.simulation import CityConfig
from simmst.simulation.clock import SATURDAY_REST, Clock, public_holidays


def test_slots_start_at_local_midnight_in_utc():
    clock = Clock.of(CityConfig(start="2013-07-01", days=2, step_minutes=10))
    assert clock.start_utc.dtype == np.dtype("datetime64[s]")
    assert str(clock.start_utc[0]) == "2013-06-30T22:00:00"
    assert set(np.diff(clock.start_utc).astype(int)) == {600}
    assert clock.hour[0] == pytest.approx(5 / 60)
    assert clock.parts == 1


def test_local_hours_follow_daylight_saving():
    clock = Clock.of(CityConfig(start="2013-10-26", days=2))  # clocks go back early on the 27th
    hours = clock.hour.reshape(48, 6).mean(axis=1) - 0.5
    np.testing.assert_allclose(hours[24:30], [0, 1, 2, 2, 3, 4], atol=1e-9)


def test_days_change_at_four_and_holidays_are_sundays():
    clock = Clock.of(CityConfig(start="2013-10-31", days=4))  # Thursday, All Saints', Saturday, Sunday
    day_type = clock.day_type.reshape(4, 24, 6)[:, :, 0]
    assert (day_type[0] == 0).all()
    assert (day_type[1, :4] == 0).all()
    assert (day_type[1, 4:] == 2).all()
    assert (day_type[2, :4] == 2).all()
    assert (day_type[2, 4:] == 1).all()
    assert (day_type[3, 4:] == 2).all()
    plain = Clock.of(CityConfig(start="2013-10-31", days=4, country=None))
    assert (plain.day_type.reshape(4, 24, 6)[1] == 0).all()


def test_each_day_is_as_restful_as_configured():
    days = {"start": "2013-12-20", "days": 20, "holiday_rest": 0.8, "season_rest": 0.5, "free_days": ("2013-12-20",)}
    rest = Clock.of(CityConfig(**days)).rest.reshape(20, 24, 6)[:, 12, 0]
    by_date = {20 + day if day < 12 else day - 11: rest[day] for day in range(20)}
    assert by_date[20] == by_date[25] == by_date[26] == by_date[1] == by_date[6] == 0.8  # chosen and public holidays
    assert by_date[22] == by_date[29] == by_date[5] == 1.0  # Sundays
    assert by_date[21] == by_date[28] == by_date[4] == SATURDAY_REST
    assert by_date[24] == by_date[27] == by_date[2] == 0.5 * SATURDAY_REST  # between Christmas and Epiphany
    assert by_date[23] == by_date[7] == by_date[8] == 0.0


def test_italian_holidays_agree_with_the_holidays_package():
    holidays = pytest.importorskip("holidays")
    start, days = datetime.date(2012, 1, 1), 14 * 365
    known = holidays.country_holidays("IT", years=range(2012, 2026))
    span = [start + datetime.timedelta(days=day) for day in range(days)]
    # The package also lists the Sunday of the armed forces, which counts as a Sunday here anyway.
    expected = {day for day in span if day in known and day.weekday() != 6}
    assert {day for day in public_holidays(start, days, "IT") if day.weekday() != 6} == expected


def test_other_countries_come_from_the_package_and_unknown_ones_are_named():
    pytest.importorskip("holidays")
    assert public_holidays(datetime.date(2013, 10, 1), 5, "DE") == [datetime.date(2013, 10, 3)]
    with pytest.raises(ConfigError, match="'XX'"):
        public_holidays(datetime.date(2013, 10, 1), 5, "XX")
