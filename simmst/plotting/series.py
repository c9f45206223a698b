"""Figures of the series of a cell, with truth, forecasts and intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from simmst.data import TrafficDataset
from simmst.errors import ConfigError
from simmst.evaluation import Forecasts, TestedSlots
from simmst.evaluation.forecasts import LEVEL
from simmst.foundation.pictures import COLOURS, colours, new_figure, panels
from simmst.plotting.labels import check_names, label, local_times, tell_dates

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_series(slots: TestedSlots, cell: int = 0, *, baseline: TestedSlots | None = None) -> Figure:
    """Draw the truth, the forecast and its interval over the tested slots of a cell, one panel per service.

    Args:
        slots: one forecast of each tested slot, as `TestedSlots.read` reads them from a run's folder.
        cell: number of the cell in the order of `dataset.cells`.
        baseline: forecasts of the same slots by another predictor, drawn as a thin line; None draws none.

    Raises:
        ConfigError: there is no such cell.
        MissingExtraError: matplotlib or pandas is not installed.

    Example:
        >>> city = TrafficDataset.from_arrays(np.ones((24, 1, 2, 2)), np.arange(24) * 3600, name="toytown")
        >>> slots = TestedSlots(city, "ridge", np.ones(24, dtype=np.int64), 2 * city.series())
        >>> figure = plot_series(slots, cell=3)
        >>> figure.get_suptitle(), figure.axes[0].lines[1].get_ydata()[0].item()
        ('toytown, cell 3: ridge, 1 slot ahead', 2.0)
    """
    dataset = slots.dataset
    _check_cell(cell, dataset.num_cells)
    times = local_times(dataset, np.arange(dataset.num_steps))
    figure = new_figure(9.0, 1.0 + 2.0 * dataset.num_services)
    stacked = panels(figure, dataset.num_services, 1, sharex=True)
    truth = dataset.series()
    for k, (axes, service) in enumerate(zip(stacked, dataset.services, strict=True)):
        axes.plot(times, truth[:, k, cell], color="black", linewidth=1.2, label="truth")
        axes.plot(times, slots.forecast[:, k, cell], color=COLOURS[0], linewidth=1.4, label=slots.name)
        if slots.interval is not None:
            low, high = (bound[:, k, cell] for bound in slots.interval)
            axes.fill_between(times, low, high, color=COLOURS[0], alpha=0.2, linewidth=0, label=f"{LEVEL} % interval")
        if baseline is not None:
            other = baseline.forecast[:, k, cell]
            axes.plot(times, other, color=COLOURS[1], linewidth=0.8, label=baseline.name, zorder=1.5)
        axes.set(ylabel=f"{service}\n{dataset.unit}")
        axes.margins(x=0.01)
    stacked[0].legend(frameon=False, ncols=4, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    tell_dates(stacked[-1], dataset)
    furthest = int(slots.ahead.max())
    ahead = "1 slot ahead" if furthest <= 1 else f"1 to {furthest} slots ahead"
    figure.suptitle(f"{label(dataset)}, cell {dataset.unique_ids()[cell]}: {slots.name}, {ahead}")
    return figure


def plot_forecast(
    dataset: TrafficDataset,
    forecasts: Forecasts,
    names: Sequence[str],
    *,
    cell: int = 0,
    step: int = 1,
) -> Figure:
    """Draw forecasts against the truth at one cell over the days compared, one panel per service.

    Args:
        dataset: series that was forecast.
        forecasts: forecasts that `evaluate` kept.
        names: predictors to draw, few enough to tell their colours apart.
        cell: number of the cell in `dataset.cells`.
        step: number of steps ahead of the forecasts to draw, 1 .. T_out.

    Raises:
        ConfigError: there is no such predictor, cell or step.
        MissingExtraError: matplotlib is not installed.

    Example:
        >>> city = TrafficDataset.from_arrays(np.ones(24), np.arange(24) * 3600, name="toytown")
        >>> one = np.ones((3, 1, 2, 1), dtype=np.float32)
        >>> figure = plot_forecast(city, Forecasts(np.arange(20, 23), one, {"ridge": one}), ["ridge"], step=2)
        >>> figure.get_suptitle()
        'toytown, cell 0: 2 steps of 60 min ahead'
    """
    check_names(forecasts, names)
    _, num_cells, horizon, _ = forecasts.truth.shape
    _check_cell(cell, num_cells)
    if not 1 <= step <= horizon:
        raise ConfigError(f"step is {step}; the forecasts reach 1 .. {horizon} steps ahead")
    times = local_times(dataset, forecasts.origins + step - 1)
    figure = new_figure(9.0, 1.0 + 2.0 * dataset.num_services)
    stacked = panels(figure, dataset.num_services, 1, sharex=True)
    for k, (axes, service) in enumerate(zip(stacked, dataset.services, strict=True)):
        axes.plot(times, forecasts.truth[:, cell, step - 1, k], color="black", linewidth=1.2, label="truth")
        for name, colour in zip(names, colours(len(names)), strict=True):
            axes.plot(times, forecasts.by_name[name][:, cell, step - 1, k], color=colour, linewidth=1.0, label=name)
        axes.set(ylabel=f"{service}\n{dataset.unit}")
    stacked[0].legend(frameon=False, ncols=len(names) + 1, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    tell_dates(stacked[-1], dataset)
    ahead = "1 step" if step == 1 else f"{step} steps"
    where = f"cell {dataset.unique_ids()[cell]}"
    figure.suptitle(f"{label(dataset)}, {where}: {ahead} of {dataset.step_minutes} min ahead")
    return figure


def _check_cell(cell: int, count: int) -> None:
    if not 0 <= cell < count:
        raise ConfigError(f"cell is {cell}; there are {count} cells, counted from 0")
