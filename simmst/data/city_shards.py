"""Many cities in few files: Parquet shards with one row group for each city, read city by city."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from simmst.data.city_manifest import MANIFEST_FILE, read_manifest
from simmst.data.dataset import TrafficDataset
from simmst.data.readers.arrays import DESCRIPTION
from simmst.errors import DataError
from simmst.foundation.documents import DocumentError, decode_json
from simmst.foundation.extras import import_extra
from simmst.foundation.files import write_atomically

SHARD_PATTERN = "cities-*.parquet"
_VERSION = 1
_COLUMN = "activity"
_KEY = b"simmst"
_ARRAYS = ("mask", "cell_id", "lonlat")
_MOST_VALUES = 1 << 29  # of a city: two gigabytes
_LATEST = 253_402_300_800  # the year 10000, in seconds
_LONGEST = 7 * 24 * 60  # minutes of a slot


def write_shard(path: str | Path, cities: Iterable[TrafficDataset]) -> Path:
    """Write cities to one Parquet file, whole or not at all, with one city at a time in memory.

    A row group holds the activity of one city, flattened in the order (T, K, H, W) and compressed with zstd after a
    byte-stream split. The file's metadata hold everything else, so `CityShards` returns equal data sets.

    Args:
        path: file to write, named ``cities-*.parquet`` so that `CityShards` finds it.
        cities: cities to write, at least one.

    Returns:
        The path.

    Raises:
        DataError: there is no city, or a city's places have names (simulated cities have none).
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
        options["write_page_checksum"] = True  # a flipped bit is noticed when the city is read
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
    """The cities of a folder of shards, in the order of the files' names, each read on access.

    Args:
        folder: folder of ``cities-*.parquet`` files.
        keep: number of cities that stay in memory, the last used ones.

    Raises:
        DataError: there is no shard, or a file is not a shard; the message names it.

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
        self._headers: list[CityHeader] = []
        for path in files:
            headers = read_headers(path)
            self._places += [(path, group) for group in range(len(headers))]
            self._headers += headers
        _check_complete(self.folder, Counter(path.name for path, _ in self._places))

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
        """Return the cities' names, without reading the cities."""
        return [header.name for header in self._headers]

    def shape(self, index: int) -> tuple[int, int, int, int]:
        """Return the shape (T, K, H, W) of a city, without reading it."""
        return self._headers[index].shape

    def _read(self, number: int) -> TrafficDataset:
        path, group = self._places[number]
        header = self._headers[number]
        with _open(path) as file:
            values = file.metadata.row_group(group).num_rows
            if values != header.size:  # before they are unpacked
                raise _damaged(path, f"{header.name} has {values} values where {header.shape} are wanted")
            try:
                flat = file.read_row_group(group, columns=[_COLUMN]).column(0).to_numpy()
            except _unreadable() as error:
                raise _damaged(path, error) from error
        return _dataset(flat, header, path)


@dataclass
class PackedArray:
    """An array of a header: zlib-compressed bytes as base64."""

    dtype: Literal["|b1", "<i8", "<f8"]
    shape: tuple[int, ...]
    zlib: str

    def unpack(self) -> np.ndarray:
        """Return the array, unpacking no more bytes than its shape needs."""
        dtype = np.dtype(self.dtype)
        size = math.prod(self.shape) * dtype.itemsize
        data = zlib.decompressobj().decompress(base64.b64decode(self.zlib), max(size, 0) + 1)
        if len(data) != size:
            raise ValueError(f"an array of {self.shape} does not have its {size} bytes")
        return np.frombuffer(data, dtype=dtype).reshape(self.shape).copy()


@dataclass
class CityHeader:
    """What a shard says about a city besides its activity."""

    services: tuple[str, ...]
    geometry: str
    timezone: str
    country: str | None
    unit: str
    name: str
    surrogate: bool
    cell_size_m: float | None
    mask: PackedArray
    cell_id: PackedArray
    lonlat: PackedArray | None
    shape: tuple[int, int, int, int]
    start_utc_s: int
    step_minutes: int

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or self.size > _MOST_VALUES:
            raise ValueError(f"shape is {self.shape}; a city has 1 to {_MOST_VALUES:,} values")
        if abs(self.start_utc_s) > _LATEST or not 1 <= self.step_minutes <= _LONGEST:
            raise ValueError(f"slots of {self.step_minutes} minutes from {self.start_utc_s} are not a valid time axis")

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass
class _ShardHeader:
    version: int
    cities: list[CityHeader]


def read_headers(path: Path) -> list[CityHeader]:
    """Read what a shard says about its cities.

    Raises:
        DataError: the file is damaged, or is not a shard of this version.
    """
    with _open(path) as file:
        text, groups = (file.metadata.metadata or {}).get(_KEY), file.metadata.num_row_groups
    try:
        found = decode_json(text or b"{}", _ShardHeader)
        if found.version != _VERSION:
            raise DocumentError(f"version {found.version}, wanted {_VERSION}")
        if len(found.cities) != groups:
            raise DocumentError(f"{len(found.cities)} cities in {groups} groups of rows")
    except DocumentError as error:
        raise DataError(
            f"{path} is not a shard of simulated cities ({error}); remove it from the folder, or simulate into another"
        ) from error
    return found.cities


def _check_complete(folder: Path, there: Counter[str]) -> None:
    """Refuse a folder that lacks cities on its manifest's list."""
    manifest = read_manifest(folder)
    listed = Counter(city.file for city in manifest.cities) if manifest else Counter[str]()
    for name, number in listed.items():
        if number > there[name]:
            raise DataError(
                f"{folder / name} holds {there[name]} of the {number} cities that {MANIFEST_FILE} lists; simulate into "
                "the folder again with the same settings, which makes the missing ones"
            )


def _open(path: Path) -> Any:
    parquet = import_extra("pyarrow.parquet", extra="forecast")
    try:
        return parquet.ParquetFile(path, page_checksum_verification=True)
    except _unreadable() as error:
        raise _damaged(path, error) from error


def _unreadable() -> tuple[type[Exception], ...]:
    pa = import_extra("pyarrow", extra="forecast")
    return (OSError, ValueError, LookupError, NotImplementedError, MemoryError, pa.ArrowException)


def _damaged(path: Path, error: object) -> DataError:
    return DataError(f"{path} cannot be read as Parquet ({error}); remove it and simulate its cities again")


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


def _dataset(flat: np.ndarray, header: CityHeader, path: Path) -> TrafficDataset:
    seconds = header.start_utc_s + np.arange(header.shape[0], dtype=np.int64) * header.step_minutes * 60
    text: dict[str, Any] = {key: getattr(header, key) for key in DESCRIPTION}
    try:
        arrays: dict[str, Any] = {
            key: None if (one := getattr(header, key)) is None else one.unpack() for key in _ARRAYS
        }
    except (ValueError, zlib.error) as error:
        raise DataError(
            f"{path}: {header.name} is damaged ({error}); remove it and simulate its cities again"
        ) from error
    return TrafficDataset(activity=flat.reshape(header.shape), time=seconds.astype("datetime64[s]"), **text, **arrays)


def _pack(array: np.ndarray | None) -> dict[str, Any] | None:
    if array is None:
        return None
    data = base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes())).decode("ascii")
    return {"dtype": array.dtype.str, "shape": list(array.shape), "zlib": data}
