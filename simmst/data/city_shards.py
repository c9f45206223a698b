"""Many cities in few files: Parquet shards, one row group a city, read city by city."""

from __future__ import annotations

import base64
import json
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simmst.data.dataset import TrafficDataset
from simmst.data.readers.arrays import DESCRIPTION
from simmst.errors import DataError
from simmst.foundation.extras import import_extra
from simmst.foundation.files import write_atomically

SHARD_PATTERN = "cities-*.parquet"
_VERSION = 1
_COLUMN = "activity"
_KEY = b"simmst"
_ARRAYS = ("mask", "cell_id", "lonlat")


def write_shard(path: str | Path, cities: Iterable[TrafficDataset]) -> Path:
    """Write cities to one Parquet file, whole or not at all; one city at a time is in memory beside its source.

    A row group holds the activity of one city, flat in the order (T, K, H, W), compressed with zstd after a byte-stream
    split; the file's metadata hold everything else, so that `CityShards` gives back equal data sets.

    Args:
        path: the file, named ``cities-*.parquet`` to be found by `CityShards`.
        cities: at least one.

    Returns:
        The path.

    Raises:
        DataError: there is no city, or one whose places have names (simulated cities have none).
        MissingExtraError: pyarrow is not installed.

    Example:
        >>> import tempfile
        >>> city = TrafficDataset.from_arrays(np.ones((24, 3, 4)), np.arange(24) * 3600, country=None)
        >>> path = write_shard(Path(tempfile.mkdtemp()) / "cities-00000.parquet", [city, city.with_(name="other")])
        >>> [city.name for city in CityShards(path.parent)]
        ['traffic', 'other']
    """
    pa = import_extra("pyarrow", extra="forecast")
    parquet = import_extra("pyarrow.parquet", extra="forecast")

    def write(temporary: Path) -> None:
        headers = []
        schema = pa.schema([pa.field(_COLUMN, pa.float32(), nullable=False)])
        options = {"compression": "zstd", "compression_level": 1, "use_dictionary": False, "write_statistics": False}
        with parquet.ParquetWriter(temporary, schema, use_byte_stream_split=True, **options) as writer:
            for city in cities:
                headers.append(_header(city))
                flat = pa.array(np.ascontiguousarray(city.activity).reshape(-1))
                writer.write_table(pa.table([flat], schema=schema), row_group_size=max(len(flat), 1))
            if not headers:
                raise DataError(f"there is no city to write to {path}; give at least one")
            writer.add_key_value_metadata({_KEY: json.dumps({"version": _VERSION, "cities": headers})})

    return write_atomically(path, write)


class CityShards(Sequence[TrafficDataset]):
    """The cities of a folder of shards, in the order of the files' names, read one by one when asked for.

    Args:
        folder: holds ``cities-*.parquet`` files.
        keep: how many cities stay in memory, the last used ones.

    Raises:
        DataError: there is no shard, or a file that is none; the message names it.

    Example:
        >>> import tempfile
        >>> city = TrafficDataset.from_arrays(np.ones((24, 3, 4)), np.arange(24) * 3600, country=None)
        >>> folder = write_shard(Path(tempfile.mkdtemp()) / "cities-00000.parquet", [city]).parent
        >>> shards = CityShards(folder)
        >>> len(shards), shards[0].activity.shape
        (1, (24, 1, 3, 4))
    """

    def __init__(self, folder: str | Path, *, keep: int = 8) -> None:
        self.folder = Path(folder)
        if keep < 1:
            raise DataError(f"keep is {keep}; at least one city must stay in memory")
        files = sorted(self.folder.glob(SHARD_PATTERN))
        if not files:
            raise DataError(f"{self.folder} holds no {SHARD_PATTERN}; write cities with: simmst simulate --out DIR")
        self._keep = keep
        self._kept: OrderedDict[int, TrafficDataset] = OrderedDict()
        self._places: list[tuple[Path, int]] = []
        self._headers: list[dict[str, Any]] = []
        for path in files:
            headers = read_headers(path)
            self._places += [(path, group) for group in range(len(headers))]
            self._headers += headers

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        """Read a city, or a list of them for a slice.

        Raises:
            IndexError: there is no city of this number.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"city {index} is outside the {len(self)} cities of {self.folder}")
        number = int(index) % len(self)
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        city = self._read(number)
        self._kept[number] = city
        if len(self._kept) > self._keep:
            self._kept.popitem(last=False)
        return city

    def __iter__(self) -> Iterator[TrafficDataset]:
        return (self[i] for i in range(len(self)))

    def names(self) -> list[str]:
        """The cities' names, without reading the cities."""
        return [header["name"] for header in self._headers]

    def shape(self, index: int) -> tuple[int, int, int, int]:
        """(T, K, H, W) of a city, without reading it."""
        steps, services, height, width = self._headers[index]["shape"]
        return steps, services, height, width

    def _read(self, number: int) -> TrafficDataset:
        path, group = self._places[number]
        with _open(path) as file:
            flat = file.read_row_group(group, columns=[_COLUMN]).column(0).to_numpy()
        return _dataset(flat, self._headers[number], path)


