"""The report of an evaluation, as a table, JSON or a data frame."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from simmst.baselines import BASELINES
from simmst.errors import DataError
from simmst.evaluation.forecasts import Forecasts
from simmst.evaluation.metrics import QuantileScores, Scores, skill
from simmst.foundation.extras import import_extra
from simmst.foundation.files import write_json

if TYPE_CHECKING:
    import pandas
    import rich.console
    import rich.table

SURROGATE = "SURROGATE"


@dataclass(frozen=True, eq=False)
class Row:
    """One predictor's errors.

    Args:
        name: name in the table.
        mae: (K,) mean absolute error, raw units.
        rmse: (K,) root mean squared error, raw units.
        mase: (K,) mean absolute scaled error.
        skill: (K,) skill of the MAE over persistence.
        mae_by_step: (T_out, K) MAE by step ahead.
        rmse_by_step: (T_out, K) RMSE by step ahead.
        skill_by_step: (T_out, K) skill by step ahead.
        overall_mae: MAE over the points of all services.
        overall_rmse: RMSE over the points of all services.
        overall_skill: skill of `overall_mae` over persistence.
        coverage: (K,) share of the targets inside the central 80 % interval; NaN for a predictor without quantiles.
        wql: (K,) weighted quantile loss; NaN for a predictor without quantiles.
        coverage_by_step: (T_out, K) coverage by step ahead; NaN for a predictor without quantiles.
        wql_by_step: (T_out, K) weighted quantile loss by step ahead; NaN for a predictor without quantiles.
    """

    name: str
    mae: npt.NDArray[np.floating]
    rmse: npt.NDArray[np.floating]
    mase: npt.NDArray[np.floating]
    skill: npt.NDArray[np.floating]
    mae_by_step: npt.NDArray[np.floating]
    rmse_by_step: npt.NDArray[np.floating]
    skill_by_step: npt.NDArray[np.floating]
    overall_mae: float
    overall_rmse: float
    overall_skill: float
    coverage: npt.NDArray[np.floating]
    wql: npt.NDArray[np.floating]
    coverage_by_step: npt.NDArray[np.floating]
    wql_by_step: npt.NDArray[np.floating]

    @classmethod
    def compare(cls, name: str, scores: Scores, reference: Scores, quantiles: QuantileScores | None = None) -> Row:
        """Build a row from a predictor's scores and those of persistence."""
        if quantiles is None:
            none, by_step = np.full_like(scores.mae, np.nan), np.full_like(scores.mae_by_step, np.nan)
            quantiles = QuantileScores(none, none, by_step, by_step)
        return cls(
            name=name,
            mae=scores.mae,
            rmse=scores.rmse,
            mase=scores.mase,
            skill=skill(scores.mae, reference.mae),
            mae_by_step=scores.mae_by_step,
            rmse_by_step=scores.rmse_by_step,
            skill_by_step=skill(scores.mae_by_step, reference.mae_by_step),
            overall_mae=scores.overall_mae,
            overall_rmse=scores.overall_rmse,
            overall_skill=float(skill(scores.overall_mae, reference.overall_mae)),
            coverage=quantiles.coverage,
            wql=quantiles.wql,
            coverage_by_step=quantiles.coverage_by_step,
            wql_by_step=quantiles.wql_by_step,
        )


@dataclass(frozen=True)
class Column:
    """One column of a report's table, as text.

    Args:
        key: name of a field of `Row`.
        head: two lines of the heading.
        shown: one number per row.
        best: number of the row with the best value, -1 where no value is known.
    """

    key: str
    head: tuple[str, str]
    shown: tuple[str, ...]
    best: int


