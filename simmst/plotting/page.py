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
    """What a page shows.

    Args:
        slots: one forecast of each tested slot.
        source: a sentence that says which forecasts these are.
        report: the tables; None where there are none.
        histories: of the training.
        weights: of the simulated cities, as `WeightReport.to_dict` gives them; None where none were weighed.
        record: headings, and beneath each the names and values of the run's record.
    """

    slots: TestedSlots
    source: str = ""
    report: Report | None = None
    histories: Sequence[History] = ()
    weights: Mapping[str, Any] | None = None
    record: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def write_page(path: str | Path, page: Page, *, days: int | None = None) -> Path:
    """Write a page that shows a run in any browser, from disk, without a network.

    The numbers are quantised: forecast and truth lose less than a hundred-thousandth of their series' range, intervals
    less than half a hundredth. Text from data is escaped.

    Args:
        path: the page, ``.html``.
        page: what to show.
        days: the last days of the test shown; None takes as many as keep the page small (400,000 values), one at least.

    Returns:
        The path written.

    Raises:
        ConfigError: the path ends in something else, or `days` is below 1.
        MissingExtraError: plotly or jinja2 is not installed.
    """
    path = Path(path)
    if path.suffix not in (".html", ".htm"):
        raise ConfigError(f"the page {path} should end in .html")
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
    trusted = jinja.utils.markupsafe.Markup  # our own files and base64: nothing of the data
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
    """The drawing library, as the package plotly brings it."""
    source: str = import_extra("plotly.offline", extra="forecast").get_plotlyjs()
    return deflated(source.encode("utf-8"))


def slots_shown(tested: TestedSlots, days: int | None = None) -> int:
    """Return how many of the last slots a page shows: see `write_page`."""
    dataset = tested.dataset
    if days is None:
        days = max(1, _VALUES // (dataset.num_cells * dataset.num_services * dataset.steps_per_day))
    return min(dataset.num_steps, max(2, days * dataset.steps_per_day))


def page_data(slots: TestedSlots) -> tuple[dict[str, Any], str]:
    """Return what the page's script reads: values that go in as JSON, and the numbers as one text.

    Args:
        slots: those shown.

    Returns:
        The values; ``arrays`` among them says where truth and forecast (K, C, T) of 16 bits, the bounds of the interval
        of 8 bits, ``limits`` (K, C, 2) between which they are told, and the cells' places are in the text.
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
    """Where the cells are: on a raster, at coordinates, or nowhere, one bar a cell."""
    dataset = slots.dataset
    rows, columns = dataset.cells.T
    if dataset.geometry == "grid":
        height, width = dataset.mask.shape
        places = {"row": rows.astype(np.uint16), "column": columns.astype(np.uint16)}
        return {"kind": "grid", "rows": height, "columns": width}, places
    if dataset.lonlat is None or not np.isfinite(dataset.lonlat[rows, columns]).all():
        return {"kind": "bars"}, {}
    longitude, latitude = dataset.lonlat[rows, columns].T
    ratio = 1 / max(float(np.cos(np.deg2rad(latitude.mean()))), 0.1)  # a degree north is longer than one east
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
        lines.append(f"Map and curves show the {shown}; the tables are of all. simmst report --days shows more.")
    if dataset.surrogate:
        lines.append(f"{SURROGATE}: simulated traffic that stands in for a real city; no result on real data.")
    return [line for line in lines if line]


def _hint(slots: TestedSlots) -> str:
    horizon = int(slots.ahead.max())
    steps = "every slot, 1 slot ahead" if horizon <= 1 else f"every {horizon} slots, 1 to {horizon} slots ahead"
    north = " North is up; a white cell has no value." if slots.dataset.geometry == "grid" else ""
    return (
        f"Forecasts were made {steps}, from what was known before. Click a cell for its series, a point of the series "
        f"for its slot; the slider moves the map.{north}"
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
