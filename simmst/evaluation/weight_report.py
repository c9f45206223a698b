"""The weights that re-weighting gave to simulated cities, and their relation to the cities' parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simmst.errors import DataError
from simmst.foundation.extras import import_extra
from simmst.foundation.files import write_json
from simmst.training import WindowWeights

if TYPE_CHECKING:
    import rich.console
    import rich.table

_SHOWN = 5  # cities at each end of the printed table, which also has twice as many parameters


@dataclass(frozen=True)
class ParameterShift:
    """How far the weights move the mean of one parameter of the simulated cities.

    Attributes:
        name: name of the parameter.
        prior: mean over the cities with equal weights.
        posterior: mean with the cities' weights.
        scale: standard deviation of ``posterior - prior`` if the weights were assigned to the cities at random; 0 where
            all cities, or all weights, are equal.

    Example:
        >>> ParameterShift("tilt_deg", prior=6.0, posterior=7.0, scale=0.5).shift
        2.0
    """

    name: str
    prior: float
    posterior: float
    scale: float

    @property
    def shift(self) -> float:
        """``posterior - prior`` in units of the scale; for a single parameter, more than about 2 is hardly chance."""
        return (self.posterior - self.prior) / self.scale if self.scale > 0 else 0.0


@dataclass(frozen=True, eq=False)
class WeightReport:
    """The weights of simulated windows, summarised by city and by the cities' parameters.

    Attributes:
        cities: C names.
        weights: float64 (C,), mean weight of each city's windows, between 0 and 1; all begin at 0.5.
        num_samples: number of weighted windows.
        effective_samples: (sum of weights)^2 / sum of squares, over the windows.
        effective_cities: the same over the cities.
        shifts: one shift per numeric parameter, the largest first; empty where the parameters are unknown.
        parameters: float64 (C,) values of each numeric parameter, for pictures.

    Source:
        The effective sample size of importance weights: Kong 1992, "A note on importance sampling using standardized
        weights".
    """

    cities: tuple[str, ...]
    weights: np.ndarray
    num_samples: int
    effective_samples: float
    effective_cities: float
    shifts: tuple[ParameterShift, ...]
    parameters: Mapping[str, np.ndarray]

    @classmethod
    def of(
        cls, given: WindowWeights, cities: Sequence[str], parameters: Sequence[Mapping[str, Any]] | None = None
    ) -> WeightReport:
        """Summarise weights.

        Args:
            given: weights from a solver.
            cities: C names.
            parameters: parameters of each city by name; a parameter that is not a number, or that a city lacks, is left
                out. None where the parameters are unknown.

        Raises:
            DataError: the numbers of cities differ.

        Example:
            >>> given = WindowWeights(np.array([0.9, 0.9, 0.1], np.float32), np.array([0, 0, 1]), None, 2)
            >>> report = WeightReport.of(given, ["a", "b"], [{"tilt_deg": 2.0}, {"tilt_deg": 12.0}])
            >>> round(report.shifts[0].posterior, 3), round(report.effective_cities, 2)
            (3.0, 1.22)
        """
        weights = given.by_city()
        known = [cities] if parameters is None else [cities, parameters]
        for what in known:
            if len(what) != len(weights):
                raise DataError(f"there are weights of {len(weights)} cities, and {len(what)} were described")
        columns = _numeric(parameters or [])
        shifts = [_shift(name, values, weights) for name, values in columns.items()]
        shifts.sort(key=lambda shift: -abs(shift.shift))
        return cls(
            tuple(cities),
            weights,
            len(given.weights),
            effective_number(given.weights),
            effective_number(weights),
            tuple(shifts),
            columns,
        )

    def ranked(self) -> list[int]:
        """Return the numbers of the cities, the highest weight first."""
        return [int(number) for number in np.argsort(-self.weights, kind="stable")]

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {
            "num_samples": self.num_samples,
            "effective_samples": self.effective_samples,
            "effective_cities": self.effective_cities,
            "cities": [
                {
                    "name": self.cities[number],
                    "weight": float(self.weights[number]),
                    "parameters": {name: float(values[number]) for name, values in self.parameters.items()},
                }
                for number in self.ranked()
            ],
            "parameters": [
                {
                    "name": shift.name,
                    "prior_mean": shift.prior,
                    "posterior_mean": shift.posterior,
                    "scale": shift.scale,
                    "shift": shift.shift,
                }
                for shift in self.shifts
            ],
        }

    def to_json(self, path: str | Path) -> Path:
        """Write `to_dict` as JSON, atomically."""
        return write_json(path, self.to_dict())

    def tables(self, *, scale: bool = True) -> list[rich.table.Table]:
        """Return `rich` tables of the cities with the highest and lowest weights, and of the largest shifts.

        Args:
            scale: whether the second has a column with the scale of the shifts.
        """
        ranked = self.ranked()
        ends = ranked if len(ranked) <= 2 * _SHOWN else [*ranked[:_SHOWN], *ranked[-_SHOWN:]]
        cities = _table("city", "weight")
        for number in ends:
            cities.add_row(self.cities[number], f"{self.weights[number]:.3f}")
        if not self.shifts:
            return [cities]
        parameters = _table("parameter", "mean", "weighted", *(["scale"] if scale else []), "shift")
        for shift in self.shifts[: 2 * _SHOWN]:
            values = (shift.prior, shift.posterior, *([shift.scale] if scale else []))
            parameters.add_row(shift.name, *(f"{value:.4g}" for value in values), f"{shift.shift:+.1f}")
        return [cities, parameters]

    def print(self, console: rich.console.Console | None = None) -> None:
        """Print the tables, on standard output unless a console is given."""
        if console is None:
            console = import_extra("rich.console", extra="forecast").Console()
        console.print(self.title, markup=False, highlight=False)
        measure = import_extra("rich.measure", extra="forecast").Measurement.get
        widest = max(measure(console, console.options.update(width=10_000), one).maximum for one in self.tables())
        for table in self.tables(scale=widest <= console.width):
            console.print(table)
        if self.shifts:
            console.print(
                "shift: weighted mean minus mean, in standard deviations of randomly assigned weights; of "
                f"{len(self.shifts)} parameters, about {math.ceil(0.05 * len(self.shifts))} exceed 2 by chance",
                markup=False,
                highlight=False,
            )

    @property
    def title(self) -> str:
        """Title, which says how unequal the weights are."""
        return (
            f"weights of {self.num_samples:,} simulated windows of {len(self.cities)} cities; effectively "
            f"{self.effective_samples:,.0f} windows, {self.effective_cities:.1f} cities"
        )


def effective_number(weights: np.ndarray) -> float:
    """Return (sum w)^2 / sum w^2: n for equal weights, 1 if one weight is not zero, 0 if all are zero.

    Example:
        >>> effective_number(np.array([1.0, 1.0, 0.0]))
        2.0
    """
    values = np.asarray(weights, dtype=np.float64)
    squares = float(np.square(values).sum())
    return float(values.sum()) ** 2 / squares if squares > 0 else 0.0


def _shift(name: str, values: np.ndarray, weights: np.ndarray) -> ParameterShift:
    number, total = len(values), weights.sum()
    shares = weights / total if total > 0 else np.full(number, 1 / number)
    spread = float(values.std(ddof=1)) if number > 1 else 0.0
    scale = spread * math.sqrt(float(np.square(shares - 1 / number).sum()))
    # equal weights differ by rounding
    return ParameterShift(name, float(values.mean()), float(shares @ values), scale if scale > 1e-9 * spread else 0.0)


def _numeric(parameters: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    def is_number(value: object) -> bool:
        return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(value)

    names = parameters[0] if parameters else ()
    return {
        name: np.array([city[name] for city in parameters], dtype=np.float64)
        for name in names
        if all(is_number(city.get(name)) for city in parameters)
    }


def _table(*heads: str) -> rich.table.Table:
    table: rich.table.Table = import_extra("rich.table", extra="forecast").Table(
        box=import_extra("rich.box", extra="forecast").SIMPLE_HEAD, pad_edge=False
    )
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=number > 0, overflow="fold")
    return table
