"""The paper's Figure 2: forecasts of the two best systems against the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from simmst.errors import DataError
from simmst.evaluation.report import SURROGATE
from simmst.evaluation.tables.cell import Cell
from simmst.evaluation.tables.summary import Line, Section, Table
from simmst.foundation.pictures import COLOURS, new_figure, panels, save_picture


def plot_against_second(path: str | Path, table: Table, cells: Sequence[Cell]) -> Path:
    """Draw the best and the second-best system's forecasts of the busiest cell against the truth, a panel per section.

    If the best system is one of the paper's own models, the second is the best of the others.

    Args:
        path: path of the picture, ``.png``, ``.svg`` or ``.pdf``.
        table: table of the cells; its errors decide which systems are drawn.
        cells: cells with their traces; those of the first seed are drawn.

    Returns:
        The path written.

    Raises:
        DataError: no section has two systems with forecasts.
        MissingExtraError: matplotlib is not installed.
    """
    sections = [section for section in table.sections if len(section.lines) > 1]
    if not sections:
        raise DataError("a figure of the best and the second-best system needs two systems with forecasts")
    figure = new_figure(9.0, 2.5 * len(sections))
    by_place: Mapping[tuple[str, int, int | None], Cell] = {
        (cell.system, cell.horizon, cell.days): cell
        for cell in sorted(cells, key=lambda cell: -cell.seed)
        if cell.left_out is None
    }
    for axes, section in zip(panels(figure, len(sections), 1), sections, strict=True):
        k = list(table.data["services"]).index(section.service)
        for rank, line in enumerate(best_and_rival(section.lines)):
            cell = by_place[line.entry.name, section.horizon, section.days]
            if rank == 0:
                axes.plot(_column(cell, "truth", k), color="black", linewidth=1.0, label="truth")
                axes.set_ylabel(table.data["unit"])
                axes.set_title(f"{_title(table, section)}, cell {cell.trace['cell']}", fontsize=9)
            label = f"{line.entry.label} (MAE {line.values['mae']:.4g})"
            axes.plot(_column(cell, "forecast", k), color=COLOURS[rank], linewidth=0.9, label=label)
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.2 * (high - low))  # room for the legend
        axes.margins(x=0.01)
        axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper right")
    axes.set_xlabel(f"test slots of {table.data['step_minutes']} min")
    label = f"{SURROGATE} " if table.data["surrogate"] else ""
    figure.suptitle(f"{label}{table.data['name']}: forecast and truth, best and second-best of table {table.number}")
    return save_picture(figure, path)


def best_and_rival(lines: Sequence[Line]) -> tuple[Line, Line]:
    """Return the row with the least MAE, and the best other row; the two are both ours only if every row is."""
    ranked = sorted(lines, key=lambda line: line.values["mae"])
    others = [line for line in ranked[1:] if line.entry.ours != ranked[0].entry.ours] if ranked[0].entry.ours else []
    return ranked[0], (others or ranked[1:])[0]


def _title(table: Table, section: Section) -> str:
    return table.heading(section).split(" (")[0]


def _column(cell: Cell, name: str, k: int) -> list[float]:
    return [np.nan if row[k] is None else row[k] for row in cell.trace[name]]
