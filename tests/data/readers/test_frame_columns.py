"""Roles of columns, identifiers that do not change, numbers as they are written, and frames in the form they had."""

from __future__ import annotations

import io

import numpy as np
import pytest

from simmst.data import TrafficDataset
from simmst.errors import DataError

pd = pytest.importorskip("pandas")
pytest.importorskip("holidays")

DS = pd.date_range("2013-11-01", periods=24, freq="h")


def long(ids=("a", "b")):
    parts = [pd.DataFrame({"unique_id": one, "ds": DS, "y": np.arange(24.0) + 100 * n}) for n, one in enumerate(ids)]
    return pd.concat(parts, ignore_index=True)


def read(frame, **options):
    return TrafficDataset.from_dataframe(frame, **options)


@pytest.mark.parametrize(
    "ids",
    [
        ["0042", "0043"],
        [4259.0, 4456.5],
        [4259, 4456],
        np.array([1, 2], dtype="int32"),
        np.array([2**63 + 1, 7], dtype="uint64"),
        ["4259", "x"],
    ],
)
def test_identifiers_come_out_as_they_went_in(ids, tmp_path):
    frame = long(list(ids)).astype({"unique_id": pd.Series(ids).dtype})
    data = read(frame)
    for kept in (data, TrafficDataset.from_npz(data.save(tmp_path / "kept.npz"))):
        out = kept.to_dataframe()
        assert out.unique_id.dtype == frame.unique_id.dtype
        assert out.unique_id.tolist() == frame.unique_id.tolist()
        assert kept.unique_ids().tolist() == list(ids)


def test_identifiers_of_two_types_are_refused():
    with pytest.raises(DataError, match=r"unique_id is 1 \(int\) here and '1' \(str\) there"):
        read(long([1, "1"]))
    tuples = long().assign(unique_id=[("a", 1)] * 48)[:24]
    with pytest.raises(DataError, match=r"unique_id \('a', 1\) is tuple; give text or numbers"):
        read(tuples)
    with pytest.raises(DataError, match=r"cells has no \(row, column\) for unique_id '1' \(str\)"):
        read(long(["1"]), cells={1: (0, 0)})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.inf, r"row 40: y of 'b' is inf; activity is finite"),
        (-np.inf, r"row 40: y of 'b' is -inf; activity is finite"),
        (1e39, r"row 40: y of 'b' is 1e\+39; activity is finite and below 3\.4e38"),
        (-3.0, r"row 40: y of 'b' is -3; activity cannot be negative"),
    ],
)
def test_values_are_named_by_row_and_cell(value, message):
    frame = long()
    frame.loc[40, "y"] = value
    with pytest.raises(DataError, match=message):
        read(frame)
    wide = frame.pivot(index="ds", columns="unique_id", values="y").reset_index()
    with pytest.raises(DataError, match=message.replace("row 40", "row 16")):
        read(wide)
    counters = frame.rename(columns={"y": "volume"}).assign(rrc=1.0)
    with pytest.raises(DataError, match=message.replace("y of", "volume of")):
        read(counters)
    if value == -3.0:
        assert read(frame, unit="z-score").activity.min() == -3


def test_an_index_in_a_file_and_a_comma_too_many_are_no_cells():
    wide = long().pivot(index="ds", columns="unique_id", values="y").reset_index()
    for frame in (long(), wide):
        data = read(pd.read_csv(io.StringIO(frame.to_csv())))
        assert data.unique_ids().tolist() == ["a", "b"]
        assert data.layout.notes == ("column 'Unnamed: 0', which numbers the rows, is left out",)
    rows = "".join(f"2013-11-01 {hour:02d}:00,1,2,\n" for hour in range(24))
    data = read(pd.read_csv(io.StringIO("ds,a,b,\n" + rows)))
    assert data.unique_ids().tolist() == ["a", "b"]
    assert "the empty column 'Unnamed: 3' is left out" in data.layout.notes


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"hour": range(24)}, "column 'hour' has no role: its name"),
        ({"region": "north"}, "column 'region' has no role: it holds text such as 'north'"),
        ({"flag": True}, "column 'flag' has no role: it holds bool"),
        ({"Unnamed: 3": 5.0}, "column 'Unnamed: 3' has no role"),
    ],
)
def test_a_column_without_a_role_is_refused(column, message):
    with pytest.raises(DataError, match=f"{message}.*name the columns of activity with target_col"):
        read(pd.DataFrame({"ds": DS, "a": 1.0, **column}))
    with pytest.raises(DataError, match=message):
        read(pd.DataFrame({"ds": DS, "cell": "a", "up": 1.0, "down": 2.0, **column}))
    assert read(pd.DataFrame({"ds": DS, "a": 1.0, **column}), target_col="a").num_cells == 1


