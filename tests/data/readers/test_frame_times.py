"""Times in tables: text, numbers, time zones, and local calendar time over changes of the clocks."""

from __future__ import annotations

import io

import numpy as np
import pytest

from simmst.data import TrafficDataset
from simmst.errors import DataError

pd = pytest.importorskip("pandas")
pytest.importorskip("holidays")

NOVEMBER = pd.date_range("2013-11-01", periods=24 * 12, freq="h")
FIRST = np.datetime64("2013-10-31T23:00:00")  # local midnight in Rome


def read(times, **options):
    return TrafficDataset.from_dataframe(
        pd.DataFrame({"ds": times, "a": np.arange(len(times), dtype=float)}), **options
    )


@pytest.mark.parametrize("form", ["%d/%m/%Y %H:%M", "%m/%d/%Y %H:%M", "%d-%m-%Y %H:%M:%S"])
def test_dates_that_may_be_read_two_ways_are_asked_for(form):
    with pytest.raises(DataError, match=r"may have the day or the month first.*give dayfirst=True"):
        read(NOVEMBER.strftime(form))
    dayfirst = form.startswith("%d")
    for options in ({"dayfirst": dayfirst}, {"time_format": form}):
        data = read(NOVEMBER.strftime(form), **options)
        assert data.time[0] == FIRST
        assert (data.num_steps, int(np.isnan(data.activity).sum())) == (288, 0)


@pytest.mark.parametrize(
    "form",
    ["%Y-%m-%d %H:%M:%S", "%Y/%m/%d %H:%M", "%Y-%m-%dT%H:%M", "%d.%m.%Y %H:%M", "%d %b %Y %H:%M", "%b %d, %Y %I:%M %p"],
)
def test_dates_that_can_be_read_one_way(form):
    data = read(NOVEMBER.strftime(form))
    assert (data.time[0], data.num_steps) == (FIRST, 288)


def test_one_date_shows_the_order_of_all():
    longer = pd.date_range("2013-11-01", periods=24 * 13, freq="h")
    for form in ("%d/%m/%Y %H:%M", "%m/%d/%Y %H:%M"):
        data = read(longer.strftime(form))
        assert (data.time[0], data.num_steps) == (FIRST, 312)
    mixed = [*longer[:200].strftime("%m/%d/%Y %H:%M"), *longer[200:].strftime("%d/%m/%Y %H:%M")]
    read(mixed[:200], dayfirst=False)
    with pytest.raises(DataError, match="'13/11/2013 00:00' can only be day first"):
        read(longer.strftime("%d/%m/%Y %H:%M"), dayfirst=False)
    with pytest.raises(DataError, match="has the day first and '11/13/2013 00:00' the month"):
        read(["13/11/2013 00:00", "11/13/2013 00:00"])


def test_text_that_is_no_time():
    with pytest.raises(DataError, match="row 1: ds '2013-11-31' is not a time"):
        read(["2013-11-30", "2013-11-31", "2013-12-01"])
    with pytest.raises(DataError, match="row 0: ds '1/11/2013' is not a time; it does not have the form '%Y'"):
        read(["1/11/2013", "2/11/2013"], time_format="%Y")
    assert read(["2013-11-01 23:00", "2013-11-01 24:00"]).time[1] == np.datetime64("2013-11-01T23:00:00")


@pytest.mark.parametrize("scale", [1, 1_000, 1_000_000, 1_000_000_000])
@pytest.mark.parametrize("kind", [int, float, str])
def test_epoch_numbers(scale, kind):
    seconds = FIRST.astype(int) + np.arange(48) * 600
    data = read(pd.Series([kind(one * scale) for one in seconds.tolist()]))
    assert (data.time[0], data.step_minutes, data.num_steps) == (FIRST, 10, 48)
    assert data.timezone == "Europe/Rome"


def test_numbers_that_are_dates_or_nothing():
    assert read(NOVEMBER.strftime("%Y%m%d%H").astype(int)).time[0] == FIRST
    assert read(NOVEMBER.strftime("%Y%m%d%H%M").astype(int)).num_steps == 288
    assert read(NOVEMBER[::24].strftime("%Y%m%d").astype(int)).step_minutes == 1440
    with pytest.raises(DataError, match=r"row 0: ds holds numbers such as 41579\.0, which are not epoch"):
        read(41579 + np.arange(24) / 24)


