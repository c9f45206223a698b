"""The realism report: does every statistic of a real file lie within those of simulated cities of the same shape?"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simmst.data.dataset import TrafficDataset
from simmst.data.library import load
from simmst.errors import DataError, SimmstError
from simmst.extras import import_extra
from simmst.files import write_json
from simmst.simulation.crops import Crop
from simmst.simulation.ensembles import measure_cities
from simmst.simulation.measurements import DISTANCES, Measurement, Statistic, measure, subjects
from simmst.simulation.prior import DomainPrior
from simmst.simulation.statistics import kolmogorov_smirnov, wasserstein

if TYPE_CHECKING:
    import rich.console
    import rich.table

BAND = (0.05, 0.95)


@dataclass(frozen=True)
class Row:
    """One statistic, real against simulated.

    Attributes:
        subject: the service, or the pair of services.
        statistic: what is measured.
        real: its value in the file.
        low: 5 % quantile over the simulated cities; 0 for distances, of which none is too small.
        median: their median.
        high: their 95 % quantile.
        percentile: per cent of the simulated cities below the real value.
        note: why the real value lies outside the band; empty inside it.
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
    """One file against the simulated cities.

    Attributes:
        name: of the file.
        surrogate: whether the file itself is simulated.
        description: what was simulated to compare with it.
        cautions: what a reader must know of the comparison.
        rows: the statistics that the file has.
        reasons: why it has not the others, by (subject, label).
        usual: how many statistics of a simulated city lie outside the band of all: median and 95 % quantile.
        real: the file's measurement.
        simulated: the cities'.
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
        """One line on the whole file."""
        count, (usual, most) = len(self.outside), self.usual
        tail = "" if count <= most else ": more than chance explains"
        return (
            f"{len(self.rows) - count} of {len(self.rows)} statistics in the band, {count} outside; of a simulated "
            f"city {usual} are outside, of one in twenty more than {most}{tail}"
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

    def to_table(self) -> rich.table.Table:
        """Return a `rich` table of the rows, those outside the band in bold with their reason.

        Raises:
            MissingExtraError: `rich` is not installed.
        """
        text = import_extra("rich.text", extra="forecast").Text
        table: rich.table.Table = import_extra("rich.table", extra="forecast").Table(
            box=import_extra("rich.box", extra="forecast").SIMPLE_HEAD, pad_edge=False
        )
        table.add_column("service", no_wrap=True)
        table.add_column("statistic")
        for head in ("real", "5 %", "median", "95 %", "percentile"):
            table.add_column(head, justify="right", no_wrap=True)
        table.add_column("in the band?")
        for row in self.rows:
            numbers = [f"{value:.3f}" for value in (row.real, row.low, row.median, row.high)]
            verdict = "yes" if row.inside else f"NO: {row.note}"
            cells = [row.subject, row.statistic.label, *numbers, f"{row.percentile:.0f}", verdict]
            table.add_row(*(text(cell) for cell in cells), style="" if row.inside else "bold")
        return table

    def reasons_in_words(self) -> list[str]:
        """Return one line for each reason why statistics have no value."""
        lines = []
        for reason in dict.fromkeys(self.reasons.values()):
            labels = dict.fromkeys(label for (_, label), why in self.reasons.items() if why == reason)
            lines.append(f"not computable ({reason}): {'; '.join(labels)}")
        return lines


@dataclass(frozen=True, eq=False)
class RealismReport:
    """Real files against cities simulated in their shape.

    Attributes:
        files: one comparison a file.
        skipped: by file, why it could not be compared.
        cities: how many cities were simulated for each file.
        seed: of the family of cities.
        prior: what the prior is, in words.
    """

    files: tuple[FileComparison, ...]
    skipped: dict[str, str]
    cities: int
    seed: int
    prior: str

    @property
    def title(self) -> str:
        """One line that says what was compared."""
        return f"Real traffic against {self.cities} simulated cities (seed {self.seed}, {self.prior})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain, JSON-able values."""
        return {
            "title": self.title,
            "cities": self.cities,
            "seed": self.seed,
            "prior": self.prior,
            "band": list(BAND),
            "files": [comparison.to_dict() for comparison in self.files],
            "skipped": [{"file": name, "reason": reason} for name, reason in self.skipped.items()],
        }

    def print(self, console: rich.console.Console | None = None) -> None:
        """Print a table a file, on standard output unless a console is given.

        Raises:
            MissingExtraError: `rich` is not installed.
        """
        if console is None:
            console = import_extra("rich.console", extra="forecast").Console()
        say = functools.partial(console.print, markup=False, highlight=False)
        say(self.title)
        for comparison in self.files:
            label = "SURROGATE " if comparison.surrogate else ""
            say(f"\n{label}{comparison.name}: {comparison.description}")
            console.print(comparison.to_table())
            say(comparison.verdict)
            for line in (*comparison.cautions, *comparison.reasons_in_words()):
                say(line)
        for name, reason in self.skipped.items():
            say(f"\nnot compared: {name}: {reason}")

    def save(self, folder: str | Path) -> tuple[Path, ...]:
        """Write ``realism.json`` and one page of plots, ``realism.png``, into a folder.

        Returns:
            The two paths.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from simmst.simulation.realism_plots import plot_realism

        folder = Path(folder)
        return (
            write_json(folder / "realism.json", self.to_dict()),
            plot_realism(self, folder / "realism.png"),
        )


def compare(
    real: Sequence[TrafficDataset],
    *,
    cities: int = 100,
    seed: int = 0,
    prior: DomainPrior | None = None,
    place_cells: int | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> RealismReport:
    """Compare real data sets with cities simulated in their shape, step, length, calendar and gaps.

    Args:
        real: the data sets.
        cities: how many cities to simulate for each, at least 20.
        seed: of the family of cities.
        prior: law of their parameters; `DomainPrior.default` when None.
        place_cells: of data sets of places, cells a side of a place; when None several sizes take turns.
        workers: processes.
        progress: called with (cities done, cities).

    Raises:
        ConfigError: a number is too small.
        DataError: there is no data set, or one cannot be compared: unknown service or step.

    Example:
        >>> from simmst.simulation import surrogate_city
        >>> held_out = surrogate_city(0, height=6, width=6, days=2, services=["internet"])
        >>> report = compare([held_out], cities=20)
        >>> report.files[0].rows[0].statistic.key, report.files[0].surrogate
        ('ks', True)
    """
    if not real:
        raise DataError("there is nothing to compare; give at least one data set")
    crops = [Crop.of(dataset, place_cells=place_cells) for dataset in real]
    prior = DomainPrior.default() if prior is None else prior
    measured = measure_cities(crops, cities=cities, seed=seed, prior=prior, workers=workers, progress=progress)
    files = tuple(_compare(crop, [city[number] for city in measured]) for number, crop in enumerate(crops))
    return RealismReport(files, {}, cities, seed, prior.note or "default prior")


def compare_files(
    paths: Sequence[str | Path],
    *,
    cities: int = 100,
    seed: int = 0,
    prior: DomainPrior | None = None,
    place_cells: int | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> RealismReport:
    """Compare files as `compare` does; those that hold no comparable traffic are named with the reason.

    Args:
        paths: files or names, as `simmst.data.load` takes them.
        cities: as in `compare`.
        seed: as in `compare`.
        prior: as in `compare`.
        place_cells: as in `compare`.
        workers: as in `compare`.
        progress: as in `compare`.

    Raises:
        ConfigError: a number is too small.
        DataError: no file can be compared; the message has the reason of each.
    """
    opened = [_open(path) for path in paths]
    datasets = [one for one in opened if isinstance(one, TrafficDataset)]
    skipped = {str(path): one for path, one in zip(paths, opened, strict=True) if isinstance(one, str)}
    if not datasets:
        reasons = "; ".join(skipped.values()) or "none was given"
        raise DataError(f"there is no file to compare: {reasons}")
    report = compare(
        datasets, cities=cities, seed=seed, prior=prior, place_cells=place_cells, workers=workers, progress=progress
    )
    return RealismReport(report.files, skipped, cities, seed, report.prior)


def _open(path: str | Path) -> TrafficDataset | str:
    """Return a file's data set, or the reason why it cannot be compared."""
    try:
        dataset = load(path)
        Crop.of(dataset)
    except SimmstError as error:
        return str(error)
    return dataset


def _compare(crop: Crop, simulated: list[Measurement]) -> FileComparison:
    """Hold a file's statistics against those of the cities that were cut to its shape."""
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
    """Add how far each marginal lies from the typical simulated one: the medians of the cities' quantiles."""
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


def outside_in_words(report: RealismReport) -> list[str]:
    """Return one line for each statistic outside the band, over all files.

    Example:
        >>> outside_in_words(RealismReport((), {}, 20, 0, "default prior"))
        []
    """
    return [
        f"{comparison.name}, {row.subject}, {row.statistic.label}: {row.real:.3f}, band {row.low:.3f} to "
        f"{row.high:.3f}: {row.note}"
        for comparison, row in itertools.chain.from_iterable(
            ((comparison, row) for row in comparison.outside) for comparison in report.files
        )
    ]