def read_headers(path: Path) -> list[dict[str, Any]]:
    """Read what a shard says of its cities.

    Raises:
        DataError: the file is damaged, or is no shard of this version.
    """
    with _open(path) as file:
        text, groups = (file.metadata.metadata or {}).get(_KEY), file.metadata.num_row_groups
    found = json.loads(text) if text else {}
    if found.get("version") != _VERSION or len(found.get("cities", ())) != groups:
        raise DataError(
            f"{path} is no shard of simulated cities (version {found.get('version')!r}, wanted {_VERSION}); "
            "remove it from the folder, or simulate into another one"
        )
    headers: list[dict[str, Any]] = found["cities"]
    return headers


def _open(path: Path) -> Any:
    pa = import_extra("pyarrow", extra="forecast")
    parquet = import_extra("pyarrow.parquet", extra="forecast")
    try:
        return parquet.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path} cannot be read as Parquet ({error}); remove it and simulate its cities anew"
        ) from error


def _header(city: TrafficDataset) -> dict[str, Any]:
    if city.cell_name is not None:
        raise DataError(f"{city.name} has names of places, which shards do not hold; save it with TrafficDataset.save")
    return {
        **{key: getattr(city, key) for key in DESCRIPTION},
        **{key: _pack(getattr(city, key)) for key in _ARRAYS},
        "shape": list(city.activity.shape),
        "start_utc_s": int(city.time[0].astype(np.int64)),
        "step_minutes": city.step_minutes,
    }


def _dataset(flat: np.ndarray, header: dict[str, Any], path: Path) -> TrafficDataset:
    shape = tuple(header["shape"])
    if flat.size != np.prod(shape):
        raise DataError(f"{path}: {header['name']} has {flat.size} values where {shape} are wanted; simulate it anew")
    seconds = header["start_utc_s"] + np.arange(shape[0], dtype=np.int64) * header["step_minutes"] * 60
    text = {key: header[key] for key in DESCRIPTION} | {"services": tuple(header["services"])}
    arrays = {key: _unpack(header[key]) for key in _ARRAYS}
    return TrafficDataset(activity=flat.reshape(shape), time=seconds.astype("datetime64[s]"), **text, **arrays)


def _pack(array: np.ndarray | None) -> dict[str, Any] | None:
    if array is None:
        return None
    data = base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes())).decode("ascii")
    return {"dtype": array.dtype.str, "shape": list(array.shape), "zlib": data}


def _unpack(packed: dict[str, Any] | None) -> Any:
    if packed is None:
        return None
    data = np.frombuffer(zlib.decompress(base64.b64decode(packed["zlib"])), dtype=np.dtype(packed["dtype"]))
    return data.reshape(packed["shape"]).copy()
