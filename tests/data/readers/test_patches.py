"""Patches side by side on one grid: separate, named, and checked."""

from __future__ import annotations

import numpy as np
import pytest

from simmst.data import Scaler, TrafficDataset, Windows, WindowSpec, load
from simmst.data.readers.patches import read_patches
from simmst.errors import DataError


def write(path, **changes):
    arrays = {"traffic": np.arange(2 * 96 * 2 * 3.0).reshape(2, 96, 2, 3), "mask": np.ones((2, 2, 3), bool)}
    np.savez(path, **(arrays | {"step_minutes": 15} | changes))
    return path


def test_a_neighbourhood_sees_one_patch_alone(tmp_path):
    traffic = np.stack([np.full((96, 4, 4), 1.0), np.full((96, 4, 4), 100.0), np.full((96, 4, 4), 10_000.0)])
    data = load(write(tmp_path / "p.npz", traffic=traffic, mask=np.ones((3, 4, 4), bool)))
    for neighbourhood in (5, 9):
        spec = WindowSpec.recent(1, 2, steps_per_day=96, neighbourhood=neighbourhood)
        windows = Windows(data, spec, Scaler.fit(data, range(95)), steps=range(95, 96))
        values = windows.batch(np.arange(len(windows))).values.numpy().reshape(len(windows), -1)
        assert len(values) == 48
        assert (np.nanmax(values, axis=1) == np.nanmin(values, axis=1)).all()


def test_masked_cells_are_not_read_and_names_survive_a_copy(tmp_path):
    mask = np.ones((2, 2, 3), bool)
    mask[1, 0, 2] = False
    traffic = np.ones((2, 96, 2, 3))
    traffic[1, :, 0, 2] = -7
    data = load(write(tmp_path / "p.npz", traffic=traffic, mask=mask))
    assert data.unique_ids().tolist() == [
        *("0/0,0", "0/0,1", "0/0,2", "1/0,0", "1/0,1"),
        *("0/1,0", "0/1,1", "0/1,2", "1/1,0", "1/1,1", "1/1,2"),
    ]
    assert np.isnan(data.activity[:, 0, ~data.mask]).all()
    back = load(data.save(tmp_path / "copy.npz"))
    assert back.unique_ids().tolist() == data.unique_ids().tolist()


def test_another_place_and_date(tmp_path):
    found = read_patches(write(tmp_path / "p.npz"), start="2020-03-02", timezone="Asia/Tokyo", service="call")
    data = TrafficDataset(**found)
    assert (str(data.time[0]), data.timezone, data.services) == ("2020-03-01T15:00:00", "Asia/Tokyo", ("call",))


def bad(value):
    traffic = np.ones((2, 96, 2, 3))
    traffic[1, 5, 0, 2] = value
    return traffic


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"traffic": bad(-3.5)}, r"p\.npz: traffic\[1, 5, 0, 2\] is -3\.5"),
        ({"traffic": bad(np.inf)}, r"p\.npz: traffic\[1, 5, 0, 2\] is inf"),
        ({"traffic": bad(1e300)}, r"p\.npz: traffic\[1, 5, 0, 2\] is 1e\+300"),
        ({"traffic": np.full((2, 96, 2, 3), "x")}, r"p\.npz: traffic is <U1 \(2, 96, 2, 3\); wanted numbers"),
        ({"traffic": np.ones((96, 2, 3))}, r"p\.npz: traffic \(96, 2, 3\) and mask \(2, 2, 3\) must be"),
        ({"traffic": np.ones((2, 1, 2, 3))}, r"p\.npz: traffic \(2, 1, 2, 3\) has only one slot"),
        ({"mask": np.ones((2, 3, 2), bool)}, r"p\.npz: traffic .* and mask \(2, 3, 2\) must be"),
        ({"mask": np.full((2, 2, 3), 2)}, r"p\.npz: mask holds 2; wanted bool"),
        ({"mask": np.full((2, 2, 3), 0.5)}, r"p\.npz: mask holds float64; wanted bool"),
        ({"mask": np.array([True, False]).repeat(6).reshape(2, 2, 3)}, r"p\.npz: mask\[1\] has no cell"),
        ({"step_minutes": 7}, r"p\.npz: step_minutes is 7; wanted one whole number"),
        ({"step_minutes": 0}, r"p\.npz: step_minutes is 0"),
        ({"step_minutes": np.array([15, 15])}, r"p\.npz: step_minutes is \[15, 15\]"),
        ({"step_minutes": "15"}, r"p\.npz: step_minutes is 15"),
    ],
)
def test_what_does_not_fit_is_named_with_the_file(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        load(write(tmp_path / "p.npz", **changes))
