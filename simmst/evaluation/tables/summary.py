"""A table of finished cells: means over seeds, skill, a paired test against the best, and the paper's numbers."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from simmst.errors import DataError
from simmst.evaluation.metrics import skill
from simmst.evaluation.report import SURROGATE
from simmst.evaluation.tables.cell import Cell
from simmst.evaluation.tables.kept_tests import PairedTest, paired

CITIES = ("Milan", "Trento")


class Entry(NamedTuple):
    """A system as a table shows it.

    Attributes:
        name: name in its cells.
        label: name in the table.
        naive: whether it is a naive forecast; skill is measured over the best of them.
        reported: name in the paper's tables; None where the paper does not have it.
        ours: whether it is one of the paper's own models.
    """

    name: str
    label: str
    naive: bool = False
    reported: str | None = None
    ours: bool = False


@dataclass(frozen=True)
class Line:
    """A system's row; NaN where there is no value.

    Attributes:
        entry: the system.
        seeds: number of seeds.
        values: means over the seeds of mae, rmse, mase and wql, and the skill over the best naive forecast.
        spread: standard deviation of the MAE over the seeds; NaN for a single seed.
        p_value: p value of the paired test against the best row; NaN for that row itself.
        best: whether it has the least MAE.
        reported: MAE and RMSE in the paper, by city.
    """

    entry: Entry
    seeds: int
    values: Mapping[str, float]
    spread: float
    p_value: float
    best: bool
    reported: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Section:
    """One service at one number of steps ahead.

    Attributes:
        horizon: number of steps ahead.
        service: name of the service.
        days: number of days known before the test; None if all were.
        activity: mean activity over the points compared.
        points: number of points compared.
        best_naive: label of the best naive forecast; empty without one.
        blocks: number of blocks in the paired test.
        lines: rows of the section.
    """

    horizon: int
    service: str
    days: int | None
    activity: float
    points: int
    best_naive: str
    blocks: int
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Table:
    """A table, as `simmst evaluate --table` shows it.

    Attributes:
        number: number of the table in the paper.
        data: name, unit, services, step_minutes and surrogate of the series.
        protocol: name of the protocol.
        caption: lines beneath the table.
        sections: parts of the table.
    """

    number: int
    data: Mapping[str, Any]
    protocol: str
    caption: tuple[str, ...]
    sections: tuple[Section, ...]

    @property
    def title(self) -> str:
        """One line that names the series and the protocol, with SURROGATE for simulated traffic."""
        label = f"{SURROGATE} " if self.data["surrogate"] else ""
        return (
            f"{label}Table {self.number}, {self.data['name']}, protocol {self.protocol}, errors in {self.data['unit']}"
        )

    def heading(self, section: Section) -> str:
        """Return the heading of a section."""
        label = f"{SURROGATE} " if self.data["surrogate"] else ""
        steps = "1 step" if section.horizon == 1 else f"{section.horizon} steps"
        known = "" if section.days is None else f", {section.days} day{'s' * (section.days > 1)} known before the test"
        return (
            f"{label}{section.service}, {steps} of {self.data['step_minutes']} min ahead{known} "
            f"(mean activity {section.activity:,.4g}, {section.points:,} points)"
        )


@cache
def reported() -> dict[str, Any]:
    """Return the paper's numbers (MAE and RMSE by table, city, system and service) and their source.

    Example:
        >>> reported()["tables"]["1"]["Milan"]["dcrnn"]["internet"]
        [5.05, 8.97]
    """
    text = Path(__file__).with_name("reported.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def summarise(
    number: int,
    entries: Sequence[Entry],
    cells: Iterable[Cell],
    notes: Sequence[str] = (),
    *,
    test: PairedTest = paired,
) -> Table:
    """Summarise finished cells in a table.

    Args:
        number: number of the table in the paper.
        entries: systems, in the order of the rows.
        cells: cells of one series and one protocol.
        notes: notes for the caption.
        test: paired test, such as a `KeptTests`.

    Raises:
        DataError: there is no cell, or the cells differ in their data, slots or points.
    """
    found = list(cells)
    if not found:
        raise DataError("there is no finished cell for the table")
    _refuse_other_data(found)
    groups: dict[tuple[int | None, int], dict[str, list[Cell]]] = defaultdict(lambda: defaultdict(list))
    for cell in found:
        groups[cell.days, cell.horizon][cell.system].append(cell)
    data = found[0].data
    order = sorted(groups, key=lambda group: (group[0] or 0, group[1]))
    sections = [
        _section(number, entries, groups[group], group, service, k, int(24 * 60 // data["step_minutes"]), test)
        for group in order
        for k, service in enumerate(data["services"])
    ]
    left_out: dict[str, list[str]] = defaultdict(list)
    labels = {entry.name: entry.label for entry in entries}
    for cell in found:
        if cell.left_out is not None:
            where = f"h = {cell.horizon}" + ("" if cell.days is None else f", {cell.days} d")
            left_out[cell.left_out].append(f"{labels[cell.system]} ({where})")
    lines = [*_standing_lines(data, sections), *notes]
    lines += [f"left out: {', '.join(dict.fromkeys(names))}: {why}" for why, names in left_out.items()]
    # The notes of the split are common to all cells; those of a single system stay in its cells.
    told = [set(cell.notes) for cell in found if cell.left_out is None]
    common = set.intersection(*told) if told else set()
    lines += sorted(common)
    return Table(number, data, found[0].protocol, tuple(dict.fromkeys(lines)), tuple(s for s in sections if s.lines))


def _refuse_other_data(cells: Sequence[Cell]) -> None:
    first = cells[0]
    for cell in cells:
        if cell.data["digest"] != first.data["digest"] or cell.protocol != first.protocol:
            raise DataError(
                f"the cell of {cell.system} is of {cell.data['name']} ({cell.data['digest']}, {cell.protocol}), that "
                f"of {first.system} of {first.data['name']} ({first.data['digest']}, {first.protocol}); "
                "a table needs cells of one series and one protocol"
            )
    truths: dict[tuple[int | None, int], tuple[str, str]] = {}
    for cell in cells:
        if cell.left_out is None:
            system, truth = truths.setdefault((cell.days, cell.horizon), (cell.system, cell.truth))
            if cell.truth != truth:
                raise DataError(
                    f"{cell.system} and {system} were not scored on the same points {cell.horizon} steps ahead; "
                    "delete the cells of one of them"
                )


def _section(
    number: int,
    entries: Sequence[Entry],
    by_system: Mapping[str, Sequence[Cell]],
    group: tuple[int | None, int],
    service: str,
    k: int,
    steps_per_day: int,
    test: PairedTest,
) -> Section:
    scored: dict[Entry, list[Cell]] = {}
    for entry in entries:
        cells = [c for c in by_system.get(entry.name, ()) if c.left_out is None and c.mae[k] is not None]
        if cells:
            scored[entry] = cells
    mae = {entry: _mean([cell.mae[k] for cell in cells]) for entry, cells in scored.items()}
    naive = {entry: error for entry, error in mae.items() if entry.naive}
    best_naive = min(naive, key=naive.__getitem__, default=None)
    best = min(mae, key=mae.__getitem__, default=None)
    blocks, lines = 0, []
    for entry, cells in scored.items():
        p_value = float("nan")
        if best is not None and entry != best:
            p_value, blocks = test(_errors(cells, k), _errors(scored[best], k), steps_per_day)
        values = {key: _mean([getattr(cell, key)[k] for cell in cells]) for key in ("mae", "rmse", "mase", "wql")}
        values["skill"] = float("nan") if best_naive is None else float(skill(values["mae"], mae[best_naive]))
        spread = _spread([cell.mae[k] for cell in cells])
        told = _told(number, entry.reported, service)
        lines.append(Line(entry, len(cells), values, spread, p_value, entry == best, told))
    some = next(iter(scored.values()), [None])[0]
    return Section(
        horizon=group[1],
        service=service,
        days=group[0],
        activity=float("nan") if some is None or some.activity[k] is None else float(some.activity[k] or 0.0),
        points=0 if some is None else some.points[k],
        best_naive="" if best_naive is None else best_naive.label,
        blocks=blocks,
        lines=tuple(lines),
    )


def _told(number: int, name: str | None, service: str) -> dict[str, tuple[float, float]]:
    """Return the paper's MAE and RMSE of a system and service, by city."""
    told = {}
    for city in CITIES:
        pair = reported()["tables"][str(number)][city].get(name, {}).get(service.lower())
        if pair is not None:
            told[city] = (float(pair[0]), float(pair[1]))
    return told


