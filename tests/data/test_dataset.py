from __future__ import annotations

import numpy as np
import pytest

from simmst.data import TrafficDataset
from simmst.errors import DataError

HOUR = np.timedelta64(3600, "s")


def city(steps=48, services=("call", "sms"), height=3, width=4, step_s=3600, start=0, **kwargs):
    activity = np.random.default_rng(0).gamma(2, 3, (steps, len(services), height, width))
    return TrafficDataset.from_arrays(
        activity, start + np.arange(steps) * step_s, services=list(services), **({"timezone": "UTC"} | kwargs)
    )


def test_properties():
    mask = np.ones((3, 4), dtype=bool)
    mask[0, 0] = False
    data = city(mask=mask, step_s=600)
    assert (data.num_steps, data.num_services, data.step_minutes, data.steps_per_day) == (48, 2, 10, 144)
    assert data.num_cells == 11
    assert data.cells[0].tolist() == [0, 1]
    assert data.cell_id[0, 0] == -1
    assert data.cell_id[2, 3] == 11
    assert data.series().shape == (48, 2, 11)
    np.testing.assert_array_equal(data.series()[:, :, 4], data.activity[:, :, 1, 1])
    assert data.activity.dtype == np.float32


def test_select_services_in_the_order_named():
    data = city()
    picked = data.select_services(["sms", "call"])
    assert picked.services == ("sms", "call")
    np.testing.assert_array_equal(picked.activity[:, 0], data.activity[:, 1])


def test_unknown_service_names_those_there():
    with pytest.raises(DataError, match=r"no service 'net' in traffic; it has call, sms"):
        city().select_services(["net"])


def test_slice_steps():
    data = city()
    part = data.slice_steps(10, 20)
    assert part.num_steps == 10
    assert part.time[0] == data.time[10]
    with pytest.raises(DataError, match=r"10\.\.60 of a series of 48"):
        data.slice_steps(10, 60)


def test_resample_sums_whole_hours_of_local_time():
    # Starts at 00:20 in Rome: the first whole hour is 01:00.
    start = int(np.datetime64("2013-11-17T23:20:00", "s").astype(np.int64))
    data = city(steps=30, step_s=600, start=start, timezone="Europe/Rome")
    hourly = data.resample(60)
    assert hourly.time[0] == np.datetime64("2013-11-18T00:00:00")
    assert hourly.num_steps == 4
    np.testing.assert_allclose(hourly.activity[0], data.activity[4:10].sum(axis=0), rtol=1e-6)


def test_resample_follows_half_hour_zones():
    data = city(steps=24, step_s=600, timezone="Asia/Kolkata")  # 05:30 local
    hourly = data.resample(60)
    assert hourly.time[0] == np.datetime64("1970-01-01T00:30:00")
    np.testing.assert_allclose(hourly.activity[0], data.activity[3:9].sum(axis=0), rtol=1e-6)


def test_resample_gives_nan_for_a_missing_part_alone():
    data = city(steps=24, step_s=600)
    activity = data.activity.copy()
    activity[7, 0, 0, 0] = np.nan
    hourly = data.with_(activity=activity).resample(60)
    assert np.isnan(hourly.activity[1, 0, 0, 0])
    assert np.isnan(hourly.activity).sum() == 1


@pytest.mark.parametrize(
    ("step", "message"), [(25, "give a multiple of 10"), (50, "divides 24 hours"), (1440, "too few")]
)
def test_resample_refuses_other_steps(step, message):
    with pytest.raises(DataError, match=message):
        city(step_s=600).resample(step)


def test_resample_refuses_z_scores():
    with pytest.raises(DataError, match="z-scores"):
        city(step_s=600, unit="z-score").resample(60)


def test_dataframe_round_trip_through_a_clock_change():
    pytest.importorskip("pandas")
    start = int(np.datetime64("2013-10-26T12:00:00", "s").astype(np.int64))
    data = city(steps=36, start=start, timezone="Europe/Rome")
    frame = data.to_dataframe()
    assert list(frame.columns) == ["unique_id", "ds", "service", "y"]
    assert len(frame) == 36 * 2 * 12
    assert str(frame.ds.dt.tz) == "Europe/Rome"
    cells = {int(i): tuple(place) for i, place in zip(data.unique_ids(), data.cells.tolist(), strict=True)}
    back = TrafficDataset.from_dataframe(frame, cells=cells)
    np.testing.assert_array_equal(back.activity, data.activity)
    np.testing.assert_array_equal(back.time, data.time)
    np.testing.assert_array_equal(back.cell_id, data.cell_id)


def test_direct_construction_checks_shapes():
    data = city()
    with pytest.raises(DataError, match=r"activity must be float32 \(T, K, H, W\), got float64"):
        data.with_(activity=data.activity.astype(np.float64))
    with pytest.raises(DataError, match=r"mask must be bool \(3, 4\)"):
        data.with_(mask=np.ones((2, 4), dtype=bool))
    with pytest.raises(DataError, match="holds no cell"):
        data.with_(mask=np.zeros((3, 4), dtype=bool))
    with pytest.raises(DataError, match="'hexagons'"):
        data.with_(geometry="hexagons")
    with pytest.raises(DataError, match='"points" needs'):
        data.with_(geometry="points")
    with pytest.raises(DataError, match="2 services, but 1 names"):
        data.with_(services=("call",))
    with pytest.raises(DataError, match="names must differ"):
        data.with_(services=("call", "call"))