@dataclass(frozen=True, eq=False)
class Report:
    """The errors of several predictors on the same target points.

    Args:
        dataset: name of the data set.
        unit: unit of MAE, RMSE and scale.
        surrogate: whether the data set is simulated and stands in for a real one.
        services: K names.
        step_minutes: minutes of a slot.
        horizon: number of steps ahead; errors are over all of them.
        part: part of the split that is compared.
        num_origins: number of forecasts for each cell.
        num_points: number of target values compared.
        scale: (K,) mean activity over the points compared.
        rows: one row per predictor.
        notes: notes for the reader.
        forecasts: forecasts, if they were kept; not written to JSON.
    """

    dataset: str
    unit: str
    surrogate: bool
    services: tuple[str, ...]
    step_minutes: int
    horizon: int
    part: str
    num_origins: int
    num_points: int
    scale: tuple[float, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    forecasts: Forecasts | None = None

    @property
    def title(self) -> str:
        """One line that says what was compared on what."""
        label = f"{SURROGATE} " if self.surrogate else ""
        steps = "1 step" if self.horizon == 1 else f"{self.horizon} steps"
        return (
            f"{label}{self.dataset}: {steps} of {self.step_minutes} min ahead, {self.part} part, errors in {self.unit}"
        )

    def row(self, name: str) -> Row:
        """Return the row of a predictor.

        Raises:
            DataError: there is no predictor with this name.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise DataError(f"the report has no row {name!r}; it has: {', '.join(row.name for row in self.rows)}")

    @property
    def has_quantiles(self) -> bool:
        """Whether any predictor has quantiles."""
        return any(np.isfinite(row.coverage).any() for row in self.rows)

    @property
    def best_naive(self) -> dict[str, str]:
        """The naive forecast with the least MAE, by service; empty if there are only naive forecasts, or none."""
        naive = [row for row in self.rows if row.name in BASELINES]
        if not naive or len(naive) == len(self.rows):
            return {}
        best = {service: _best(np.array([row.mae[k] for row in naive])) for k, service in enumerate(self.services)}
        return {service: naive[number].name for service, number in best.items() if number >= 0}

    def to_table(self, services: Sequence[str] | None = None) -> rich.table.Table:
        """Return a `rich` table: rows are predictors, columns MAE, RMSE and skill of each service.

        Where a predictor has quantiles, further columns show the share of the targets inside its 80 % intervals and its
        weighted quantile loss. The best value of a column is bold. The title says what was compared; the caption gives
        the number of points, the best naive forecast and the notes.

        Args:
            services: services to show; None shows all.

        Raises:
            DataError: a service is unknown.
            MissingExtraError: `rich` is not installed.
        """
        table = self._columns(self.services if services is None else services)
        text = import_extra("rich.text", extra="forecast").Text
        table.title, table.caption = text(self.title), text(self.caption)
        table.title_justify = table.caption_justify = "left"
        return table

    def print(self, console: rich.console.Console | None = None) -> None:
        """Print the table, on standard output unless a console is given.

        If one table of all services is too wide, each service has its own table. A table that is still too wide leaves
        out the weighted quantile loss, then the coverage, then the RMSE.
        """
        if console is None:
            console = import_extra("rich.console", extra="forecast").Console()
        measure = import_extra("rich.measure", extra="forecast").Measurement.get
        # measured without the console's own limit, so that no number is ever cut off
        options = console.options.update(width=10_000)
        tables = [self._columns(self.services)]
        if measure(console, options, tables[0]).maximum > console.width:
            tables = []
            for service in self.services:
                forms = [self._columns([service], ("wql", "coverage", "rmse")[:dropped]) for dropped in range(4)]
                fits = [form for form in forms if measure(console, options, form).maximum <= console.width]
                tables.append((fits or forms[-1:])[0])
        console.print(self.title, markup=False, highlight=False)
        for table in tables:
            console.print(table)
        print_notes(console, self.caption.splitlines())

    def columns(self, service: str) -> list[Column]:
        """Return the columns of one service's table: MAE, RMSE, skill, and for quantiles the coverage and the WQL.

        Raises:
            DataError: the service is unknown.
        """
        if service not in self.services:
            raise DataError(f"the report has no service {service!r}; it has: {', '.join(self.services)}")
        k = self.services.index(service)
        # the scale of the errors stands over the MAE
        heads = {"mae": (f"mean {_number(self.scale[k])}", "MAE"), "rmse": ("", "RMSE"), "skill": ("", "skill")}
        if self.has_quantiles:
            heads |= {"coverage": ("in 80 %", "interval"), "wql": ("", "WQL")}
        found = []
        for key, head in heads.items():
            values = np.array([getattr(row, key)[k] for row in self.rows])
            found.append(Column(key, head, tuple(_shown(one, key) for one in values), _best(_badness(values, key))))
        return found

    def _columns(self, services: Sequence[str], without: Sequence[str] = ()) -> rich.table.Table:
        text = import_extra("rich.text", extra="forecast").Text
        table: rich.table.Table = import_extra("rich.table", extra="forecast").Table(
            box=import_extra("rich.box", extra="forecast").SIMPLE_HEAD, pad_edge=False
        )
        table.add_column("\n\nmodel", overflow="fold")  # where there is no room, names wrap and numbers do not
        shown = [(service, one) for service in services for one in self.columns(service) if one.key not in without]
        columns = [column for _, column in shown]
        for service, column in shown:
            head = (service if column.key == "mae" else "", *column.head)
            table.add_column(text("\n".join(head)), justify="right", no_wrap=True)
        for number, row in enumerate(self.rows):
            cells = [text(one.shown[number], style="bold" if number == one.best else "") for one in columns]
            table.add_row(text(row.name), *cells)
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the forecasts, ready for JSON; NaN becomes None."""
        return {
            "dataset": self.dataset,
            "surrogate": self.surrogate,
            "unit": self.unit,
            "services": list(self.services),
            "step_minutes": self.step_minutes,
            "horizon": self.horizon,
            "part": self.part,
            "num_origins": self.num_origins,
            "num_points": self.num_points,
            "mean_activity": _plain(dict(zip(self.services, self.scale, strict=True))),
            "best_naive": self.best_naive,
            "notes": list(self.notes),
            "models": [_row_to_dict(row, self.services) for row in self.rows],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Report:
        """Build a report from the values of `to_dict`, without forecasts.

        Raises:
            LookupError, TypeError, ValueError: the values are not those of a report.

        Example:
            >>> report = Report("a", "bits", False, ("net",), 60, 1, "test", 1, 1, (2.0,), ())
            >>> Report.from_dict(report.to_dict()).to_dict() == report.to_dict()
            True
        """
        services = tuple(values["services"])
        return cls(
            dataset=str(values["dataset"]),
            unit=str(values["unit"]),
            surrogate=bool(values["surrogate"]),
            services=services,
            step_minutes=int(values["step_minutes"]),
            horizon=int(values["horizon"]),
            part=str(values["part"]),
            num_origins=int(values["num_origins"]),
            num_points=int(values["num_points"]),
            scale=tuple(_numbers(values["mean_activity"], services).tolist()),
            rows=tuple(_row_from_dict(row, services) for row in values["models"]),
            notes=tuple(str(note) for note in values["notes"]),
        )

    def to_json(self, path: str | Path) -> Path:
        """Write `to_dict` as JSON, atomically.

        Example:
            >>> import json, tempfile
            >>> report = Report("a", "bits", False, ("net",), 60, 1, "test", 1, 1, (2.0,), ())
            >>> json.loads(report.to_json(Path(tempfile.mkdtemp()) / "report.json").read_text())["unit"]
            'bits'
        """
        return write_json(path, self.to_dict())

    def to_frame(self) -> pandas.DataFrame:
        """Return a long frame: model, service, step (1 .. T_out, 0 = all steps), mae, rmse, mase, skill.

        Where a predictor has quantiles there are also columns coverage and wql. The frame is a polars frame if the
        forecasts were kept and the traffic came in a polars frame, else a pandas frame.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        pd = import_extra("pandas", extra="forecast")
        keys = ["mae", "rmse", "mase", "skill", *(["coverage", "wql"] if self.has_quantiles else [])]
        records = []
        for row in self.rows:
            for k, service in enumerate(self.services):
                whole = {key: getattr(row, key)[k] for key in keys}
                records.append({"model": row.name, "service": service, "step": 0, **whole})
                for t in range(self.horizon):
                    one = {key: math.nan if key == "mase" else getattr(row, f"{key}_by_step")[t, k] for key in keys}
                    records.append({"model": row.name, "service": service, "step": t + 1, **one})
        frame: pandas.DataFrame = pd.DataFrame.from_records(records, columns=["model", "service", "step", *keys])
        of = None if self.forecasts is None else self.forecasts.dataset
        return frame if of is None else of.layout.in_its_library(frame)

    @property
    def caption(self) -> str:
        """Lines beneath the table: what was compared, what the columns mean, the best naive forecast, the notes."""
        lines = [
            f"{self.num_points:,} target points from {self.num_origins:,} origins; skill: 1 - MAE / MAE of persistence"
        ]
        if self.has_quantiles:
            lines.append(
                "in 80 % interval: share of the points inside it; WQL: weighted quantile loss at levels 0.1 to 0.9, "
                "relative to the traffic"
            )
        if self.best_naive:
            one_for_all = len(set(self.best_naive.values())) == 1
            named = [name if one_for_all else f"{name} ({service})" for service, name in self.best_naive.items()]
            lines.append(f"best naive by MAE: {', '.join(dict.fromkeys(named))}")
        if self.surrogate:
            lines.append(f"{SURROGATE}: simulated traffic that stands in for a real city; no result on real data")
        return "\n".join([*lines, *self.notes])


def print_notes(console: rich.console.Console, lines: Sequence[str]) -> None:
    """Print notes as a list whose longer lines are indented."""
    text = import_extra("rich.text", extra="forecast").Text
    grid = import_extra("rich.table", extra="forecast").Table.grid(padding=(0, 1, 0, 0))
    for line in lines:
        grid.add_row("-", text(line))
    console.print(grid)


_BY_STEP = ("mae_by_step", "rmse_by_step", "skill_by_step", "coverage_by_step", "wql_by_step")
_BY_SERVICE = ("mae", "rmse", "mase", "skill", "coverage", "wql", *_BY_STEP)
_OVERALL = ("mae", "rmse", "skill")


def _row_to_dict(row: Row, services: tuple[str, ...]) -> dict[str, Any]:
    def by_service(values: npt.NDArray[np.floating]) -> dict[str, Any]:
        return {service: values[..., k].tolist() for k, service in enumerate(services)}

    values = {key: by_service(getattr(row, key)) for key in _BY_SERVICE}
    overall = {key: getattr(row, f"overall_{key}") for key in _OVERALL}
    plain: dict[str, Any] = _plain({"name": row.name, **values, "overall": overall})
    return plain


def _row_from_dict(values: Mapping[str, Any], services: tuple[str, ...]) -> Row:
    fields: dict[str, Any] = {f"overall_{key}": float(_numbers(values["overall"], (key,))[0]) for key in _OVERALL}
    fields |= {key: _numbers(values[key], services) for key in _BY_SERVICE}
    return Row(name=str(values["name"]), **fields)


def _numbers(by_name: Mapping[str, Any], names: Sequence[str]) -> npt.NDArray[np.float64]:
    """Undo `_plain` for numbers, or lists of them, by name: (..., len(names)), NaN for None."""
    return np.stack([np.array(by_name[name], dtype=np.float64) for name in names], axis=-1)


def _plain(value: Any) -> Any:
    """Replace NaN, which JSON does not know, by None."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float, *, sign: bool = False) -> str:
    """Format an error with at least three significant digits, and skill with a sign and three decimals."""
    if not math.isfinite(value):
        return "-"
    if sign:
        return f"{value:+.3f}"
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 100 else 1 if abs(value) < 1000 else 0
    return f"{value:,.{digits}f}"


def _shown(value: float, key: str) -> str:
    if key == "coverage":
        return f"{100 * value:.0f} %" if math.isfinite(value) else "-"
    return _number(value, sign=key == "skill")


def _badness(values: npt.NDArray[np.floating], key: str) -> npt.NDArray[np.floating]:
    """Return the values of a column in a form whose least is the best."""
    return -values if key == "skill" else np.abs(values - 0.8) if key == "coverage" else values


def _best(values: npt.NDArray[np.floating]) -> int:
    """Return the index of the least known value, -1 where none is known."""
    known = np.isfinite(values)
    return int(np.where(known, values, np.inf).argmin()) if known.any() else -1
