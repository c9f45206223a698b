from __future__ import annotations

import numpy as np
import pytest

from simmst.data import TrafficDataset
from simmst.errors import DataError

pd = pytest.importorskip("pandas")
pytest.importorskip("holidays")

DS = pd.date_range("2013-11-01", periods=24, freq="h")


def long(services=("call", "sms"), ids=("a", "b")):
    rows = [
        pd.DataFrame({"unique_id": i, "service": s, "ds": DS, "y": np.arange(24.0) + 100 * n + 1000 * m})
        for n, i in enumerate(ids)
        for m, s in enumerate(services)
    ]
    return pd.concat(rows, ignore_index=True)


def test_long_frame():
    data = TrafficDataset.from_dataframe(long())
    assert data.activity.shape == (24, 2, 1, 2)
    assert data.services == ("call", "sms")
    assert data.geometry == "points"
    assert data.time[0] == np.datetime64("2013-10-31T23:00:00")  # local midnight in Rome
    assert data.activity[3, 1, 0, 1] == 1103
    assert data.unique_ids().tolist() == ["a", "b"]
    assert data.to_dataframe().unique_id.unique().tolist() == ["a", "b"]


def test_long_frame_of_one_service_and_number_ids():
    frame = long(services=("net",), ids=(4259, 4456)).drop(columns="service")
    data = TrafficDataset.from_dataframe(frame, service="net")
    assert data.services == ("net",)
    assert data.cell_id.tolist() == [[4259, 4456]]


def test_cells_give_a_grid():
    data = TrafficDataset.from_dataframe(long(), cells={"a": (0, 1), "b": (2, 0)})
    assert data.geometry == "grid"
    assert data.activity.shape == (24, 2, 3, 2)
    assert data.mask.sum() == 2
    assert data.activity[3, 1, 2, 0] == 1103
    with pytest.raises(DataError, match="no \\(row, column\\) for unique_id 'b'"):
        TrafficDataset.from_dataframe(long(), cells={"a": (0, 1)})
    with pytest.raises(DataError, match="more than one unique_id at \\(0, 1\\)"):
        TrafficDataset.from_dataframe(long(), cells={"a": (0, 1), "b": (0, 1)})


def test_wide_forms_agree():
    wide = pd.DataFrame({"ds": DS, "a": np.arange(24.0), "b": np.arange(24.0) + 100})
    expected = TrafficDataset.from_dataframe(long(services=("traffic",)))
    for frame in (wide, wide.set_index("ds"), wide.set_index("ds").tz_localize("Europe/Rome").tz_convert("UTC")):
        np.testing.assert_array_equal(TrafficDataset.from_dataframe(frame).activity, expected.activity)
        np.testing.assert_array_equal(TrafficDataset.from_dataframe(frame).time, expected.time)


def test_wide_with_two_levels():
    frame = long().pivot(index="ds", columns=["unique_id", "service"], values="y")
    data = TrafficDataset.from_dataframe(frame)
    np.testing.assert_array_equal(data.activity, TrafficDataset.from_dataframe(long()).activity)
    again = TrafficDataset.from_dataframe(frame.reset_index())
    np.testing.assert_array_equal(again.activity, data.activity)


def test_polars_frame():
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"ds": DS.to_numpy(), "a": np.arange(24.0)})
    assert TrafficDataset.from_dataframe(frame).activity[5, 0, 0, 0] == 5


def test_gaps_become_missing_slots():
    frame = long().drop(index=[5, 6])
    data = TrafficDataset.from_dataframe(frame)
    assert np.isnan(data.activity[5:7, 0, 0, 0]).all()
    assert np.isnan(data.activity).sum() == 2
    sparse = pd.DataFrame({"ds": DS[[0, 1, 5]], "a": [1.0, 2.0, 3.0]})
    assert TrafficDataset.from_dataframe(sparse).num_steps == 6


def with_value(column, row, value):
    frame = long()
    frame[column] = frame[column].astype(object)
    frame.loc[row, column] = value
    return frame


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (with_value("ds", 30, DS[5]), r"row 30: ds 2013-11-01 05:00:00 of 'a', service 'sms' appears twice"),
        (with_value("ds", 30, DS[2]), r"row 30: ds 2013-11-01 02:00:00 .* out of order"),
        (with_value("ds", 30, "soon"), r"row 30: ds 'soon' is not a time"),
        (with_value("y", 40, "many"), r"row 40: y 'many' of 'a' is not a number"),
        (with_value("unique_id", 50, None), r"row 50: unique_id is empty"),
        (
            with_value("ds", 47, DS[-1] + pd.Timedelta("17min")),
            r"row 47: .* is not a whole number of 60 min slots",
        ),
        (with_value("y", 40, -3.0), r"is -3; activity cannot be negative"),
        (long().drop(columns="y"), r"no column y"),
        (long()[["unique_id", "y"]], r"wanted unique_id, ds, y"),
        (long().iloc[:0], "no rows"),
        (long().iloc[:1], "one slot"),
        (long().assign(ds=1), "pandas.to_datetime"),
        ({"ds": []}, "got dict"),
    ],
)
def test_bad_frames_name_row_and_value(frame, message):
    with pytest.raises(DataError, match=message):
        TrafficDataset.from_dataframe(frame)


def test_bad_row_of_a_wide_frame():
    wide = pd.DataFrame({"ds": DS, "a": 1.0, "b": 2.0}).astype({"b": object})
    wide.loc[7, "b"] = "x"
    with pytest.raises(DataError, match="row 7: y 'x' of 'b'"):
        TrafficDataset.from_dataframe(wide)


def test_a_far_off_time_is_refused_before_memory_is_taken():
    frame = long(services=("net",), ids=("a",))
    frame.loc[23, "ds"] = pd.Timestamp("2113-11-01")
    with pytest.raises(DataError, match=r"row 23: .* check that time"):
        TrafficDataset.from_dataframe(frame)


def test_unknown_time_zone():
    with pytest.raises(DataError, match="unknown time zone 'Europe/Milano'"):
        TrafficDataset.from_dataframe(long(), timezone="Europe/Milano")
