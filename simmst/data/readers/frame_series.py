"""The series of a table: its cells and services, and the series that rows and columns belong to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from simmst.data.readers.frame_columns import FrameColumns
from simmst.errors import DataError


@dataclass(frozen=True)
class _Keys:
    """Distinct keys in order of appearance, and the index of each row's or each column's key among them."""

    keys: np.ndarray
    of_rows: np.ndarray | None
    of_columns: np.ndarray | None

    def at(self, row: int, column: int | None) -> Any:
        """Return the key of a value; None where only the column could tell it."""
        if self.of_rows is not None:
            key = self.keys[self.of_rows[row]]
        elif self.of_columns is not None and (column is not None or len(self.keys) == 1):
            key = self.keys[self.of_columns[column or 0]]
        else:
            return None
        return key.item() if isinstance(key, np.generic) else key

    def codes(self) -> np.ndarray:
        """Return the indices as (R, 1) or (1, M)."""
        if self.of_rows is not None:
            return self.of_rows[:, None]
        assert self.of_columns is not None  # noqa: S101 - one of the two is set
        return self.of_columns[None]


@dataclass(frozen=True)
class FrameSeries:
    """The series of a table.

    Attributes:
        columns: table with the roles of its columns.
        row: series that each row's time belongs to, int64 (R,).
    """

    columns: FrameColumns
    cell: _Keys
    service: _Keys
    row: np.ndarray

    @classmethod
    def of(cls, columns: FrameColumns, service: str, pd: Any) -> FrameSeries:
        """Find the series of a table; `service` is the name to use where the table names none.

        Raises:
            DataError: an identifier is empty, identifiers are of several types, or two columns hold one series.
        """
        number = columns.values.shape[1]
        cell = _keys(columns.row_ids, columns.column_ids or [0] * number, columns, "unique_id", pd)
        kind = _keys(columns.row_services, columns.column_services or [service] * number, columns, "service", pd)
        row = np.zeros(len(columns.times), dtype=np.int64)
        for keys in (cell, kind):
            if keys.of_rows is not None:
                row = row * len(keys.keys) + keys.of_rows
        if columns.row_parts is not None:
            part, _ = pd.factorize(columns.row_parts, use_na_sentinel=False)
            row = row * (int(part.max()) + 1) + part
        if not columns.summed and cell.of_columns is not None and kind.of_columns is not None:
            pair = cell.of_columns * len(kind.keys) + kind.of_columns
            _, first, count = np.unique(pair, return_index=True, return_counts=True)
            if (count > 1).any():
                where = int(first[count.argmax()])
                raise DataError(f"cell {cell.at(0, where)!r} appears more than once; give each cell a name of its own")
        return cls(columns, cell, kind, row)

    @property
    def ids(self) -> np.ndarray:
        """Distinct cells."""
        return self.cell.keys

    @property
    def services(self) -> np.ndarray:
        """Distinct services."""
        return self.service.keys

    def where(self, row: int, column: int, value: str = "") -> str:
        """Name a value for messages, as in "row 7: y of 'a'"."""
        what = "y"
        if self.columns.column_services is not None:
            label = self.columns.values.columns[column]
            what = str(label[1] if isinstance(label, tuple) else label)
        what = f"{what} {value}" if value else what
        return f"{self.columns.row_label(row)}: {what} of {self.cell.at(row, column)!r}"

    def who(self, row: int) -> str:
        """Name a row's series for messages."""
        cell, service = self.cell.at(row, None), self.service.at(row, None)
        parts = [] if cell is None else [repr(cell)]
        if service is not None and (self.service.of_rows is not None or not parts):
            parts.append(f"service {service!r}")
        return ", ".join(parts) or "the table"


def _keys(rows: Any, columns: list[Any], table: FrameColumns, what: str, pd: Any) -> _Keys:
    if rows is None:
        codes, keys = pd.factorize(np.array([*columns, None], dtype=object)[:-1])
        if (codes < 0).any():
            raise DataError(f"column {int((codes < 0).argmax())} of the table has no name; give each cell one")
        return _Keys(_as_array(list(keys), what), None, codes.astype(np.int64))
    codes, keys = pd.factorize(rows)
    if (codes < 0).any():
        raise DataError(f"{table.row_label(int((codes < 0).argmax()))}: {what} is empty; every row needs one")
    if isinstance(keys, pd.CategoricalIndex):
        keys = keys.astype(keys.categories.dtype)
    plain = keys.to_numpy() if hasattr(keys, "to_numpy") else np.asarray(keys)
    return _Keys(plain if plain.dtype.kind != "O" else _as_array(plain.tolist(), what), codes.astype(np.int64), None)


def _as_array(keys: list[Any], what: str) -> np.ndarray:
    """Return keys as an array of their own type: text, whole numbers or numbers."""
    kinds = {_kind(key) for key in keys}
    if len(kinds) > 1:
        first = keys[0]
        other = next(key for key in keys if _kind(key) != _kind(first))
        raise DataError(
            f"{what} is {first!r} ({type(first).__name__}) here and {other!r} ({type(other).__name__}) there; give "
            "them one type"
        )
    if kinds == {"text"}:
        return np.array(keys, dtype=object)
    if kinds == {"int"} and not all(-(2**63) <= int(key) < 2**64 for key in keys):
        raise DataError(f"{what} {max(keys, key=abs)} has more than 64 bits; give it as text")
    if kinds == {"other"}:
        raise DataError(f"{what} {keys[0]!r} is {type(keys[0]).__name__}; give text or numbers")
    return np.array(keys)


def _kind(key: Any) -> str:
    if isinstance(key, str):
        return "text"
    if isinstance(key, (bool, np.bool_)):
        return "other"
    if isinstance(key, (int, np.integer)):
        return "int"
    return "float" if isinstance(key, (float, np.floating)) else "other"
