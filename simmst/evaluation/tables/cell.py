"""A finished cell of a table: the errors of one system on one series, as a checked JSON file."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simmst.errors import DataError
from simmst.foundation.documents import DocumentError, read_json
from simmst.foundation.files import write_atomically

FORMAT = 1
Numbers = tuple[float | None, ...]


@dataclass(frozen=True)
class Cell:
    """The errors of one system on one series, with one protocol, number of steps ahead and seed.

    Errors are those of the last of `horizon` steps. A missing value is None.

    Args:
        system: name of the system.
        protocol: name of the protocol.
        horizon: number of steps ahead.
        seed: seed of everything random.
        days: number of days known before the test; None if all were.
        key: hash of everything that decides the numbers, except the code.
        code: hash of the code.
        data: name, digest, unit, services and step_minutes of the series, and whether it is a surrogate.
        settings: settings of the system.
        left_out: reason why there are no numbers; None if there are.
        truth: hash of the target values, which must be the same in all cells of a table.
        points: (K,) number of target values compared.
        activity: (K,) mean of the target values.
        mae: (K,) mean absolute error, raw units.
        rmse: (K,) root mean squared error, raw units.
        mase: (K,) mean absolute scaled error, see `simmst.evaluation.score`.
        wql: (K,) weighted quantile loss, of systems that forecast quantiles.
        errors: (n, K) mean absolute error of each origin, in the order of time.
        trace: number, (n, K) forecasts and (n, K) truth of one city cell, for pictures.
        tuning: choice of the settings: budget, chosen, and every configuration with its validation score.
        notes: notes on what had to be shrunk or replaced.
        record: facts that do not decide the numbers: commit, seconds, date, versions.
    """

    system: str
    protocol: str
    horizon: int
    seed: int
    days: int | None
    key: str
    code: str
    data: Mapping[str, Any]
    settings: Mapping[str, Any]
    left_out: str | None = None
    truth: str = ""
    points: tuple[int, ...] = ()
    activity: Numbers = ()
    mae: Numbers = ()
    rmse: Numbers = ()
    mase: Numbers = ()
    wql: Numbers = ()
    errors: tuple[Numbers, ...] = ()
    trace: Mapping[str, Any] = field(default_factory=dict)
    tuning: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            problem = _problem(item.name, str(item.type), getattr(self, item.name))
            if problem:
                raise DataError(problem)
        width = {len(getattr(self, name)) for name in ("points", "activity", "mae", "rmse", "mase", "wql")}
        if self.left_out is None and (len(width) != 1 or any(len(row) not in width for row in self.errors)):
            raise DataError(f"its lists have {sorted(width)} services; they must have the same number")
        if self.left_out is None and not any(value is not None for value in self.mae):
            raise DataError("it has neither an error nor a reason for a missing one")

    def save(self, path: str | Path) -> Path:
        """Write the cell on one line, under a temporary name first."""
        text = json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, sort_keys=True, allow_nan=False) + "\n"
        return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    @classmethod
    def load(cls, path: str | Path) -> Cell:
        """Read a cell that `save` wrote.

        Raises:
            DataError: the file is cut short, is not JSON, has another format or lacks a part; the message is one line.

        Example:
            >>> import tempfile
            >>> cell = Cell("ridge", "hourly", 1, 0, None, "a", "b", {}, {}, left_out="too short")
            >>> path = cell.save(Path(tempfile.mkdtemp()) / "cell.json")
            >>> Cell.load(path) == cell
            True
        """
        try:
            values = read_json(Path(path), dict[str, Any])
        except DocumentError as error:
            raise DataError(f"{path} is not a cell of a table ({error}); delete it") from error
        if values.pop("format", None) != FORMAT:
            raise DataError(f"{path} is not a cell of a table in format {FORMAT}; delete it")
        known = {item.name for item in dataclasses.fields(cls)}
        if set(values) != known:
            different = ", ".join(sorted(set(values) ^ known))
            raise DataError(f"{path} is not a cell of this version: {different} is missing or unknown; delete it")
        try:
            return cls(**{name: _tuples(value) for name, value in values.items()})
        except DataError as error:
            raise DataError(f"{path} is damaged: {error}; delete it") from error


def finite(values: Any) -> Numbers:
    """Return numbers with six significant digits; None replaces those that are not finite.

    Example:
        >>> finite([1.23456789, float("nan")])
        (1.23457, None)
    """
    return tuple(float(f"{value:.6g}") if math.isfinite(value) else None for value in values)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _problem(name: str, kind: str, value: Any) -> str:
    """Say what is wrong with a field, by its annotation; empty where nothing is."""
    fits = {
        "str": lambda: isinstance(value, str),
        "str | None": lambda: value is None or isinstance(value, str),
        "int": lambda: _integer(value),
        "int | None": lambda: value is None or _integer(value),
        "Numbers": lambda: _numbers(value),
        "tuple[int, ...]": lambda: isinstance(value, tuple) and all(map(_integer, value)),
        "tuple[str, ...]": lambda: isinstance(value, tuple) and all(isinstance(one, str) for one in value),
        "tuple[Numbers, ...]": lambda: isinstance(value, tuple) and all(map(_numbers, value)),
        "Mapping[str, Any]": lambda: isinstance(value, Mapping),
    }
    return "" if fits[kind]() else f"{name} is {str(value)[:40]!r}, which is not {kind}"


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _numbers(value: Any) -> bool:
    return isinstance(value, tuple) and all(
        one is None or (isinstance(one, (int, float)) and not isinstance(one, bool) and math.isfinite(one))
        for one in value
    )
