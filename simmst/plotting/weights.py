"""A picture of the weights of simulated cities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from simmst.evaluation.weight_report import WeightReport
from simmst.foundation.pictures import COLOURS, new_figure, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANELS = 8  # most parameters in the picture


def plot_weights(report: WeightReport) -> Figure:
    """Draw the cities' sorted weights, and the parameters that shift most: all cities against weighted ones.

    Args:
        report: report to draw.

    Raises:
        MissingExtraError: matplotlib is not installed.

    Example:
        >>> from simmst.training import WindowWeights
        >>> given = WindowWeights(np.array([0.9, 0.1], np.float32), np.array([0, 1]), None, 2)
        >>> plot_weights(WeightReport.of(given, ["a", "b"])).get_suptitle()
        'weights of 2 simulated windows of 2 cities; effectively 1 windows, 1.2 cities'
    """
    shifts = report.shifts[:_PANELS]
    rows = -(-(1 + len(shifts)) // 3)
    figure = new_figure(10.0, 2.6 * rows + 0.3)
    first, *others = panels(figure, rows, 3)
    ordered = report.weights[report.ranked()]
    first.bar(np.arange(1, len(ordered) + 1), ordered, width=0.9, color=COLOURS[0])
    first.axhline(0.5, color="black", linewidth=0.8, linestyle=":")
    first.set(title="weights of the cities", xlabel="city, sorted by weight", ylim=(0.0, 1.0))
    for axes, shift in zip(others, shifts, strict=False):
        _draw_parameter(axes, report.parameters[shift.name], report.weights)
        axes.set(title=f"{shift.name} ({shift.shift:+.1f})")
    for axes in others[len(shifts) :]:
        axes.set_axis_off()
    if shifts:
        figure.legend(*others[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2)
    figure.suptitle(report.title)
    return figure


def _draw_parameter(axes: Any, values: np.ndarray, weights: np.ndarray) -> None:
    edges = np.histogram_bin_edges(values, bins=min(12, max(4, len(values) // 4)))
    weighted = weights if weights.sum() > 0 else np.ones_like(weights)
    axes.hist(values, edges, density=True, color="lightgrey", label="all cities")
    axes.hist(values, edges, density=True, weights=weighted, histtype="step", color=COLOURS[1], label="weighted")
    axes.axvline(values.mean(), color="grey", linewidth=0.8)
    axes.axvline(np.average(values, weights=weighted), color=COLOURS[1], linewidth=0.8)
    axes.set_yticks([])