@pytest.mark.parametrize(
    ("zone", "timezone", "country"),
    [("Asia/Tokyo", "Asia/Tokyo", "JP"), ("America/New_York", "America/New_York", "US"), ("UTC", "Europe/Rome", "IT")],
)
def test_the_time_zone_of_a_frame_is_kept(zone, timezone, country):
    times = pd.date_range("2013-11-01", periods=96, freq="h", tz=zone)
    data = read(times)
    assert (data.timezone, data.country) == (timezone, country)
    assert data.time[0] == times[0].tz_convert("UTC").tz_localize(None).to_datetime64()
    out = data.to_dataframe()
    assert str(out.ds.dt.tz) == zone
    assert (out.ds == times).all()
    given = read(times, timezone="Europe/Paris")
    assert (given.timezone, given.country, given.time[0]) == ("Europe/Paris", "FR", data.time[0])


def test_offsets_without_a_zone():
    data = read(pd.date_range("2013-11-01", periods=24, freq="h", tz="Asia/Tokyo").astype(str))
    assert (data.timezone, data.country) == ("Etc/GMT-9", None)
    assert data.time[0] == np.datetime64("2013-10-31T15:00:00")
    for zone in ("America/New_York", "Asia/Kolkata"):
        text = pd.date_range("2013-11-01", periods=96, freq="h", tz=zone).astype(str)
        with pytest.raises(DataError, match="do not determine a time zone; give timezone"):
            read(text)
        assert read(text, timezone=zone).timezone == zone
    with pytest.raises(DataError, match=r"mixes times with and without offset to UTC: row 0 has .*, row 1 has"):
        read(["2013-11-01 00:00+01:00", "2013-11-01 01:00"])


def test_our_own_csv_over_october_is_read_back():
    hours = np.datetime64("2013-10-26T12:00:00") + np.arange(96) * np.timedelta64(1, "h")
    data = TrafficDataset.from_arrays(np.arange(192.0).reshape(96, 2), hours, services=["call", "sms"])
    again = TrafficDataset.from_dataframe(pd.read_csv(io.StringIO(data.to_dataframe().to_csv(index=False))))
    np.testing.assert_array_equal(again.activity, data.activity)
    np.testing.assert_array_equal(again.time, data.time)
    assert (again.timezone, again.country) == ("Europe/Rome", "IT")


