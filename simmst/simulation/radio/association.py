"""The sparse association of grid cells with radio sectors, and its three products."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_CHUNK_VALUES = 1 << 22  # values gathered at a time, 16 MiB of float32
_FEW = 8  # most entries of a target; `np.add.reduceat` sums more in another order


@dataclass(frozen=True, eq=False)
class Association:
    r"""Shares :math:`a_{vi}` of sector v in the service of cell i, at most a few sectors per cell.

    The shares of each cell sum to one over the sectors, so summing the cells' activity by sector conserves the total.
    The sums over the cells, :math:`A_v = \sum_i a_{vi}`, are the sectors' areas in cells. Products are computed without
    a matrix library, so their bits depend neither on the number of threads nor on the process.

    Attributes:
        cell: int64 ``(entries,)``, cell of each entry; entries are sorted by sector, then cell.
        sector: int64 ``(entries,)``, sector of each entry, 0 to num_sectors - 1, each present.
        share: float32 ``(entries,)``, above zero.
        num_cells: cells of the grid.
        num_sectors: sectors that serve at least one cell.
    """

    cell: np.ndarray
    sector: np.ndarray
    share: np.ndarray
    num_cells: int
    num_sectors: int

    @classmethod
    def from_shares(cls, sector: np.ndarray, share: np.ndarray) -> Association:
        """Build from the sectors of each cell.

        Args:
            sector: int ``(cells, m)``, any numbering; sectors that serve nothing are dropped and the rest renumbered.
            share: float ``(cells, m)``, not negative; each cell's shares are divided by their sum.

        Raises:
            ValueError: shapes differ, or a cell has no share at all.

        Example:
            >>> association = Association.from_shares(np.array([[7, 3], [3, 7]]), np.array([[1.0, 0.0], [3.0, 1.0]]))
            >>> association.dense().tolist()
            [[0.0, 0.75], [1.0, 0.25]]
        """
        if sector.shape != share.shape or sector.ndim != 2:
            raise ValueError(f"sector {sector.shape} and share {share.shape} must both be (cells, m)")
        total = share.sum(axis=1, keepdims=True, dtype=np.float64)
        if not np.all(total > 0):
            raise ValueError(f"cell {int(np.argmin(total))} has no share in any sector; give each cell at least one")
        cell, column = np.nonzero(share)
        numbers, renumbered = np.unique(sector[cell, column], return_inverse=True)
        order = np.argsort(renumbered, kind="stable")
        normalised = (share / total)[cell, column].astype(np.float32)
        return cls(cell[order], renumbered[order], normalised[order], len(share), len(numbers))

    @property
    def area(self) -> np.ndarray:
        """Area of each sector in cells, float64 ``(sectors,)``."""
        return np.bincount(self.sector, weights=self.share, minlength=self.num_sectors)

    def gather(self, values: np.ndarray) -> np.ndarray:
        r"""Sum cells by sector, :math:`R_v = \sum_i a_{vi} x_i`; totals are conserved.

        Args:
            values: float ``(cells, n)``.

        Returns:
            float32 ``(sectors, n)``.
        """
        return _weighted_rows(values, self.cell, self.share, self.sector, self.num_sectors)

    def average(self, values: np.ndarray) -> np.ndarray:
        r"""Average the sectors that serve each cell, :math:`y_i = \sum_v a_{vi} z_v`.

        Args:
            values: float ``(sectors, n)``.

        Returns:
            float32 ``(cells, n)``.
        """
        order = np.argsort(self.cell, kind="stable")
        return _weighted_rows(values, self.sector[order], self.share[order], self.cell[order], self.num_cells)

    def spread(self, records: np.ndarray) -> np.ndarray:
        r"""Spread sectors' records over the cells that they cover, :math:`S_i = \sum_v R_v a_{vi} / A_v`; totals are
        conserved.

        Args:
            records: float ``(sectors, n)``.

        Returns:
            float32 ``(cells, n)``.

        Source:
            Barlacchi et al. 2015, "A multi-source dataset of urban life in the city of Milan and the Province of
            Trentino".
        """
        order = np.argsort(self.cell, kind="stable")
        weight = (self.share / self.area[self.sector]).astype(np.float32)
        return _weighted_rows(records, self.sector[order], weight[order], self.cell[order], self.num_cells)

    def dense(self) -> np.ndarray:
        """Return the shares as a float32 matrix ``(sectors, cells)``; columns sum to one."""
        matrix = np.zeros((self.num_sectors, self.num_cells), np.float32)
        matrix[self.sector, self.cell] = self.share
        return matrix


def _weighted_rows(
    values: np.ndarray, source: np.ndarray, weight: np.ndarray, target: np.ndarray, num_targets: int
) -> np.ndarray:
    """Sum ``weight * values[source]`` by target, over rows; targets ascend and each is present at least once."""
    starts = np.searchsorted(target, np.arange(num_targets))
    count = np.diff(starts, append=len(target))
    if count.max() <= _FEW:
        return _few_rows(values.astype(np.float32, copy=False), source, weight, starts, count)
    out = np.empty((num_targets, values.shape[1]), np.float32)
    chunk = max(1, _CHUNK_VALUES // max(len(source), 1))
    for first in range(0, values.shape[1], chunk):
        part = slice(first, first + chunk)
        rows = values[:, part].astype(np.float32, copy=False)[source]
        rows *= weight[:, None]
        np.add.reduceat(rows, starts, axis=0, out=out[:, part])
    return out


def _few_rows(
    values: np.ndarray, source: np.ndarray, weight: np.ndarray, starts: np.ndarray, count: np.ndarray
) -> np.ndarray:
    """Sum a few rows for each target in passes over whole rows: faster than `np.add.reduceat`, with the same bits."""
    out: np.ndarray = values[source[starts]]
    out *= weight[starts, None]
    rest = np.zeros_like(out)
    for rank in range(1, int(count.max())):
        rows = np.flatnonzero(count > rank)
        entry = starts[rows] + rank
        part = values[source[entry]]
        part *= weight[entry, None]
        if len(rows) == len(out):
            rest += part
        else:
            rest[rows] += part
    out += rest
    return out
