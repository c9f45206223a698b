"""Output of a table on the screen, and as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simmst.evaluation.report import print_notes
from simmst.evaluation.significance import LEVEL
from simmst.evaluation.tables.summary import CITIES, Line, Section, Table
from simmst.foundation.extras import import_extra
from simmst.foundation.files import write_atomically

if TYPE_CHECKING:
    import rich.console
    import rich.table


def print_table(table: Table, console: rich.console.Console) -> None:
    """Print a table, section by section; columns for which there is no room are left out."""
    measure = import_extra("rich.measure", extra="forecast").Measurement.get
    console.print(table.title, markup=False, highlight=False)
    left_out: tuple[str, ...] = ()
    for section in table.sections:
        for number in range(len(_DROPPED) + 1):
            without = _DROPPED[:number]
            shown = _rich(section, "SIMPLE_HEAD", without=without)
            if measure(console, console.options.update(width=10_000), shown).maximum <= console.width:
                break
        left_out = max(left_out, without, key=len)
        console.print()
        console.print(_head(table, section), markup=False, highlight=False)
        console.print(shown)
    present = {head for section in table.sections for head in _cells(section, bold="")[0]}
    names = dict.fromkeys(name.split(" ")[0] for name in left_out if name in present)
    room = [f"no room here for {', '.join(names)}; the files have them"] if names else []
    print_notes(console, [*room, *table.caption])


def write_table(table: Table, stem: str | Path) -> tuple[Path, Path, Path]:
    """Write ``stem.md``, ``stem.csv`` and ``stem.tex``, each atomically.

    The CSV has one row per system, service and number of steps ahead, with six digits; the LaTeX needs booktabs.
    """
    stem = Path(stem)
    made: dict[str, Callable[[Table], str]] = {".md": markdown, ".csv": comma_separated, ".tex": latex}

    def one(suffix: str, make: Callable[[Table], str]) -> Path:
        text = make(table)
        path = stem.with_name(stem.name + suffix)
        return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    md, csv_file, tex = (one(suffix, make) for suffix, make in made.items())
    return md, csv_file, tex


def markdown(table: Table) -> str:
    """Return a table as Markdown."""
    parts = [f"# {table.title}", ""]
    for section in table.sections:
        text = io.StringIO()
        console = import_extra("rich.console", extra="forecast").Console(file=text, width=400, no_color=True)
        console.print(_rich(section, "MARKDOWN", bold="**{}**"), markup=False, highlight=False)
        rows = [line.rstrip() for line in text.getvalue().splitlines() if line.strip()]
        parts += [f"## {table.heading(section)}", "", *rows, ""]
        if section.best_naive:
            parts += [f"Best naive forecast: {section.best_naive}.", ""]
    parts += [f"- {line}" for line in table.caption]
    return "\n".join(parts) + "\n"


def comma_separated(table: Table) -> str:
    """Return a table as CSV, with one row per system and section; a missing value is empty."""
    text = io.StringIO()
    keys = ["mae", "rmse", "mase", "skill", "wql"]
    cities = [f"reported_{city.lower()}_{key}" for city in CITIES for key in ("mae", "rmse")]
    writer = csv.writer(text, lineterminator="\n")
    what = ["data", "surrogate", "protocol", "days", "service", "horizon", "system", "seeds"]
    writer.writerow([*what, *keys, "mae_std", "p_value", *cities])
    for section in table.sections:
        for line in section.lines:
            told = [value for city in CITIES for value in line.reported.get(city, ("", ""))]
            numbers = [line.values[key] for key in keys] + [line.spread, line.p_value]
            days = "" if section.days is None else section.days
            where = [table.data["name"], table.data["surrogate"], table.protocol, days, section.service]
            writer.writerow(
                [*where, section.horizon, line.entry.label, line.seeds]
                + [f"{value:.6g}" if math.isfinite(value) else "" for value in numbers]
                + told
            )
    return text.getvalue()


def latex(table: Table) -> str:
    """Return a table as LaTeX with booktabs, one tabular per section."""
    pandas = import_extra("pandas", extra="forecast")
    parts = [f"% {table.title}", *(f"% {line}" for line in table.caption)]
    for section in table.sections:
        heads, rows = _cells(section, bold="")
        frame = pandas.DataFrame(rows, columns=[head.replace("\n", " ") for head in heads])
        best = [number for number, line in enumerate(section.lines) if line.best]
        style = frame.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
        style = style.set_properties(subset=(best, frame.columns[:2]), textbf="--rwrap")
        aligned = "l" + "r" * (len(heads) - 1)
        caption = re.sub(r"([_%&#])", r"\\\1", table.heading(section))
        parts.append(style.to_latex(hrules=True, column_format=aligned, caption=caption))
    return "\n".join(parts)


def _head(table: Table, section: Section) -> str:
    best = f"; best naive forecast: {section.best_naive}" if section.best_naive else ""
    return table.heading(section) + best


def _rich(section: Section, box: str, bold: str = "", without: Sequence[str] = ()) -> rich.table.Table:
    text = import_extra("rich.text", extra="forecast").Text
    style = getattr(import_extra("rich.box", extra="forecast"), box)
    made: rich.table.Table = import_extra("rich.table", extra="forecast").Table(box=style, pad_edge=box == "MARKDOWN")
    heads, rows = _cells(section, bold=bold)
    kept = [place for place, head in enumerate(heads) if head not in without]
    for place in kept:
        joined = heads[place].replace("\n", " ") if box == "MARKDOWN" else heads[place]
        # where there is no room, labels wrap and numbers do not
        made.add_column(text(joined), justify="right" if place else "left", no_wrap=place > 0, overflow="fold")
    for line, row in zip(section.lines, rows, strict=True):
        made.add_row(*(text(row[place], style="bold" if line.best and not bold else "") for place in kept))
    return made


def _cells(section: Section, *, bold: str) -> tuple[list[str], list[list[str]]]:
    """Return the heads of the columns, and the rows, without columns that are empty."""
    quantiles = any(math.isfinite(line.values["wql"]) for line in section.lines)
    cities = [city for city in CITIES if any(city in line.reported for line in section.lines)]
    heads = ["system", "MAE", "RMSE", "MASE", "skill", *(["WQL"] if quantiles else []), "p", "seeds"]
    heads += [_reported(city) for city in cities]
    rows = []
    for line in section.lines:
        row = [line.entry.label, _error(line), _number(line.values["rmse"]), _number(line.values["mase"])]
        row.append(_signed(line.values["skill"]))
        row += [_number(line.values["wql"])] if quantiles else []
        row += ["" if math.isnan(line.p_value) else f"{line.p_value:.3f}", str(line.seeds)]
        row += [" / ".join(f"{value:.2f}" for value in line.reported.get(city, ())) for city in cities]
        if line.best and bold:
            row[:2] = [bold.format(cell) for cell in row[:2]]
        rows.append(row)
    return heads, rows


def _reported(city: str) -> str:
    return f"reported (other\ndata), {city}"


# Columns to leave out of a narrow terminal, the first ones first.
_DROPPED = ("seeds", "p", "MASE", "WQL", *map(_reported, CITIES), "RMSE")


def _error(line: Line) -> str:
    spread = f" ± {_number(line.spread)}" if math.isfinite(line.spread) else ""
    mark = "†" if line.p_value < LEVEL else ""
    return f"{_number(line.values['mae'])}{spread}{mark}"


def _number(value: Any) -> str:
    if not math.isfinite(value):
        return "-"
    digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    return f"{value:,.{digits}f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}" if math.isfinite(value) else "-"