@pytest.mark.parametrize("start", ["2013-03-30", "2013-10-26"])
@pytest.mark.parametrize("slot", ["10min", "15min", "30min", "h", "2h", "3h", "4h", "6h", "8h", "12h"])
def test_local_times_over_a_change_of_clocks(start, slot):
    """The times that a clock on the wall showed, slot after slot, come back unchanged and without a shift."""
    step = pd.Timedelta("1h" if slot == "h" else slot)
    moments = pd.date_range(start, periods=pd.Timedelta(days=4) // step, freq=step, tz="Europe/Rome")
    data = read(moments.tz_localize(None))
    np.testing.assert_array_equal(data.time, moments.tz_convert("UTC").tz_localize(None).to_numpy())
    assert not np.isnan(data.activity).any()
    assert (data.to_dataframe().ds.to_numpy() == moments.tz_localize(None).to_numpy()).all()


@pytest.mark.parametrize("slot", ["D", "12h", "6h", "3h"])
@pytest.mark.parametrize("kind", ["naive", "aware", "text"])
def test_slots_of_the_local_calendar_over_a_year(slot, kind):
    """Slots start at the same hours of the clock in summer and winter, although two days have 23 and 25 hours."""
    walls = pd.date_range("2013-07-01", "2014-06-30 21:00", freq=slot)
    aware = walls.tz_localize("Europe/Rome", ambiguous=False, nonexistent="shift_forward")
    data = read({"naive": walls, "aware": aware, "text": aware.strftime("%Y-%m-%d %H:%M:%S%z")}[kind])
    assert data.num_steps == len(walls)
    assert not np.isnan(data.activity).any()
    out = data.to_dataframe().ds
    expected = walls if kind == "naive" else aware
    assert (out == pd.Series(expected.tz_convert("Europe/Rome") if kind == "text" else expected)).all()
    # Every slot is on its own local day, so calendar features are right.
    local = pd.DatetimeIndex(data.time).tz_localize("UTC").tz_convert("Europe/Rome")
    assert (local.date == walls.date).all()


def test_days_start_where_no_midnight_is():
    days = pd.date_range("2013-09-01", periods=90)  # in Sao Paulo clocks skipped the midnight of 20 October
    data = read(days, timezone="America/Sao_Paulo")
    assert (data.num_steps, data.country) == (90, "BR")
    assert (data.to_dataframe().ds.to_numpy() == days.to_numpy()).all()


def test_hours_that_no_clock_showed():
    regular = pd.date_range("2013-03-30 12:00", periods=48, freq="h")
    with pytest.raises(DataError, match=r"row 14: no clock in Europe/Rome showed 2013-03-31 02:00:00.*Etc/GMT-1'"):
        read(regular)
    assert read(regular, timezone="Etc/GMT-1").time[0] == np.datetime64("2013-03-30T11:00:00")  # as the message says
    frame = pd.DataFrame({"ds": regular, "a": 1.0})
    frame.loc[14, "a"] = np.nan  # empty, as in a grid of hours
    assert TrafficDataset.from_dataframe(frame).num_steps == 47
    autumn = read(pd.date_range("2013-10-26 12:00", periods=48, freq="h"))  # 02:00 occurs once: the second is missing
    assert (autumn.num_steps, int(np.isnan(autumn.activity).sum())) == (49, 1)
    assert autumn.time[np.isnan(autumn.activity[:, 0, 0, 0])].tolist() == [np.datetime64("2013-10-27T01:00:00").item()]


def test_rows_in_any_order():
    frame = pd.DataFrame({"ds": NOVEMBER, "a": np.arange(288.0)})
    mixed = TrafficDataset.from_dataframe(frame.sample(frac=1, random_state=0))
    np.testing.assert_array_equal(mixed.activity, TrafficDataset.from_dataframe(frame).activity)
    october = pd.date_range("2013-10-26", periods=72, freq="h", tz="Europe/Rome").tz_localize(None)
    frame = pd.DataFrame({"ds": october, "a": np.arange(72.0)})
    newest_first = TrafficDataset.from_dataframe(frame[::-1])
    np.testing.assert_array_equal(newest_first.activity[:, 0, 0, 0], np.arange(72))
    with pytest.raises(DataError, match="the order of rows distinguishes the two hours of the same name"):
        TrafficDataset.from_dataframe(frame.sample(frac=1, random_state=0))


def test_times_that_jitter():
    jitter = pd.to_timedelta(np.random.default_rng(0).integers(-9, 10, len(NOVEMBER)), "s")
    for options in ({}, {"step_minutes": 60}):
        with pytest.raises(DataError, match=r"the times jitter by up to 9 s; give round_times=True"):
            read(NOVEMBER + jitter, **options)
    with pytest.raises(DataError, match=r"fraction of a second.*give round_times=True"):
        read(NOVEMBER + pd.to_timedelta(0.25, "s"))
    for off in (jitter, pd.to_timedelta(0.25, "s")):
        data = read(NOVEMBER + off, round_times=True)
        assert (data.time[0], data.num_steps, data.step_minutes) == (FIRST, 288, 60)
    with pytest.raises(DataError, match="appears twice"):
        read(NOVEMBER[:10].append(NOVEMBER[9:10] + pd.to_timedelta(3, "s")), round_times=True)


def test_days_and_clock_times_in_two_columns():
    frame = pd.DataFrame({"Date": ["2013-11-01"] * 24, "Hour": range(24), "Site": "x", "value": 1.0})
    assert TrafficDataset.from_dataframe(frame).time[0] == FIRST
    frame = frame.rename(columns={"Hour": "Time"}).assign(Time=[f"{hour:02d}:00" for hour in range(24)])
    assert TrafficDataset.from_dataframe(frame).num_steps == 24