def test_counters_in_columns_of_their_own():
    frame = long().rename(columns={"unique_id": "Cell Name", "ds": "Result Time", "y": "DL"}).assign(UL=7.0)
    data = read(frame)
    assert data.services == ("DL", "UL")
    assert data.unique_ids().tolist() == ["a", "b"]
    assert data.activity[3, :, 0, 1].tolist() == [103, 7]
    assert data.layout.notes[0] == "'Result Time' is taken as the time, 'Cell Name' as the cell, DL, UL as the activity"
    assert data.to_dataframe().columns.tolist() == ["Cell Name", "Result Time", "service", "y"]
    assert read(frame, target_col="UL").services == ("traffic",)
    one = read(frame.drop(columns="UL"))
    assert one.services == ("DL",)


def test_services_of_one_place():
    frame = pd.DataFrame({"ds": DS, "call": 1.0, "sms": 2.0, "internet": 3.0})
    data = read(frame)
    assert (data.services, data.num_cells) == (("call", "sms", "internet"), 1)
    assert "taken as services of one place" in data.layout.notes[0]
    assert read(frame, layout="cells").num_cells == 3
    assert read(frame.rename(columns={"call": "rrc"}), layout="services").services == ("rrc", "sms", "internet")


def test_one_row_a_place():
    frame = pd.DataFrame([["p", *range(24)], ["q", *range(100, 124)]], columns=["place", *map(str, DS)])
    data = read(frame)
    assert (data.geometry, data.activity.shape) == ("points", (24, 1, 1, 2))
    assert data.unique_ids().tolist() == ["p", "q"]
    assert data.time[0] == np.datetime64("2013-10-31T23:00:00")
    assert data.activity[3, 0, 0].tolist() == [3, 103]
    as_index = frame.set_index("place")
    as_index.columns = pd.DatetimeIndex(as_index.columns)
    np.testing.assert_array_equal(read(as_index).activity, data.activity)
    assert read(as_index).unique_ids().tolist() == ["p", "q"]
    services = read(pd.concat([frame.assign(service="up"), frame.assign(service="down")]))
    assert services.services == ("up", "down")


@pytest.mark.parametrize(
    ("text", "value"),
    [("1.234,5", 1234.5), ("0,25", 0.25), ("1,234.5", 1234.5), ("1,5e3", 1500), ("12\u00a0345,5", 12345.5), (" 7 ", 7)],
)
def test_numbers_as_they_are_written(text, value):
    assert read(pd.DataFrame({"ds": DS, "a": text})).activity[0, 0, 0, 0] == value


def test_a_comma_that_may_be_either_is_asked_for():
    frame = pd.DataFrame({"ds": DS, "a": "1,234"})
    with pytest.raises(DataError, match=r"row 0: y of 'a' is '1,234'.*give decimal=',' or decimal='\.'"):
        read(frame)
    assert read(frame, decimal=",").activity[0] == pytest.approx(1.234)
    assert read(frame, decimal=".").activity[0] == 1234
    shown = frame.assign(b="0,5")  # another column of the table shows that commas are decimal
    assert read(shown).activity[0, 0, 0].tolist() == pytest.approx([1.234, 0.5])
    with pytest.raises(DataError, match="disagree on the decimal sign"):
        read(frame.assign(b=["0,5"] * 23 + ["1,234.5"]))
    with pytest.raises(DataError, match=r"row 0: y '1\.25' of 'b' is not a number with decimal commas"):
        read(frame.assign(a="0,5", b="1.25"))


def hourly(**changes):
    frame = {"datetime": DS, "CellID": 4456, "countrycode": 39, "smsin": 1.0, "smsout": 2.0}
    return pd.DataFrame({**frame, "callin": 0.5, "callout": np.nan, "internet": 9.0, **changes})


