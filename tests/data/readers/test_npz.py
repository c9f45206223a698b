from __future__ import annotations

import numpy as np
import pytest

from simmst.data import TrafficDataset, load
from simmst.errors import DataError


def city(**kwargs):
    values = np.random.default_rng(0).gamma(1.0, 20.0, (48, 2, 3, 4))
    values[3, 0, 0, 0] = np.nan
    return TrafficDataset.from_arrays(values, np.arange(48) * 3600, services=["call", "sms"], **kwargs)


def test_save_and_read_back_exactly(tmp_path):
    mask = np.ones((3, 4), dtype=bool)
    mask[1, 1] = False
    data = city(
        mask=mask,
        timezone="Asia/Tokyo",
        country=None,
        unit="Mbit",
        name="tokyo",
        surrogate=True,
        cell_size_m=500.0,
        lonlat=np.ones((3, 4, 2)),
        cell_name=np.full((3, 4), "ward"),
    )
    path = data.save(tmp_path / "city")
    assert path.name == "city.npz"
    assert [p.name for p in tmp_path.iterdir()] == ["city.npz"]
    for back in (TrafficDataset.from_npz(path), load(path)):
        for key in ("activity", "time", "mask", "cell_id", "lonlat", "cell_name"):
            np.testing.assert_array_equal(getattr(back, key), getattr(data, key))
            assert getattr(back, key).dtype == getattr(data, key).dtype
        for key in ("services", "geometry", "timezone", "country", "unit", "name", "surrogate", "cell_size_m"):
            assert getattr(back, key) == getattr(data, key)


def test_nothing_half_written(tmp_path, monkeypatch):
    path = city().save(tmp_path / "city.npz")
    before = path.read_bytes()

    def fail(file, **arrays):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        city(name="other").save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["city.npz"]


def test_a_file_cut_short(tmp_path):
    path = city().save(tmp_path / "city.npz")
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"city\.npz is not a readable \.npz file"):
        TrafficDataset.from_npz(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="not a readable"):
        TrafficDataset.from_npz(path)


def test_unknown_layout_and_missing_file(tmp_path):
    np.savez(tmp_path / "x.npz", speed=np.ones(3))
    with pytest.raises(DataError, match="holds speed, which is not a known layout"):
        TrafficDataset.from_npz(tmp_path / "x.npz")
    with pytest.raises(DataError, match="there is no file"):
        TrafficDataset.from_npz(tmp_path / "y.npz")


def test_another_version(tmp_path):
    path = city().save(tmp_path / "city.npz")
    arrays = dict(np.load(path))
    arrays["simmst"] = np.array('{"version": 99}')
    np.savez(path, **arrays)
    with pytest.raises(DataError, match="layout version 99"):
        TrafficDataset.from_npz(path)


def test_layouts_of_extracts_that_a_test_writes(tmp_path):
    time = np.arange(12) * 600
    np.savez(
        tmp_path / "cells.npz",
        activity=np.arange(72.0).reshape(12, 2, 3),
        cell_id=np.array([105, 302]),
        time_utc_s=time,
        service=np.array(["call", "sms", "internet"]),
    )
    data = load(tmp_path / "cells.npz")
    assert data.activity.shape == (12, 3, 3, 4)
    assert data.cell_id[data.mask].tolist() == [105, 302]
    assert data.activity[1, :, 0, 3].tolist() == [6, 7, 8]
    assert data.activity[1, :, 2, 0].tolist() == [9, 10, 11]
    np.savez(tmp_path / "bad.npz", activity=np.ones((12, 1, 1)), cell_id=[10_001], time_utc_s=time, service=["a"])
    with pytest.raises(DataError, match="cell 10001 is not on the milan grid"):
        load(tmp_path / "bad.npz")


def test_a_flipped_byte_is_one_kind_of_error(tmp_path):
    """Depending on the byte, the zip reader, the decompression or the header raises."""
    path = city().save(tmp_path / "city.npz")
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), 23):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            TrafficDataset.from_npz(path)
        except DataError:
            refused += 1
    assert refused > 20


def test_a_lone_array(tmp_path):
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(DataError, match=r"a\.npz is not a readable \.npz file"):
        TrafficDataset.from_npz(tmp_path / "a.npz")
