from __future__ import annotations

import numpy as np
import pytest

from simmst.data import CityShards, TrafficDataset, write_shard
from simmst.errors import DataError


def city(name: str = "one", *, shape: tuple[int, ...] = (24, 2, 3, 4), seed: int = 0, **attributes) -> TrafficDataset:
    activity = np.random.default_rng(seed).gamma(1.0, 50.0, shape).astype(np.float32)
    activity[3, :, 1, 1] = np.nan
    attributes = {"services": ["call", "sms"], "timezone": "Europe/Rome", "name": name, **attributes}
    return TrafficDataset.from_arrays(activity, np.arange(shape[0]) * 3600 + 1383260400, **attributes)


def assert_equal(one: TrafficDataset, two: TrafficDataset) -> None:
    for field in one.__dataclass_fields__:
        a, b = getattr(one, field), getattr(two, field)
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype, field
        else:
            assert a == b, field


def test_what_is_written_is_read(tmp_path):
    mask = np.ones((3, 4), bool)
    mask[0, 0] = False
    lonlat = np.random.default_rng(1).random((3, 4, 2))
    cities = [
        city(),
        city("other", shape=(48, 2, 5, 2), seed=1, country=None, surrogate=True, cell_size_m=235.0),
        city("masked", mask=mask).with_(lonlat=lonlat),
    ]
    write_shard(tmp_path / "cities-00000.parquet", cities[:2])
    write_shard(tmp_path / "cities-00001.parquet", cities[2:])
    shards = CityShards(tmp_path, keep=1)
    assert len(shards) == 3
    assert shards.names() == ["one", "other", "masked"]
    assert shards.shape(1) == (48, 2, 5, 2)
    for read, written in zip(shards, cities, strict=True):
        assert_equal(read, written)
    assert_equal(shards[-1], cities[2])
    assert [found.name for found in shards[1:]] == ["other", "masked"]
    with pytest.raises(IndexError, match="city 3 is outside the 3 cities"):
        shards[3]


def test_only_a_few_cities_stay_in_memory(tmp_path):
    write_shard(tmp_path / "cities-00000.parquet", [city(str(i), seed=i) for i in range(4)])
    shards = CityShards(tmp_path, keep=2)
    first = shards[0]
    assert shards[0] is first
    shards[1]
    assert shards[0] is first, "used last"
    shards[2]
    shards[3]
    assert shards[0] is not first
    assert len(shards._kept) == 2


def test_a_failure_leaves_nothing(tmp_path):
    def failing():
        yield city()
        raise RuntimeError("out of power")

    with pytest.raises(RuntimeError, match="out of power"):
        write_shard(tmp_path / "cities-00000.parquet", failing())
    with pytest.raises(DataError, match="there is no city to write"):
        write_shard(tmp_path / "cities-00000.parquet", [])
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_not_shards_are_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    with pytest.raises(DataError, match=r"holds no cities-\*\.parquet; write cities with: simmst simulate"):
        CityShards(tmp_path)
    path = tmp_path / "cities-00000.parquet"
    pyarrow.parquet.write_table(pa.table({"activity": [1.0]}), path)
    with pytest.raises(DataError, match=r"cities-00000\.parquet is not a shard of simulated cities"):
        CityShards(tmp_path)
    path.write_text("not Parquet at all")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        CityShards(tmp_path)
    path.unlink()
    named = city(cell_name=np.arange(12).astype(str).reshape(3, 4))
    with pytest.raises(DataError, match="names of places, which shards do not hold"):
        write_shard(path, [named])
