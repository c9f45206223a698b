"""The official grids of Milan and Trento."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simmst.data.directory import data_directory
from simmst.errors import ConfigError, DataError

# Height and width in cells, edge in metres.
_RASTERS = {"milan": (100, 100, 235.0), "trento": (98, 117, 1000.0)}
GRIDS = tuple(_RASTERS)
GRIDS_FILE = "milan_trento_grids.npz"


@dataclass(frozen=True, eq=False)
class Grid:
    """A raster of numbered cells: id = row * width + column + 1, row 0 south, column 0 west.

    Attributes:
        name: ``"milan"`` or ``"trento"``.
        mask: bool (H, W), True at the cells of the official list.
        cell_size_m: edge of a cell in metres.
        lonlat: float64 (H, W, 2), NaN off the list; None without the grids file.
        official: whether `mask` is the official list; False (Trento without the grids file) means the whole raster.

    Example:
        >>> milan = load_grid("milan")
        >>> milan.positions(np.array([1, 2, 101, 10000])).tolist()
        [[0, 0], [0, 1], [1, 0], [99, 99]]
    """

    name: str
    mask: np.ndarray
    cell_size_m: float
    lonlat: np.ndarray | None
    official: bool

    @property
    def cell_id(self) -> np.ndarray:
        """Cell ids, int64 (H, W), -1 off the list."""
        ids = np.arange(1, self.mask.size + 1, dtype=np.int64).reshape(self.mask.shape)
        return np.where(self.mask, ids, -1)

    def contains(self, ids: np.ndarray) -> np.ndarray:
        """Return whether each id is a cell of the grid, bool, with the shape of `ids`."""
        inside: np.ndarray = (ids >= 1) & (ids <= self.mask.size)
        inside &= self.mask.reshape(-1)[np.where(inside, ids, 1) - 1]
        return inside

    def positions(self, ids: np.ndarray) -> np.ndarray:
        """Return the row and column of cells, int64 (..., 2).

        Raises:
            DataError: an id is not on the grid.
        """
        ids = np.asarray(ids).astype(np.int64)
        inside = self.contains(ids)
        if not inside.all():
            raise DataError(f"cell {int(ids[~inside].flat[0])} is not on the {self.name} grid, {self.describe()}")
        return np.stack(np.divmod(ids - 1, self.mask.shape[1]), axis=-1)

    def crop(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the cell ids and places of the box low <= (row, column) < high."""
        box = tuple(slice(int(start), int(stop)) for start, stop in zip(low, high, strict=True))
        return self.cell_id[box], None if self.lonlat is None else self.lonlat[box]

    def describe(self) -> str:
        """Describe the ids in words, for messages."""
        return f"which has {int(self.mask.sum())} cells with ids in 1..{self.mask.size}"


def load_grid(name: str, path: str | Path | None = None) -> Grid:
    """Load an official grid.

    Milan is the full 100 x 100 raster. Trento's 6,575 valid cells of a 98 x 117 raster come from the grids file;
    without it the whole raster counts, and `Grid.official` is False.

    Args:
        name: ``"milan"`` or ``"trento"``.
        path: grids file, or a folder that holds it; by default the data folder, if there is one.

    Raises:
        ConfigError: the name is unknown.
        DataError: `path` was given and has no grids file.
    """
    if name not in _RASTERS:
        raise ConfigError(f"unknown grid {name!r}; give one of {', '.join(GRIDS)}")
    height, width, size = _RASTERS[name]
    file = _grids_file(path)
    if file is None:
        return Grid(name, np.ones((height, width), dtype=bool), size, None, official=name == "milan")
    with np.load(file, allow_pickle=False) as arrays:
        keys = (f"{name}_cell_id", f"{name}_lonlat")
        if not set(keys) <= set(arrays.files):
            raise DataError(f"{file} has no {keys[0]} and {keys[1]}; it holds {', '.join(arrays.files)}")
        ids, places = (arrays[key] for key in keys)
    mask = np.zeros(height * width, dtype=bool)
    lonlat = np.full((height * width, 2), np.nan)
    mask[ids - 1] = True
    lonlat[ids - 1] = places
    return Grid(name, mask.reshape(height, width), size, lonlat.reshape(height, width, 2), official=True)


def _grids_file(path: str | Path | None) -> Path | None:
    """Return the grids file at or in `path`, which must lead to it, or in the data folder, which may lack it."""
    if path is not None:
        file = Path(path) if Path(path).is_file() else Path(path) / GRIDS_FILE
        if not file.is_file():
            raise DataError(f"there is no {file}; give the path of {GRIDS_FILE}")
        return file
    try:
        file = data_directory() / GRIDS_FILE
    except DataError:  # the folder is optional here
        return None
    return file if file.is_file() else None
