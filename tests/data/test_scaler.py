from __future__ import annotations

import json

import numpy as np
import pytest

from simmst.data import Scaler, TrafficDataset
from simmst.errors import DataError


def city(values, **kwargs):
    services = [f"s{i}" for i in range(values.shape[1])]
    return TrafficDataset.from_arrays(values, np.arange(len(values)) * 3600, services=services, **kwargs)


VALUES = np.random.default_rng(0).gamma(1.0, 50.0, (100, 2, 3, 3)).astype(np.float32)


def test_log_scale_standardises_the_training_slots_alone():
    values = VALUES.copy()
    values[60:] = 1e6  # must not be used
    values[3, 0, 0, 0] = np.nan
    scaler = Scaler.fit(city(values), range(60))
    assert scaler.kind == "log"
    z = scaler.transform(values[:60], axis=1)
    assert z.dtype == np.float32
    assert np.isnan(z[3, 0, 0, 0])
    np.testing.assert_allclose(np.nanmean(z, axis=(0, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(np.nanstd(z, axis=(0, 2, 3)), 1, atol=1e-4)


def test_cells_outside_the_city_do_not_count():
    values = VALUES.copy()
    values[:, :, 0, 0] = 1e6
    mask = np.ones((3, 3), dtype=bool)
    mask[0, 0] = False
    assert Scaler.fit(city(values, mask=mask), range(100)).mean.max() < 5


def test_inverse_returns_raw_values_along_any_axis():
    scaler = Scaler.fit(city(VALUES), range(100))
    for axis, x in ((1, VALUES), (-1, np.moveaxis(VALUES, 1, -1))):
        np.testing.assert_allclose(scaler.inverse(scaler.transform(x, axis), axis), x, rtol=1e-4, atol=1e-4)
    assert (scaler.inverse(np.full((4, 2), -100.0), axis=1) == 0).all()


def test_z_scores_are_scaled_linearly():
    scaler = Scaler.fit(city(VALUES - 50, unit="z-score"), range(100))
    assert scaler.kind == "linear"
    z = scaler.transform(VALUES - 50, axis=1)
    np.testing.assert_allclose(scaler.inverse(z, axis=1), VALUES - 50, atol=1e-3)
    assert Scaler.fit(city(VALUES, unit="z-score"), range(2)).kind == "linear"


def test_json_round_trip():
    scaler = Scaler.fit(city(VALUES), range(100))
    back = Scaler.from_dict(json.loads(json.dumps(scaler.to_dict())))
    np.testing.assert_array_equal(back.transform(VALUES, 1), scaler.transform(VALUES, 1))
    with pytest.raises(DataError, match="needs std"):
        Scaler.from_dict({"kind": "log", "mean": [1.0]})


def test_a_constant_service_stays_finite():
    scaler = Scaler.fit(city(np.full((10, 1, 2, 2), 7.0)), range(10))
    assert scaler.std[0] == 1
    assert (scaler.transform(np.full((3, 1), 7.0), axis=1) == 0).all()


def test_bad_input():
    with pytest.raises(DataError, match="slots range\\(0, 101\\) of a series of 100"):
        Scaler.fit(city(VALUES), range(101))
    values = VALUES.copy()
    values[:, 1] = np.nan
    with pytest.raises(DataError, match=r"'s1' .* has no value"):
        Scaler.fit(city(values), range(50))
    scaler = Scaler.fit(city(VALUES), range(100))
    with pytest.raises(DataError, match="-1 is negative"):
        scaler.transform(np.full((2, 2), -1.0), axis=1)
    with pytest.raises(DataError, match="knows 2 services"):
        scaler.transform(np.ones((2, 3)), axis=1)


@pytest.mark.parametrize("burst", [2.0**32 * 1e3, 1e30])
def test_a_counter_that_overflows_everywhere_leaves_the_relative_scale(burst):
    values = VALUES.copy()
    values[:, 1] *= 1e-3
    wanted = Scaler.fit(city(values), range(100), "relative")
    values[40:42] = burst
    found = Scaler.fit(city(values), range(100), "relative")
    np.testing.assert_allclose(found.std, wanted.std, rtol=0.1)
    scaled = found.transform(values, axis=1)
    assert np.isnan(scaled[40:42]).all()
    assert np.isnan(scaled).sum() == np.isnan(scaled[40:42]).sum()


def test_a_large_cell_beside_small_ones_is_traffic():
    values = VALUES.copy()
    values[:, :, 1, 1] *= 1e3
    found = Scaler.fit(city(values), range(100), "relative")
    np.testing.assert_allclose(found.std, 0.01 * values.mean(axis=(0, 2, 3)), rtol=1e-4)
