"""One self-contained HTML page of a run: a map with a slider, the series of any cell, tables, curves, the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simmst.errors import ConfigError
from simmst.evaluation import Report, TestedSlots
from simmst.evaluation.forecasts import LEVEL
from simmst.evaluation.report import SURROGATE
from simmst.foundation.extras import import_extra
from simmst.foundation.files import write_atomically
from simmst.plotting.labels import label
from simmst.plotting.packing import deflated, packed, quantised, ranges
from simmst.plotting.page_figures import error_figures, training_figures, weight_figures
from simmst.plotting.scales import busiest_cell, colour_limits
from simmst.training import History

_ASSETS = Path(__file__).parent / "assets"
_VALUES = 400_000  # slots x services x cells: with more a page of small cities would be larger than 5 MB


@dataclass(frozen=True, eq=False)
class Page:
    """Content of a page.

    Args:
        slots: one forecast of each tested slot.
        source: sentence that says which forecasts these are.
        report: report with the tables; None without one.
        histories: histories of the training.
        weights: weights of the simulated cities from `WeightReport.to_dict`; None if none were weighted.
        record: record of the run: headings, each with names and values.
    """

    slots: TestedSlots
    source: str = ""
    report: Report | None = None
    histories: Sequence[History] = ()
    weights: Mapping[str, Any] | None = None
    record: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def write_page(path: str | Path, page: Page, *, days: int | None = None) -> Path:
    """Write a page that shows a run in any browser, from disk and without a network.

    The numbers are quantised. Forecast and truth lose less than a hundred-thousandth of their series' range, intervals
    less than half a hundredth. Text from the data is escaped.

    Args:
        path: path of the page, ``.html``.
        page: content of the page.
        days: last days of the test to show; None takes as many as keep the page small (400,000 values), at least one.

    Returns:
        The path written.

    Raises:
        ConfigError: the path has another ending, or `days` is below 1.
        MissingExtraError: plotly or jinja2 is not installed.
    """
    path = Path(path)
    if path.suffix not in (".html", ".htm"):
        raise ConfigError(f"{path} does not end in .html; give the page such a name")
    if days is not None and days < 1:
        raise ConfigError(f"days is {days}; it must be at least 1")
    text = page_text(page, days=days)
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def page_text(page: Page, *, days: int | None = None) -> str:
    """Return the page that `write_page` writes."""
    jinja = import_extra("jinja2", extra="forecast")
    tested = page.slots
    slots = tested.last(slots_shown(tested, days))
    data, arrays = page_data(slots)
    figures = {
        "errors": [] if page.report is None else error_figures(page.report, tested.name),
        "weights": [] if page.weights is None else weight_figures(page.weights),
        "training": training_figures(page.histories),
    }
    environment = jinja.Environment(
        loader=jinja.FileSystemLoader(_ASSETS), autoescape=True, undefined=jinja.StrictUndefined
    )
    trusted = jinja.utils.markupsafe.Markup  # only our own files and base64, nothing from the data
    text: str = environment.get_template("page.html").render(
        title=_title(slots),
        lead=_lead(page, slots),
        services=slots.dataset.services,
        num_slots=slots.dataset.num_steps,
        hint=_hint(slots),
        model=tested.name,
        report=page.report,
        weights=None if page.weights is None else _weights(page.weights),
        figures=figures,
        record=page.record,
        data=data | {"figures": [figure for made in figures.values() for figure in made]},
        arrays=trusted(arrays),
        plotly=trusted(_plotly()),
        style=trusted((_ASSETS / "page.css").read_text(encoding="utf-8")),
        script=trusted((_ASSETS / "page.js").read_text(encoding="utf-8")),
    )
    return text


@cache
def _plotly() -> str:
    """Return the drawing library that comes with the package plotly, deflated."""
    source: str = import_extra("plotly.offline", extra="forecast").get_plotlyjs()
    return deflated(source.encode("utf-8"))


def slots_shown(tested: TestedSlots, days: int | None = None) -> int:
    """Return the number of slots, at the end of the test, that a page shows; see `write_page`."""
    dataset = tested.dataset
    if days is None:
        days = max(1, _VALUES // (dataset.num_cells * dataset.num_services * dataset.steps_per_day))
    return min(dataset.num_steps, max(2, days * dataset.steps_per_day))


def page_data(slots: TestedSlots) -> tuple[dict[str, Any], str]:
    """Return the data for the page's script: values for JSON, and the arrays packed into one text.

    Args:
        slots: slots to show.

    Returns:
        The values and the text. ``arrays`` among the values gives the places in the text of: truth and forecast
        (K, C, T) in 16 bits, the bounds of the interval in 8 bits, ``limits`` (K, C, 2) of their quantisation, and the
        positions of the cells.
    """
    dataset = slots.dataset
    truth, forecast, *bounds = (
        np.ascontiguousarray(array.transpose(1, 2, 0))  # (K, C, T)
        for array in (dataset.series(), slots.forecast, *(slots.interval or ()))
    )
    limits = ranges(truth, forecast, *bounds)
    geometry, places = _places(slots)
    arrays = {
        "limits": limits,
        "truth": quantised(truth, limits),
        "forecast": quantised(forecast, limits),
        **{name: quantised(array, limits, 8) for name, array in zip(("low", "high"), bounds, strict=False)},
        **places,
    }
    entries, text = packed(arrays)
    local = dataset.layout.times_of(dataset.time, dataset.timezone)
    values = {
        "arrays": entries,
        "geometry": geometry,
        "names": [str(name) for name in dataset.unique_ids()],
        "services": list(dataset.services),
        "unit": dataset.unit,
        "model": slots.name,
        "level": LEVEL,
        "labels": local.strftime("%a %d %b %Y, %H:%M").tolist(),
        "start": local[0].strftime("%Y-%m-%dT%H:%M:%S"),
        "step_minutes": dataset.step_minutes,
        "ahead": ["-" if one == 0 else "1 slot" if one == 1 else f"{one} slots" for one in slots.ahead.tolist()],
        "signed": bool((limits < 0).any()),
        "colours": [list(colour_limits(truth[k], forecast[k])) for k in range(dataset.num_services)],
        "cell": busiest_cell(truth),
        "slot": _busiest_slot(truth),
    }
    return values, text


def _busiest_slot(truth: npt.NDArray[np.floating]) -> int:
    return int(np.nansum(truth, axis=(0, 1)).argmax())


def _places(slots: TestedSlots) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Return the positions of the cells: on a grid, at coordinates, or none, for one bar per cell."""
    dataset = slots.dataset
    rows, columns = dataset.cells.T
    if dataset.geometry == "grid":
        height, width = dataset.mask.shape
        places = {"row": rows.astype(np.uint16), "column": columns.astype(np.uint16)}
        return {"kind": "grid", "rows": height, "columns": width}, places
    if dataset.lonlat is None or not np.isfinite(dataset.lonlat[rows, columns]).all():
        return {"kind": "bars"}, {}
    longitude, latitude = dataset.lonlat[rows, columns].T
    # A degree of latitude is longer than one of longitude.
    ratio = 1 / max(float(np.cos(np.deg2rad(latitude.mean()))), 0.1)
    places = {"lon": longitude.astype(np.float32), "lat": latitude.astype(np.float32)}
    return {"kind": "places", "ratio": round(ratio, 4)}, places


