from __future__ import annotations

import numpy as np
import pytest

from simmst.data import TrafficDataset
from simmst.errors import DataError

TIME = np.arange(24) * 3600


@pytest.mark.parametrize(
    ("shape", "services", "wanted", "geometry"),
    [
        ((24,), None, (24, 1, 1, 1), "points"),
        ((24, 2), ["a", "b"], (24, 2, 1, 1), "points"),
        ((24, 3, 4), "a", (24, 1, 3, 4), "grid"),
        ((24, 2, 3, 4), ["a", "b"], (24, 2, 3, 4), "grid"),
    ],
)
def test_ranks(shape, services, wanted, geometry):
    data = TrafficDataset.from_arrays(np.ones(shape), TIME, services=services)
    assert data.activity.shape == wanted
    assert data.geometry == geometry


@pytest.mark.parametrize("shape", [(), (24, 1, 1, 1, 1)])
def test_wrong_rank_names_the_shapes(shape):
    with pytest.raises(DataError, match=r"wanted \(T,\), \(T, K\), \(T, H, W\)"):
        TrafficDataset.from_arrays(np.ones(shape), TIME)


def test_three_dimensions_with_several_services():
    with pytest.raises(DataError, match=r"\(24, 3, 4\) is read as \(T, H, W\) of one service, but 3"):
        TrafficDataset.from_arrays(np.ones((24, 3, 4)), TIME, services=["a", "b", "c"])


def test_services_without_names():
    with pytest.raises(DataError, match="2 services without names"):
        TrafficDataset.from_arrays(np.ones((24, 2)), TIME)


def test_times_of_every_kind_agree():
    pd = pytest.importorskip("pandas")
    stamps = TIME.astype("datetime64[s]")
    index = pd.DatetimeIndex(stamps)
    kinds = [TIME, TIME.astype(float), stamps, stamps.astype("datetime64[ns]"), index]
    kinds.append(index.tz_localize("UTC").tz_convert("Asia/Tokyo"))
    for time in kinds:
        data = TrafficDataset.from_arrays(np.ones(24), time)
        np.testing.assert_array_equal(data.time, stamps)


def changed(position, value):
    time = TIME.copy()
    time[position] = value
    return time


@pytest.mark.parametrize(
    ("time", "message"),
    [
        (changed(5, 4 * 3600), r"time\[5\] = 1970-01-01T04:00:00 is a duplicate of time\[4\]"),
        (changed(5, 3 * 3600), r"time\[5\] = 1970-01-01T03:00:00 is out of order"),
        (changed(23, 24 * 3600), r"time\[23\] = 1970-01-02T00:00:00 is 7200 s after"),
        (TIME * 1000 + 1_383_260_400_000, "epoch milliseconds"),
        (np.arange(24) * 90, "the step is 90 s"),
        (np.arange(24) * 7 * 60, "divide 24 hours"),
        (np.arange(23) * 3600, r"\(24,\) to go with"),
        (TIME.reshape(2, 12), r"time must be \(T,\)"),
        (TIME.astype(str), "pandas.to_datetime"),
        (np.array(["NaT"] * 24, dtype="datetime64[s]"), r"time\[0\] is not a time"),
    ],
)
def test_bad_times_name_index_and_value(time, message):
    with pytest.raises(DataError, match=message):
        TrafficDataset.from_arrays(np.ones(24), time)


def test_nan_is_missing_and_negative_needs_z_scores():
    values = np.ones(24)
    values[3] = np.nan
    assert np.isnan(TrafficDataset.from_arrays(values, TIME).activity[3, 0, 0, 0])
    values[7] = -2.5
    with pytest.raises(DataError, match=r"activity\[7, 0, 0, 0\].*is -2\.5.*z-score"):
        TrafficDataset.from_arrays(values, TIME)
    assert TrafficDataset.from_arrays(values, TIME, unit="z-score").activity[7, 0, 0, 0] == -2.5
    values[7] = np.inf
    with pytest.raises(DataError, match="is infinite"):
        TrafficDataset.from_arrays(values, TIME, unit="z-score")


def test_activity_of_words():
    with pytest.raises(DataError, match="must be numbers"):
        TrafficDataset.from_arrays(np.array(["a"] * 24), TIME)
