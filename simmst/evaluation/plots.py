"""Pictures of a run: losses, task weights, forecasts against the truth, error maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simmst.data import TrafficDataset
from simmst.errors import ConfigError, DataError
from simmst.evaluation.forecasts import Forecasts
from simmst.evaluation.report import SURROGATE
from simmst.foundation.extras import import_extra
from simmst.foundation.pictures import COLOURS, colours, new_figure, panels, save_picture
from simmst.training.history import History


def plot_losses(path: str | Path, histories: Sequence[History], *, dataset: TrafficDataset) -> Path:
    """Draw training and validation loss over the epochs, one panel a stage.

    Args:
        path: the picture, ``.png``, ``.svg`` or ``.pdf``.
        histories: one a stage.
        dataset: for the title.

    Returns:
        The path written.

    Raises:
        ConfigError: another kind of picture.
        DataError: there is no history.
        MissingExtraError: matplotlib is not installed.
    """
    if not histories:
        raise DataError("there is no training history to draw; pass the histories of a solver's result")
    figure = new_figure(4.2 * len(histories), 3.4)
    for axes, history in zip(panels(figure, 1, len(histories)), histories, strict=True):
        axes.plot(*history.series("train_loss"), color=COLOURS[0], marker=".", label="training")
        epochs, scores = history.series("validation_loss")
        if epochs:
            axes.plot(epochs, scores, color=COLOURS[1], marker=".", label="validation")
            axes.axvline(history.best_epoch, color="grey", linewidth=0.8, linestyle=":", label="kept")
        axes.set(title=f"stage {history.stage}", xlabel="epoch", ylabel="loss (scaled)")
        axes.xaxis.set_major_locator(_whole_numbers())
        axes.legend(frameon=False)
    figure.suptitle(f"{_label(dataset)}: loss")
    return save_picture(figure, path)


def plot_task_weights(path: str | Path, histories: Sequence[History], *, dataset: TrafficDataset) -> Path:
    """Draw the weight of each task's loss (Sim-MSTNet, Eq. 13-14; epoch means) over the steps of all stages.

    Args:
        path: the picture.
        histories: one a stage; the steps of later stages follow on.
        dataset: for the title.

    Returns:
        The path written.

    Raises:
        ConfigError: another kind of picture.
        DataError: no epoch has task weights.
        MissingExtraError: matplotlib is not installed.
    """
    services = next((list(r["task_weights"]) for h in histories for r in h.records if "task_weights" in r), None)
    if services is None:
        raise DataError("no epoch of these histories has task weights to draw")
    figure = new_figure(6.4, 3.4)
    (axes,) = panels(figure, 1, 1)
    start = 0
    for number, history in enumerate(histories):
        for service, colour in zip(services, colours(len(services)), strict=True):
            steps, weights = history.series("task_weights", service, over="step")
            label = service if number == 0 else None
            axes.plot([start + step for step in steps], weights, color=colour, marker=".", label=label)
        if number:
            axes.axvline(start, color="grey", linewidth=0.8, linestyle=":")
        start += max((record["step"] for record in history.records), default=0)
    axes.set(xlabel="step", ylabel="weight", ylim=(0.0, 1.02))
    axes.legend(frameon=False)
    stages = ", ".join(history.stage for history in histories)
    figure.suptitle(f"{_label(dataset)}: task weights ({stages})")
    return save_picture(figure, path)


def plot_forecast(
    path: str | Path,
    dataset: TrafficDataset,
    forecasts: Forecasts,
    names: Sequence[str],
    *,
    cell: int = 0,
    step: int = 1,
) -> Path:
    """Draw forecasts against the truth at one cell over the days compared, one panel a service.

    Args:
        path: the picture.
        dataset: the series the forecasts are of.
        forecasts: as `evaluate` keeps them.
        names: the predictors to draw, few enough to be told apart.
        cell: the number of the cell in `dataset.cells`.
        step: how many steps ahead the forecasts drawn were made, 1 .. T_out.

    Returns:
        The path written.

    Raises:
        ConfigError: an unknown predictor, cell or step.
        MissingExtraError: matplotlib is not installed.
    """
    _check_names(forecasts, names)
    _, num_cells, horizon, _ = forecasts.truth.shape
    if not 0 <= cell < num_cells:
        raise ConfigError(f"cell is {cell}; there are {num_cells} cells, counted from 0")
    if not 1 <= step <= horizon:
        raise ConfigError(f"step is {step}; the forecasts reach 1 .. {horizon} steps ahead")
    times = _local_times(dataset, forecasts.origins + step - 1)
    dates = import_extra("matplotlib.dates", extra="forecast")
    figure = new_figure(9.0, 1.0 + 2.0 * dataset.num_services)
    stacked = panels(figure, dataset.num_services, 1, sharex=True)
    for k, (axes, service) in enumerate(zip(stacked, dataset.services, strict=True)):
        axes.plot(times, forecasts.truth[:, cell, step - 1, k], color="black", linewidth=1.2, label="truth")
        for name, colour in zip(names, colours(len(names)), strict=True):
            axes.plot(times, forecasts.by_name[name][:, cell, step - 1, k], color=colour, linewidth=1.0, label=name)
        axes.set(ylabel=f"{service}\n{dataset.unit}")
    stacked[0].legend(frameon=False, ncols=len(names) + 1, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    locator = dates.AutoDateLocator(maxticks=10)
    stacked[-1].xaxis.set_major_locator(locator)
    stacked[-1].xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
    stacked[-1].set(xlabel=f"local time ({dataset.timezone})")
    row, column = dataset.cells[cell]
    ahead = "1 step" if step == 1 else f"{step} steps"
    where = f"cell {int(dataset.cell_id[row, column])}"
    figure.suptitle(f"{_label(dataset)}, {where}: {ahead} of {dataset.step_minutes} min ahead")
    return save_picture(figure, path)


def plot_error_map(path: str | Path, dataset: TrafficDataset, forecasts: Forecasts, name: str) -> Path:
    """Draw the mean absolute error of one predictor over the map, one panel a service.

    Grids are drawn as rasters with north up; unrelated places as dots at their coordinates, or as bars where they have
    none.

    Args:
        path: the picture.
        dataset: the series the forecasts are of.
        forecasts: as `evaluate` keeps them.
        name: the predictor.

    Returns:
        The path written.

    Raises:
        ConfigError: an unknown predictor.
        MissingExtraError: matplotlib is not installed.
    """
    _check_names(forecasts, [name])
    error = np.abs(forecasts.by_name[name].astype(np.float64) - forecasts.truth)
    known = ~np.isnan(error)
    count = known.sum(axis=(0, 2))
    total = np.where(known, error, 0.0).sum(axis=(0, 2))
    by_cell = np.where(count > 0, total / np.maximum(count, 1), np.nan)  # (C, K)
    figure = new_figure(4.4 * dataset.num_services, 4.0)
    draw = _map_painter(dataset)
    for k, (axes, service) in enumerate(zip(panels(figure, 1, dataset.num_services), dataset.services, strict=True)):
        drawn = draw(axes, by_cell[:, k])
        if drawn is not None:
            figure.colorbar(drawn, ax=axes, label=f"MAE, {dataset.unit}")
        else:
            axes.set(ylabel=f"MAE, {dataset.unit}")
        axes.set(title=service)
    figure.suptitle(f"{_label(dataset)}: error of {name}")
    return save_picture(figure, path)


def _map_painter(dataset: TrafficDataset) -> Callable[[Any, npt.NDArray[np.floating]], Any]:
    """Return what draws one value a cell onto axes; it returns the mappable of the colour bar, None for bars."""
    rows, columns = dataset.cells.T

    def raster(axes: Any, values: npt.NDArray[np.floating]) -> Any:
        image = np.full(dataset.mask.shape, np.nan)
        image[rows, columns] = values
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(_whole_numbers())
        axes.set(xlabel="column (west to east)", ylabel="row (south to north)")
        return axes.imshow(image, origin="lower", cmap="viridis", interpolation="nearest")

    def dots(axes: Any, values: npt.NDArray[np.floating]) -> Any:
        assert dataset.lonlat is not None  # noqa: S101 - chosen below only where there are coordinates
        longitude, latitude = dataset.lonlat[rows, columns].T
        axes.set(xlabel="longitude", ylabel="latitude")
        return axes.scatter(longitude, latitude, c=values, cmap="viridis", s=18)

    def bars(axes: Any, values: npt.NDArray[np.floating]) -> None:
        labels = [str(int(number)) for number in dataset.cell_id[rows, columns]]
        axes.bar(np.arange(len(values)), np.nan_to_num(values), color=COLOURS[0])
        shown = np.arange(0, len(values), max(len(values) // 10, 1))
        axes.set_xticks(shown, [labels[i] for i in shown])
        axes.set(xlabel="cell")

    if dataset.geometry == "grid":
        return raster
    return bars if dataset.lonlat is None else dots


def _label(dataset: TrafficDataset) -> str:
    return f"{SURROGATE} {dataset.name}" if dataset.surrogate else dataset.name


def _local_times(dataset: TrafficDataset, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.datetime64]:
    """Return the slots' starts on the clock of the place, which is what readers of daily rhythms expect."""
    pandas = import_extra("pandas", extra="forecast")
    index = pandas.DatetimeIndex(dataset.time[steps]).tz_localize("UTC").tz_convert(dataset.timezone)
    times: npt.NDArray[np.datetime64] = index.tz_localize(None).to_numpy()
    return times


def _check_names(forecasts: Forecasts, names: Sequence[str]) -> None:
    for name in names:
        if name not in forecasts.by_name:
            raise ConfigError(f"there is no predictor {name!r}; there are: {', '.join(forecasts.by_name)}")


def _whole_numbers() -> Any:
    return import_extra("matplotlib.ticker", extra="forecast").MaxNLocator(integer=True)