def _title(slots: TestedSlots) -> str:
    return f"{slots.name} on {label(slots.dataset)}"


def _lead(page: Page, slots: TestedSlots) -> list[str]:
    dataset, tested = slots.dataset, page.slots.dataset
    days = tested.num_steps / tested.steps_per_day
    lines = [
        f"{dataset.num_cells:,} cells, {', '.join(dataset.services)}; {days:.3g} tested days in slots of "
        f"{dataset.step_minutes} min, local time {dataset.timezone}, in {dataset.unit}",
        page.source,
    ]
    if dataset.num_steps < tested.num_steps:
        last = round(dataset.num_steps / dataset.steps_per_day)
        shown = "last day" if last <= 1 else f"last {last} days"
        lines.append(f"Map and curves show the {shown}; the tables cover all days. simmst report --days shows more.")
    if dataset.surrogate:
        lines.append(f"{SURROGATE}: simulated traffic that stands in for a real city; no result on real data.")
    return [line for line in lines if line]


def _hint(slots: TestedSlots) -> str:
    horizon = int(slots.ahead.max())
    steps = "at every slot, 1 slot ahead" if horizon <= 1 else f"at every {horizon} slots, 1 to {horizon} slots ahead"
    north = " North is up; a white cell has no value." if slots.dataset.geometry == "grid" else ""
    return (
        f"Forecasts were made {steps}, each from the slots before it. Click a cell to see its series, or a point of "
        f"the series to see its slot on the map; the slider moves the map, too.{north}"
    )


def _weights(weights: Mapping[str, Any]) -> dict[str, Any]:
    cities = weights["cities"]
    title = (
        f"weights of {weights['num_samples']:,} simulated windows of {len(cities)} cities; effectively "
        f"{weights['effective_samples']:,.0f} windows, {weights['effective_cities']:.1f} cities"
    )
    parameters = [
        {
            "name": one["name"],
            "prior": f"{one['prior_mean']:.4g}",
            "posterior": f"{one['posterior_mean']:.4g}",
            "shift": f"{one['shift']:+.1f}",
        }
        for one in weights["parameters"][:10]
    ]
    return {"title": title, "parameters": parameters}
