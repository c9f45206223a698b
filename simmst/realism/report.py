"""The realism report, which compares a real file's statistics with those of simulated cities of the same shape."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simmst.data.dataset import TrafficDataset
from simmst.data.library import load
from simmst.errors import DataError, SimmstError
from simmst.foundation.extras import import_extra
from simmst.foundation.files import write_json
from simmst.realism.comparison import BAND, FileComparison, compare_crop
from simmst.realism.crops import Crop
from simmst.realism.ensembles import measure_cities
from simmst.realism.patches import split_patches
from simmst.realism.plots import plot_realism
from simmst.simulation.prior.domain_prior import DomainPrior

if TYPE_CHECKING:
    import rich.console


@dataclass(frozen=True, eq=False)
class RealismReport:
    """Comparison of real files with cities simulated in their shape.

    Attributes:
        files: one comparison per file, or per patch for files of unrelated patches.
        skipped: reason why a file could not be compared, by file.
        cities: number of cities simulated for each file.
        seed: seed of the family of cities.
        prior: description of the prior.
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
        """Print a table for each file, on standard output unless a console is given.

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
            narrow = console.width < 100
            console.print(comparison.to_table(narrow=narrow))
            say(comparison.verdict)
            for row in comparison.outside if narrow else ():
                say(f"outside: {row.subject}, {row.statistic.label}: {row.note}")
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
        folder = Path(folder)
        return (
            write_json(folder / "realism.json", self.to_dict()),
            plot_realism(self.title, self.files, folder / "realism.png"),
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
    """Compare real data sets with cities simulated in their shape, slot length, duration, calendar and gaps.

    Args:
        real: the data sets; those of unrelated patches are compared patch by patch.
        cities: number of cities to simulate for each data set, at least 20.
        seed: seed of the family of cities.
        prior: law of their parameters; None uses `DomainPrior.default`.
        place_cells: cells a side of a place, for data sets of places. None draws one of several sizes for each city.
        workers: number of processes.
        progress: called with (cities done, cities) after each city.

    Raises:
        ConfigError: a number is too small.
        DataError: there is no data set, or one cannot be compared because of its services or slot length.

    Example:
        >>> from simmst.simulation import surrogate_city
        >>> held_out = surrogate_city(0, height=6, width=6, days=2, services=["internet"])
        >>> report = compare([held_out], cities=20)
        >>> report.files[0].rows[0].statistic.key, report.files[0].surrogate
        ('ks', True)
    """
    if not real:
        raise DataError("there is nothing to compare; give at least one data set")
    crops = [Crop.of(one, place_cells=place_cells) for dataset in real for one in split_patches(dataset)]
    prior = DomainPrior.default() if prior is None else prior
    measured = measure_cities(crops, cities=cities, seed=seed, prior=prior, workers=workers, progress=progress)
    files = tuple(compare_crop(crop, [city[number] for city in measured]) for number, crop in enumerate(crops))
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
    """Compare files as `compare` does, and report the reason for each file that cannot be compared.

    Args:
        paths: files or names that `simmst.data.load` accepts.
        cities: as in `compare`.
        seed: as in `compare`.
        prior: as in `compare`.
        place_cells: as in `compare`.
        workers: as in `compare`.
        progress: as in `compare`.

    Raises:
        ConfigError: a number is too small.
        DataError: no file can be compared; the message gives the reason for each.
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
        for one in split_patches(dataset):
            Crop.of(one)
    except SimmstError as error:
        return str(error)
    return dataset


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
