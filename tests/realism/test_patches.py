"""Patches of other operators: they are read from files, and lie in the band of the default prior, not of the usual."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from simmst.data import TrafficDataset, load
from simmst.errors import DataError
from simmst.realism import compare, compare_files, read_patches, split_patches
from simmst.simulation import DomainPrior


def patches(name, days=5):
    """The first days of a real file; the last two are for evaluation."""
    path = Path(os.environ.get("SIMMST_DATA", "nowhere")) / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"SIMMST_DATA names no folder with {name}.npz")
    return [patch.slice_steps(0, days * 1440 // patch.step_minutes) for patch in read_patches(path)]


def test_patches_start_at_local_midnight_and_are_masked(tmp_path):
    mask = np.ones((2, 3, 4), bool)
    mask[0, 1, 2] = False
    np.savez(tmp_path / "p.npz", traffic=np.ones((2, 96, 3, 4)), mask=mask, step_minutes=15)
    first, second = read_patches(tmp_path / "p.npz", start="2020-03-02", timezone="Asia/Tokyo", service="call")
    assert (first.step_minutes, first.num_cells, second.num_cells) == (15, 11, 12)
    assert (str(first.time[0]), first.timezone, first.services) == ("2020-03-01T15:00:00", "Asia/Tokyo", ("call",))
    assert np.isnan(first.activity[:, 0, 1, 2]).all()


def test_files_that_hold_no_patches_are_named(tmp_path):
    np.savez(tmp_path / "p.npz", traffic=np.ones((2, 96)))
    with pytest.raises(DataError, match=r"p\.npz holds no patches: .*mask"):
        read_patches(tmp_path / "p.npz")
    np.savez(tmp_path / "p.npz", traffic=np.ones((2, 96)), mask=np.ones((2, 4)), step_minutes=15)
    with pytest.raises(DataError, match=r"traffic \(2, 96\) and mask \(2, 4\) must be"):
        read_patches(tmp_path / "p.npz")
    with pytest.raises(DataError, match=r"there is no file .*none\.npz"):
        read_patches(tmp_path / "none.npz")


def test_a_file_of_patches_is_compared_patch_by_patch(tmp_path):
    rng = np.random.default_rng(0)
    mask = np.ones((2, 3, 4), bool)
    mask[0, 1, 2] = False
    np.savez(tmp_path / "p.npz", traffic=rng.gamma(2.0, 9.0, (2, 48, 3, 4)), mask=mask, step_minutes=60)
    whole = load(tmp_path / "p.npz")
    for patch, alone in zip(split_patches(whole), read_patches(tmp_path / "p.npz"), strict=True):
        np.testing.assert_array_equal(patch.activity, alone.activity)
        assert patch.activity.shape == (48, 1, 3, 4)
    files = compare_files([tmp_path / "p.npz"], cities=20).files
    assert [file.name for file in files] == ["p-0", "p-1"]
    assert [file.description.split(", ")[2] for file in files] == ["11 cells of 3 x 4", "12 cells of 3 x 4"]


def test_other_data_sets_are_not_split(tmp_path):
    times = np.arange(28) * 600
    names = np.array([["Ala", "Arco"]])
    for cell_name in (None, names):
        data = TrafficDataset.from_arrays(np.ones((28, 1, 1, 2)), times, cell_name=cell_name)
        assert split_patches(data) == [data]


@pytest.mark.slow(of=("simmst/data", "simmst/realism", "simmst/simulation"))
@pytest.mark.parametrize("name", ["shandong_12_patches_hourly", "nanjing_8_patches_15min"])
def test_patches_lie_in_the_band_of_the_default_prior_alone(name):
    real = patches(name)
    files = compare(real, cities=60, seed=1).files
    assert np.mean([len(file.outside) <= file.usual[1] for file in files]) > 0.8
    for key in ("log_std_time", "night", "hours_1", "hours_24", "roughness"):
        rows = [row for file in files for row in file.rows if row.statistic.key == key]
        low, value, high = (np.median([getattr(row, end) for row in rows]) for end in ("low", "real", "high"))
        assert low <= value <= high, key
    usual = compare(real[:3], cities=40, seed=1, prior=DomainPrior.usual()).files
    assert all("night" in {row.statistic.key for row in file.outside} for file in usual)
