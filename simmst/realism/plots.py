"""One page of plots of a realism report, with a row for each file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simmst.errors import ConfigError
from simmst.foundation.pictures import COLOURS, checked_format, colours, new_figure, save_picture
from simmst.realism.comparison import FileComparison
from simmst.realism.measurements import LEVELS, SPATIAL_LAGS, Measurement

# Titles of the panels, and labels of their horizontal axes.
_HEADS = {
    "percentile of the real value": "statistics",
    "distribution of log traffic": "standard deviations from the mean",
    "mean day, over its peak": "local hour",
    "spatial autocorrelation": "distance in cells",
}


def plot_realism(title: str, files: Sequence[FileComparison], path: str | Path) -> Path:
    """Draw each file's statistics, marginals, mean day and map against the band of the simulated cities.

    Lines are real, shaded bands are simulated (5 to 95 %), with one colour per service.

    Args:
        title: title of the page.
        files: comparisons to draw, one per file.
        path: the picture, ``.png``, ``.svg`` or ``.pdf``.

    Returns:
        The path written.

    Raises:
        ConfigError: the picture has another format, or there is no file.
        MissingExtraError: matplotlib is not installed.
    """
    path = checked_format(path)
    if not files:
        raise ConfigError("the report compares no file, so there is nothing to draw")
    rows = len(files)
    figure = new_figure(14, 1.2 + 2.9 * rows)
    panels = figure.subplots(rows, len(_HEADS), squeeze=False)
    for comparison, axes in zip(files, panels, strict=True):
        _draw_positions(axes[0], comparison)
        _draw_marginals(axes[1], comparison)
        _draw_days(axes[2], comparison)
        _draw_space(axes[3], comparison)
        label = "SURROGATE " if comparison.surrogate else ""
        axes[0].set_ylabel(f"{label}{comparison.name}", fontsize=8)
    for axis, head in zip(panels[0], _HEADS, strict=True):
        axis.set_title(head, fontsize=10)
    for axis, name in zip(panels[-1], _HEADS.values(), strict=True):
        axis.set_xlabel(name, fontsize=8)
    figure.suptitle(f"{title}; lines real, bands 5-95 % of the simulated", fontsize=10)
    return save_picture(figure, path)


def _draw_positions(axes: Any, comparison: FileComparison) -> None:
    """Draw each statistic at its percentile; those outside the band are named."""
    axes.axhspan(5, 95, color="0.92")
    inside = np.array([row.inside for row in comparison.rows], dtype=bool)
    level = np.array([row.percentile for row in comparison.rows])
    place = np.arange(len(level))
    axes.plot(place[inside], level[inside], ".", color="0.35", markersize=4)
    axes.plot(place[~inside], level[~inside], "x", color=COLOURS[1], markersize=5)
    for row, x, y in zip(comparison.rows, place, level, strict=True):
        if not row.inside:
            axes.annotate(f"{row.subject} {row.statistic.key}", (x, min(max(y, 8), 92)), fontsize=7, ha="center")
    axes.set(ylim=(-4, 104), xticks=[], yticks=[5, 50, 95])
    axes.tick_params(labelsize=8)


def _draw_marginals(axes: Any, comparison: FileComparison) -> None:
    for service, colour in _coloured(comparison.real.quantiles):
        rows = [one.quantiles[service] for one in comparison.simulated if service in one.quantiles]
        low, high = np.quantile(rows, (0.05, 0.95), axis=0)
        axes.fill_betweenx(LEVELS, low, high, color=colour, alpha=0.25, linewidth=0)
        axes.plot(comparison.real.quantiles[service], LEVELS, color=colour, linewidth=1.2, label=service)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    axes.set(xlim=(-4.5, 4.5), ylim=(0, 1))
    axes.tick_params(labelsize=8)


def _draw_days(axes: Any, comparison: FileComparison) -> None:
    hours = np.arange(24) + 0.5
    for service, colour in _coloured(comparison.real.days):
        rows = [one.days[service] for one in comparison.simulated if service in one.days]
        if rows:
            axes.fill_between(hours, *np.quantile(rows, (0.05, 0.95), axis=0), color=colour, alpha=0.25, linewidth=0)
        axes.plot(hours, comparison.real.days[service], color=colour, linewidth=1.2)
    if not comparison.real.days:
        _say(axes, "no whole day, or no level")
    axes.set(xlim=(0, 24), xticks=[0, 6, 12, 18, 24], ylim=(0, 1.05))
    axes.tick_params(labelsize=8)


def _draw_space(axes: Any, comparison: FileComparison) -> None:
    drawn = False
    for service, colour in _coloured(comparison.real.quantiles):
        lags = [lag for lag in SPATIAL_LAGS if (service, f"cells_{lag}") in comparison.real.values]
        if not lags:
            continue
        drawn = True
        simulated = [_curve(one, service, lags) for one in comparison.simulated]
        low, high = np.nanquantile(simulated, (0.05, 0.95), axis=0)
        axes.fill_between(lags, low, high, color=colour, alpha=0.25, linewidth=0)
        axes.plot(lags, _curve(comparison.real, service, lags), color=colour, linewidth=1.2, marker=".")
    if not drawn:
        _say(axes, "no neighbouring cells")
    axes.set(xlim=(0, 20.5), ylim=(-0.6, 1.02), xticks=[1, 5, 10, 15, 20])
    axes.tick_params(labelsize=8)


def _curve(measured: Measurement, service: str, lags: Sequence[int]) -> list[float]:
    return [measured.values.get((service, f"cells_{lag}"), np.nan) for lag in lags]


def _coloured(by_service: Mapping[str, Any]) -> list[tuple[str, str]]:
    return list(zip(by_service, colours(len(by_service)), strict=True))


def _say(axes: Any, words: str) -> None:
    axes.text(0.5, 0.5, words, ha="center", va="center", fontsize=7, color="0.4", transform=axes.transAxes)
