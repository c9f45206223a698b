"""Comparison of one real file with the simulated cities that were cut to its shape, one row per statistic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from simmst.foundation.extras import import_extra
from simmst.realism.crops import Crop
from simmst.realism.measurements import DISTANCES, Measurement, Statistic, measure, subjects
from simmst.realism.statistics import kolmogorov_smirnov, wasserstein

if TYPE_CHECKING:
    import rich.table

BAND = (0.05, 0.95)


@dataclass(frozen=True)
class Row:
    """One statistic of the real file and of the simulated cities.

    Attributes:
        subject: the service, or the pair of services.
        statistic: the statistic.
        real: value in the file.
        low: 5 % quantile over the simulated cities; 0 for distances, because no distance is too small.
        median: median over the simulated cities.
        high: 95 % quantile over the simulated cities.
        percentile: percentage of the simulated cities below the real value.
        note: meaning of a real value outside the band; empty inside it.
    """

    subject: str
    statistic: Statistic
    real: float
    low: float
    median: float
    high: float
    percentile: float
    note: str

    @property
    def inside(self) -> bool:
        """Whether the real value lies in the simulated 5-95 % band."""
        return self.low <= self.real <= self.high

    def to_dict(self) -> dict[str, Any]:
        """Return plain, JSON-able values."""
        numbers = {name: getattr(self, name) for name in ("real", "low", "median", "high", "percentile")}
        return {
            "subject": self.subject,
            "statistic": self.statistic.key,
            "label": self.statistic.label,
            **numbers,
            "inside": self.inside,
            "note": self.note,
        }


@dataclass(frozen=True, eq=False)
class FileComparison:
    """Comparison of one file with the simulated cities.

    Attributes:
        name: name of the file.
        surrogate: whether the file itself is simulated.
        description: description of what was simulated for the comparison.
        cautions: cautions about the comparison.
        rows: statistics that have a value.
        reasons: reasons why the other statistics have none, by (subject, label).
        usual: number of a simulated city's statistics outside the band of all cities: median and 95 % quantile.
        real: measurement of the file.
        simulated: measurements of the cities.
    """

    name: str
    surrogate: bool
    description: str
    cautions: tuple[str, ...]
    rows: tuple[Row, ...]
    reasons: dict[tuple[str, str], str]
    usual: tuple[int, int]
    real: Measurement = field(repr=False)
    simulated: tuple[Measurement, ...] = field(repr=False)

    @property
    def outside(self) -> tuple[Row, ...]:
        """The rows whose real value lies outside the band."""
        return tuple(row for row in self.rows if not row.inside)

    @property
    def verdict(self) -> str:
        """One line that sums up the file."""
        count, (usual, most) = len(self.outside), self.usual
        tail = "" if count <= most else ": more than chance explains"
        return (
            f"{len(self.rows) - count} of {len(self.rows)} statistics in the band, {count} outside; a simulated "
            f"city has {usual} outside, and one in twenty has more than {most}{tail}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain, JSON-able values."""
        return {
            "file": self.name,
            "surrogate": self.surrogate,
            "simulated": self.description,
            "cautions": list(self.cautions),
            "verdict": self.verdict,
            "outside": len(self.outside),
            "usually_outside": {"median": self.usual[0], "95_percent": self.usual[1]},
            "statistics": [row.to_dict() for row in self.rows],
            "not_computable": [
                {"subject": subject, "statistic": label, "reason": reason}
                for (subject, label), reason in self.reasons.items()
            ],
        }

    def to_table(self, *, narrow: bool = False) -> rich.table.Table:
        """Return a `rich` table of the rows, with those outside the band in bold with their reason.

        Args:
            narrow: whether to leave out the median, the percentile and the reasons.

        Raises:
            MissingExtraError: `rich` is not installed.
        """
        text = import_extra("rich.text", extra="forecast").Text
        table: rich.table.Table = import_extra("rich.table", extra="forecast").Table(
            box=import_extra("rich.box", extra="forecast").SIMPLE_HEAD, pad_edge=False
        )
        several = len({row.subject for row in self.rows}) > 1
        if several:
            table.add_column("service", no_wrap=True)
        table.add_column("statistic")
        for head in ("real", "5 %", *(() if narrow else ("median",)), "95 %", *(() if narrow else ("percentile",))):
            table.add_column(head, justify="right", no_wrap=True)
        table.add_column("within" if narrow else "in the band?", no_wrap=narrow)
        for row in self.rows:
            values = (row.real, row.low, row.high) if narrow else (row.real, row.low, row.median, row.high)
            cells = [*([row.subject] if several else []), row.statistic.label, *(f"{value:.3f}" for value in values)]
            cells += [] if narrow else [f"{row.percentile:.0f}"]
            cells.append("yes" if row.inside else "NO" if narrow else f"NO: {row.note}")
            table.add_row(*(text(cell) for cell in cells), style="" if row.inside else "bold")
        return table

    def reasons_in_words(self) -> list[str]:
        """Return one line for each reason why statistics have no value."""
        lines = []
        for reason in dict.fromkeys(self.reasons.values()):
            labels = dict.fromkeys(label for (_, label), why in self.reasons.items() if why == reason)
            lines.append(f"not computable ({reason}): {'; '.join(labels)}")
        return lines


def compare_crop(crop: Crop, simulated: list[Measurement]) -> FileComparison:
    """Compare a file's statistics with those of the cities that were cut to its shape."""
    real = measure(crop.like)
    _take_distances(real, simulated)
    rows, columns, reasons = [], [], {}
    for subject, statistic in subjects(crop.like.services):
        name = (subject, statistic.key)
        values = np.array([one.values.get(name, np.nan) for one in simulated])
        present = values[~np.isnan(values)]
        if name not in real.values:
            reasons[subject, statistic.label] = real.reasons.get(name, "there is no value")
        elif len(present) * 2 < len(values):
            reasons[subject, statistic.label] = "most simulated cities have no value"
        else:
            rows.append(_row(subject, statistic, real.values[name], present))
            columns.append((values < rows[-1].low) | (values > rows[-1].high))
    outside = np.sum(columns, axis=0) if columns else np.zeros(len(simulated))
    usual = int(np.median(outside)), int(np.ceil(np.quantile(outside, 0.95)))
    return FileComparison(
        name=crop.like.name,
        surrogate=crop.like.surrogate,
        description=crop.description,
        cautions=crop.cautions,
        rows=tuple(rows),
        reasons=reasons,
        usual=usual,
        real=real,
        simulated=tuple(simulated),
    )


def _take_distances(real: Measurement, simulated: Sequence[Measurement]) -> None:
    """Add the distance of each marginal from the typical simulated one, the medians of the cities' quantiles."""
    for service, quantiles in real.quantiles.items():
        others = [one for one in simulated if service in one.quantiles]
        if not others:
            continue
        typical = np.median([one.quantiles[service] for one in others], axis=0)
        for one in (real, *others):
            measured = quantiles if one is real else one.quantiles[service]
            one.values[service, "ks"] = kolmogorov_smirnov(measured, typical)
            one.values[service, "wasserstein"] = wasserstein(measured, typical)


def _row(subject: str, statistic: Statistic, real: float, simulated: np.ndarray) -> Row:
    low, median, high = (float(value) for value in np.quantile(simulated, (BAND[0], 0.5, BAND[1])))
    if statistic.key in DISTANCES:
        low = 0.0
    percentile = 100 * float((np.sum(simulated < real) + 0.5 * np.sum(simulated == real)) / len(simulated))
    note = statistic.above if real > high else statistic.below if real < low else ""
    return Row(subject, statistic, real, low, median, high, percentile, note)