def test_hourly_files_of_milan():
    frame = pd.concat([hourly(), hourly(countrycode=33)[:12], hourly(CellID=4457)[:3]], ignore_index=True)
    data = read(frame)
    assert data.services == ("call", "sms", "internet")
    assert (data.geometry, data.cell_size_m, data.unit) == ("grid", 235.0, "CDR units")
    assert data.cell_id.tolist() == [[4456, 4457]]
    assert data.activity[0, :, 0, 0].tolist() == [1.0, 6.0, 18.0]  # both countries
    assert data.activity[20, :, 0, 0].tolist() == [0.5, 3.0, 9.0]
    assert data.activity[20, :, 0, 1].tolist() == [0, 0, 0]  # no row means no activity
    assert data.time[0] == np.datetime64("2013-10-31T23:00:00")
    with pytest.raises(DataError, match=r"row 39: ds 2013-11-01 00:00:00 of 4456 appears twice: row 0 has it too"):
        read(pd.concat([frame, hourly()[:1]], ignore_index=True))
    with pytest.raises(DataError, match="cell 10001 is not on the milan grid"):
        read(hourly(CellID=10001))
    assert read(hourly(), cells={4456: (1, 1)}).activity.shape == (24, 3, 2, 2)


def test_one_cell_and_some_fields_of_an_hourly_file():
    assert read(hourly()[["datetime", "CellID", "smsin"]]).services == ("smsin",)
    both = read(hourly()[["datetime", "CellID", "smsin", "smsout", "internet"]])
    assert both.services == ("sms", "internet")
    assert both.cell_id.tolist() == [[4456]]


def test_roles_are_told_apart_or_asked_for():
    frame = long().rename(columns={"unique_id": "site"}).assign(cell="x")
    with pytest.raises(DataError, match=r"columns site, cell may all be the cells' identifiers; .* with id_col"):
        read(frame)
    assert read(frame, id_col="site").unique_ids().tolist() == ["a", "b"]
    with pytest.raises(DataError, match="the table has no column 'sites'; did you mean 'site'"):
        read(frame, id_col="sites")
    with pytest.raises(DataError, match="name the time with time_col"):
        read(pd.DataFrame({"when": ["x"] * 3, "a": 1.0}))
    with pytest.raises(DataError, match="columns start, time may all be the time"):
        read(pd.DataFrame({"start": DS, "time": DS, "a": 1.0}))
    assert read(pd.DataFrame({"when": DS, "a": 1.0})).num_cells == 1  # the only column of times
    extra = read(long().assign(temperature=3.0))
    assert extra.layout.notes == ("left out: temperature",)
    with pytest.raises(DataError, match="layout is 'wide'; it must be one of long, cells, services, places"):
        read(long(), layout="wide")


def test_frames_go_out_as_they_came_in(tmp_path):
    polars = pytest.importorskip("polars")
    frame = long(["0042", "0043"]).rename(columns={"unique_id": "cell", "ds": "when", "y": "load"})
    options = {"id_col": "cell", "time_col": "when", "target_col": "load"}
    out = read(frame, **options).to_dataframe()
    pd.testing.assert_frame_equal(out.drop(columns="service"), frame, check_dtype=False)
    assert out.when.dt.tz is None
    as_polars = read(polars.from_pandas(frame), **options).to_dataframe()
    assert isinstance(as_polars, polars.DataFrame)
    assert as_polars["cell"].to_list() == frame.cell.tolist()
    kept = TrafficDataset.from_npz(read(frame, **options).save(tmp_path / "kept.npz"))
    pd.testing.assert_frame_equal(kept.to_dataframe(), out, check_dtype=False)


def test_polars_frames_long_wide_and_lazy():
    polars = pytest.importorskip("polars")
    expected = read(long())
    for frame in (polars.from_pandas(long()), polars.from_pandas(long()).lazy(), polars.from_pandas(long()).to_arrow()):
        np.testing.assert_array_equal(read(frame).activity, expected.activity)
    wide = polars.from_pandas(long().pivot(index="ds", columns="unique_id", values="y").reset_index())
    np.testing.assert_array_equal(read(wide).activity, expected.activity)
    aware = polars.from_pandas(long().assign(ds=lambda table: table.ds.dt.tz_localize("Asia/Tokyo")))
    assert read(aware).timezone == "Asia/Tokyo"
