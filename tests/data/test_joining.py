"""New slots at the end of a series."""

from __future__ import annotations

import numpy as np
import pytest

from simmst.data import TrafficDataset
from simmst.data.joining import append, with_services
from simmst.errors import DataError

HOUR = 3600


def city(start, steps, value=1.0, **options):
    times = (np.arange(steps) + start) * HOUR
    return TrafficDataset.from_arrays(
        np.full((steps, 2, 2, 2), value), times, **{"services": ["call", "sms"], **options}
    )


def test_slots_after_over_and_beyond_a_gap():
    series = city(0, 24)
    assert append(series, city(24, 3, 2.0)).activity[:, 0, 0, 0].tolist() == [1.0] * 24 + [2.0] * 3
    over = append(series, city(22, 4, 2.0))
    assert over.activity[:, 1, 1, 1].tolist() == [1.0] * 22 + [2.0] * 4
    gap = append(series, city(26, 2, 2.0))
    assert (gap.num_steps, int(np.isnan(gap.activity).sum())) == (28, 2 * 8)
    assert gap.time[-1] == np.datetime64("1970-01-02T03:00:00")
    inside = append(series, city(4, 2, 2.0))  # late counts replace early ones
    assert inside.num_steps == 24
    assert inside.activity[3:7, 0, 0, 0].tolist() == [1, 2, 2, 1]
    np.testing.assert_array_equal(series.activity, 1)  # the input is unchanged


def test_nan_overwrites_nothing():
    empty = city(22, 4, 2.0)
    empty.activity[:2] = np.nan
    assert append(city(0, 24), empty).activity[:, 0, 0, 0].tolist() == [1.0] * 24 + [2.0] * 2


def test_some_cells_and_services():
    new = TrafficDataset.from_arrays(np.full((2, 1), 5.0), np.arange(24, 26) * HOUR, services=["sms"], cell_id=[[2]])
    joined = append(city(0, 24), new)
    assert joined.activity[25, 1, 1, 0] == 5
    assert int(np.isnan(joined.activity[24:]).sum()) == 2 * 7


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (city(24, 12).resample(120), r"120 minutes, those of traffic 60; call resample\(60\)"),
        (city(-3, 12), "before traffic does"),
        (city(24.5, 3), "off the slots of traffic"),
        (city(24, 3, services=["call", "video"]), "have service 'video'; traffic has call, sms"),
        (city(24, 3, cell_id=[[0, 1], [2, 9]]), "have cell 9, which traffic does not have"),
        (city(10_000_000, 3), "check that time"),
    ],
)
def test_what_does_not_fit_is_named(new, message):
    with pytest.raises(DataError, match=message):
        append(city(0, 24), new)


def test_days_of_the_local_calendar_join_over_a_change_of_clocks():
    pd = pytest.importorskip("pandas")
    days = pd.date_range("2013-09-01", periods=90)  # clocks go back on 27 October
    frame = pd.DataFrame({"ds": days, "a": np.arange(90.0)})
    for cut in (30, 56, 57, 70):
        whole = append(*(TrafficDataset.from_dataframe(part) for part in (frame[:cut], frame[cut:])))
        assert whole.activity[:, 0, 0, 0].tolist() == list(range(90))
        assert (whole.to_dataframe().ds.to_numpy() == days.to_numpy()).all()


def test_missing_services():
    assert np.isnan(with_services(city(0, 4), ("sms", "internet")).activity[:, 1]).all()
    with pytest.raises(DataError, match="has none of the services video; it has call, sms"):
        with_services(city(0, 4), ("video",))