def _standing_lines(data: Mapping[str, Any], sections: Sequence[Section]) -> list[str]:
    blocks = sorted({section.blocks for section in sections if section.blocks})
    lines = [
        "MAE, RMSE: errors of the last step ahead, mean over the seeds (± their standard deviation); MASE: MAE over "
        "the seasonal naive error in training; skill: 1 - MAE / MAE of the best naive forecast; WQL: weighted quantile "
        "loss, of systems that forecast quantiles",
        "bold: the least MAE; †: worse by a paired sign-flip test on blocks of time, p < .05, not corrected "
        f"for the number of comparisons ({' or '.join(map(str, blocks)) or 'no'} blocks)",
    ]
    if any(line.reported for section in sections for line in section.lines):
        lines.append(
            "reported (other data): the paper's MAE / RMSE on the full data, which are claims about other data"
        )
    if data["surrogate"]:
        lines.append(f"{SURROGATE}: simulated traffic that stands in for a real city; no result on real data")
    return lines


def _errors(cells: Sequence[Cell], k: int) -> npt.NDArray[np.float64]:
    """Return the mean over the seeds of the error of each origin, (n,)."""
    rows = np.array([[np.nan if row[k] is None else row[k] for row in cell.errors] for cell in cells], dtype=np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=RuntimeWarning)  # an origin without known targets
        mean: npt.NDArray[np.float64] = np.nanmean(rows, axis=0)
    return mean


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")


def _spread(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.std(known, ddof=1)) if len(known) > 1 else float("nan")
