"""The static figures of a page as JSON for plotly, with traces and layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from simmst.evaluation import Report
from simmst.foundation.pictures import COLOURS, colours
from simmst.training import History

Figure = dict[str, Any]  # id, data, layout


def error_figures(report: Report, own: str) -> list[Figure]:
    """Return figures of the mean absolute error by slots ahead, one per service; none for a horizon of one slot.

    Args:
        report: report with the errors.
        own: name of the predictor to draw bold.

    Example:
        >>> error_figures(Report("a", "bits", False, ("net",), 60, 1, "test", 1, 1, (2.0,), ()), "ridge")
        []
    """
    if report.horizon < 2:
        return []
    rows = sorted(report.rows, key=lambda row: row.name != own)
    styles = list(zip(colours(len(rows)), ["solid"] * len(COLOURS) + ["dash"] * len(rows), strict=False))
    found = []
    for k, service in enumerate(report.services):
        traces: list[Figure] = []
        for row, (color, dash) in zip(rows, styles, strict=True):
            trace = _line(row.name, list(range(1, report.horizon + 1)), row.mae_by_step[:, k].tolist(), color=color)
            trace["line"] |= {"width": 3.5 if row.name == own else 1.5, "dash": dash}
            traces.insert(0, trace)  # so that the bold line is drawn last, above the others
        layout = _layout(f"{service}: error by slots ahead", "slots ahead", f"MAE, {report.unit}", report.horizon)
        layout["showlegend"] = False  # a common legend stands above the figures
        found.append({"id": f"errors-{k}", "data": traces, "layout": layout})
    return found


def training_figures(histories: Sequence[History]) -> list[Figure]:
    """Return figures of the losses over the epochs, one per stage.

    Example:
        >>> (made,) = training_figures([History("real", [{"epoch": 1, "train_loss": 0.5}])])
        >>> made["id"], made["data"][0]["y"]
        ('training-0', [0.5])
    """
    found = []
    for number, history in enumerate(histories):
        traces = [
            _line(name, *history.series(key), color=COLOURS[place], mode="lines+markers")
            for place, (key, name) in enumerate([("train_loss", "training"), ("validation_loss", "validation")])
            if history.series(key)[0]
        ]
        layout = _layout(f"stage {history.stage}", "epoch", "loss (scaled)", len(history.records))
        found.append({"id": f"training-{number}", "data": traces, "layout": layout})
    return [figure for figure in found if figure["data"]]


def weight_figures(weights: Mapping[str, Any]) -> list[Figure]:
    """Return a figure of the sorted weights of the simulated cities, from `WeightReport.to_dict`.

    Example:
        >>> (made,) = weight_figures({"cities": [{"name": "a", "weight": 0.75}]})
        >>> made["data"][0]["y"]
        [0.75]
    """
    cities = weights["cities"]
    bars = {
        "type": "bar",
        "x": list(range(1, len(cities) + 1)),
        "y": [city["weight"] for city in cities],
        "text": [_plain(city["name"]) for city in cities],
        "textposition": "none",
        "hovertemplate": "%{text}<br>weight %{y:.3f}<extra></extra>",
        "marker": {"color": COLOURS[0]},
    }
    layout = _layout(
        "weights of the simulated cities", "city, sorted by weight", "weight (all begin at 0.5)", len(cities)
    )
    layout["yaxis"]["range"] = [0, 1]
    return [{"id": "weights-0", "data": [bars], "layout": layout}]


def _line(name: str, x: Sequence[float], y: Sequence[float], *, color: str, mode: str = "lines") -> Figure:
    return {
        "type": "scatter",
        "mode": mode,
        "name": _plain(name),
        "meta": name,
        "x": list(x),
        "y": [None if value != value else value for value in y],
        "line": {"color": color, "width": 2.0},
        "hovertemplate": "%{y:,.4~g}",
    }


def _layout(title: str, x: str, y: str, count: int) -> Figure:
    """Return a layout whose horizontal axis has whole numbers up to `count`."""
    return {
        "title": {"text": _plain(title), "font": {"size": 14}, "x": 0.02},
        "xaxis": {
            "title": {"text": x},
            "fixedrange": True,
            "tick0": 0,
            "dtick": max(1, -(-count // 8)),
            "zeroline": False,
        },
        "yaxis": {"title": {"text": _plain(y)}, "fixedrange": True, "rangemode": "tozero"},
        "hovermode": "x unified",
    }


def _plain(text: object) -> str:
    """Escape a text, because plotly interprets some HTML in its texts."""
    return escape(str(text), quote=False)
