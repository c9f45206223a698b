from __future__ import annotations

import numpy as np
import pytest

from simmst.data import TrafficDataset
from simmst.errors import ConfigError, DataError
from simmst.realism.crops import PLACES_CELLS, Crop
from simmst.simulation import CityConfig, simulate_city

HOUR = np.timedelta64(3600, "s")


def dataset(activity, *, start="2013-11-05T23:00:00", minutes=60, services=("internet",), **attributes):
    time = np.datetime64(start) + np.arange(len(activity)) * np.timedelta64(minutes * 60, "s")
    return TrafficDataset.from_arrays(activity, time, services=list(services), **attributes)


def city_of(crop, **fields):
    return simulate_city(CityConfig(**{**crop.city, **fields}))


def test_the_file_settles_grid_calendar_and_length():
    crop = Crop.of(dataset(np.ones((30, 6, 30)), start="2013-11-06T10:00:00", cell_size_m=100.0))
    wanted = {"height": 20, "width": 30, "start": "2013-11-06", "days": 2, "step_minutes": 60, "missing_share": 0.0}
    assert {name: crop.city[name] for name in wanted} == wanted
    assert (crop.city["cell_m"], crop.first) == (100.0, 11)
    city = city_of(crop)
    assert city.time[crop.first] == crop.like.time[0]
    cut = crop.cut(city, 0, 0)
    assert cut.activity.shape == crop.like.activity.shape
    np.testing.assert_array_equal(cut.time, crop.like.time)
    assert cut.surrogate


def test_the_day_the_clocks_change():
    crop = Crop.of(dataset(np.ones((20, 2, 2)), start="2013-10-27T10:00:00"))  # 11:00 local, 12 h after midnight
    assert (crop.city["start"], crop.first) == ("2013-10-27", 12)
    assert city_of(crop).time[12] == crop.like.time[0]


def test_crops_lie_at_places_of_their_own_and_keep_the_gaps_and_mask():
    activity = np.ones((24, 4, 5))
    activity[3, 2, 1] = np.nan
    mask = np.ones((4, 5), bool)
    mask[0, 0] = False
    real = dataset(activity[:, None], mask=mask)
    crop = Crop.of(real)
    city = city_of(crop)
    cuts = [crop.cut(city, 0, index) for index in range(4)]
    for cut in cuts:
        np.testing.assert_array_equal(np.isnan(cut.activity), np.isnan(real.activity))
        np.testing.assert_array_equal(cut.mask, mask)
        # a part of the city, not its repeated edge
        windows = np.lib.stride_tricks.sliding_window_view(city.activity[0, 0], (4, 5))
        assert (np.nan_to_num(windows) == np.nan_to_num(cut.activity[0, 0])).all(axis=(2, 3)).sum() == 1
    assert len({float(cut.activity[0, 0, 1, 1]) for cut in cuts}) > 1
    np.testing.assert_array_equal(crop.cut(city, 0, 0).activity, cuts[0].activity)


def test_slots_are_summed_up_to_the_files():
    crop = Crop.of(dataset(np.ones((10, 20, 20)), minutes=30))
    city = city_of(crop)
    assert city.step_minutes == 10
    cut = crop.cut(city, 0, 0)
    np.testing.assert_allclose(cut.activity[0], city.activity[:3].sum(axis=0), rtol=1e-6)


def test_one_place_is_the_total_of_a_city():
    crop = Crop.of(dataset(np.ones((24, 3)), services=("call", "sms", "internet")))
    city = city_of(crop)
    assert city.activity.shape[2:] == (PLACES_CELLS, PLACES_CELLS)
    assert "taken to be 40 x 40 cells" in crop.cautions[0]
    cut = crop.cut(city, 0, 0)
    np.testing.assert_allclose(cut.activity[:, :, 0, 0], city.activity.sum(axis=(2, 3)), rtol=1e-4)


def test_scored_places_are_squares_of_cells_scored_alike():
    scores = np.random.default_rng(0).standard_normal((48, 1, 1, 30))
    real = dataset(scores, geometry="points", unit="z-score")
    crop = Crop.of(real, place_cells=8)
    city = city_of(crop)
    cut = crop.cut(city, 0, 0)
    assert cut.activity.shape == (48, 1, 1, 25)
    assert (cut.unit, cut.geometry) == ("z-score", "points")
    np.testing.assert_allclose(cut.activity.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(cut.activity.std(axis=0), 1, atol=1e-4)
    first = city.activity[:, 0, :8, :8].sum(axis=(1, 2))
    assert np.corrcoef(first, cut.activity[:, 0, 0, 0])[0, 1] == pytest.approx(1.0, abs=1e-5)
    sizes = {Crop.of(real).cut(city, 0, index).activity.shape[3] for index in range(8)}
    assert "several sizes" in Crop.of(real).cautions[0]
    assert crop.cautions == ()
    assert len(sizes) > 1, "several sizes are drawn where the file does not give one"


@pytest.mark.parametrize(
    ("real", "message"),
    [
        (lambda: dataset(np.ones((9, 2, 2)), services=["video"]), "no simulated service to compare 'video' with"),
        (lambda: dataset(np.ones((9, 2, 2)), minutes=12), "slots of 12; resample"),
        (lambda: dataset(np.ones((9, 2, 2)), start="2013-11-05T23:07:00"), "start 420 s after"),
    ],
)
def test_data_that_cannot_be_compared_are_refused(real, message):
    with pytest.raises(DataError, match=message):
        Crop.of(real())


def test_place_sizes_are_checked():
    with pytest.raises(ConfigError, match="place_cells is 99"):
        Crop.of(dataset(np.ones((9, 2))[:, :1]), place_cells=99)
