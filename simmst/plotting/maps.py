"""Maps of the city: one slot, and the errors of its cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from simmst.data import TrafficDataset
from simmst.errors import ConfigError
from simmst.evaluation import Forecasts, TestedSlots
from simmst.foundation.pictures import COLOURS, new_figure, panels
from simmst.plotting.labels import check_names, label, local_times, tell_whole_numbers
from simmst.plotting.scales import colour_limits

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_map(slots: TestedSlots, slot: int = 0, service: str | None = None) -> Figure:
    """Draw one tested slot of the city: the truth, the forecast, and the error, forecast minus truth.

    The range of colours is that of all tested slots; the highest 1 % of the values share the last colour.

    Args:
        slots: one forecast of each tested slot, as `TestedSlots.read` reads them from a run's folder.
        slot: number of the slot, from 0; a negative number counts from the end.
        service: name of the service; None takes the first.

    Raises:
        ConfigError: there is no such slot or service.
        MissingExtraError: matplotlib or pandas is not installed.

    Example:
        >>> city = TrafficDataset.from_arrays(np.ones((24, 1, 2, 3)), np.arange(24) * 3600, name="toytown")
        >>> slots = TestedSlots(city, "ridge", np.ones(24, dtype=np.int64), 3 * city.series())
        >>> figure = plot_map(slots, slot=-1)
        >>> [axes.get_title() for axes in figure.axes[:3]], figure.axes[2].images[0].get_array().tolist()[0]
        (['truth', 'ridge', 'error'], [2.0, 2.0, 2.0])
    """
    dataset = slots.dataset
    name = dataset.services[0] if service is None else service
    if name not in dataset.services:
        raise ConfigError(f"there is no service {name!r}; there are: {', '.join(dataset.services)}")
    if not -dataset.num_steps <= slot < dataset.num_steps:
        raise ConfigError(f"slot is {slot}; there are {dataset.num_steps} slots, counted from 0")
    k = dataset.services.index(name)
    truth, forecast = dataset.series()[:, k], slots.forecast[:, k]  # (T, C)
    limit, error = colour_limits(truth, forecast)
    least = -limit if min(np.nanmin(truth, initial=0.0), np.nanmin(forecast, initial=0.0)) < 0 else 0.0
    figure = new_figure(11.0, 4.0)
    draw = _map_painter(dataset)
    drawn = [
        ("truth", truth[slot], "viridis", (least, limit)),
        (slots.name, forecast[slot], "viridis", (least, limit)),
        ("error", forecast[slot] - truth[slot], "RdBu_r", (-error, error)),
    ]
    for axes, (title, values, colours, limits) in zip(panels(figure, 1, 3), drawn, strict=True):
        _with_bar(figure, axes, draw(axes, values, colours, limits), dataset.unit)
        axes.set(title=title)
    moment = str(local_times(dataset, np.array([slot % dataset.num_steps]))[0].astype("datetime64[m]"))
    figure.suptitle(f"{label(dataset)}, {name}: {moment.replace('T', ' ')} local time")
    return figure


def plot_error_map(dataset: TrafficDataset, forecasts: Forecasts, name: str) -> Figure:
    """Draw a map of the mean absolute error of one predictor, one panel per service.

    Grids are drawn as rasters with north up. Other cells are drawn as dots at their coordinates, or as bars if they
    have none.

    Args:
        dataset: series that was forecast.
        forecasts: forecasts that `evaluate` kept.
        name: name of the predictor.

    Raises:
        ConfigError: there is no such predictor.
        MissingExtraError: matplotlib is not installed.

    Example:
        >>> city = TrafficDataset.from_arrays(np.ones((24, 1, 2, 2)), np.arange(24) * 3600, name="toytown")
        >>> truth = np.ones((3, 4, 1, 1), dtype=np.float32)
        >>> figure = plot_error_map(city, Forecasts(np.arange(20, 23), truth, {"ridge": 3 * truth}), "ridge")
        >>> figure.get_suptitle(), figure.axes[0].images[0].get_array().tolist()
        ('toytown: error of ridge', [[2.0, 2.0], [2.0, 2.0]])
    """
    check_names(forecasts, [name])
    error = np.abs(forecasts.by_name[name].astype(np.float64) - forecasts.truth)
    known = ~np.isnan(error)
    count = known.sum(axis=(0, 2))
    total = np.where(known, error, 0.0).sum(axis=(0, 2))
    by_cell = np.where(count > 0, total / np.maximum(count, 1), np.nan)  # (C, K)
    figure = new_figure(max(4.4 * dataset.num_services, 6.0), 4.0)
    draw = _map_painter(dataset)
    for k, (axes, service) in enumerate(zip(panels(figure, 1, dataset.num_services), dataset.services, strict=True)):
        _with_bar(figure, axes, draw(axes, by_cell[:, k], "viridis", (None, None)), f"MAE, {dataset.unit}")
        axes.set(title=service)
    figure.suptitle(f"{label(dataset)}: error of {name}")
    return figure


Limits = tuple[float | None, float | None]
Painter = Callable[[Any, npt.NDArray[np.floating], str, Limits], Any]


def _map_painter(dataset: TrafficDataset) -> Painter:
    """Return a function that draws one value per cell onto axes; it returns the colour bar's mappable or None."""
    rows, columns = dataset.cells.T

    def raster(axes: Any, values: npt.NDArray[np.floating], colours: str, limits: Limits) -> Any:
        image = np.full(dataset.mask.shape, np.nan)
        image[rows, columns] = values
        for axis in (axes.xaxis, axes.yaxis):
            tell_whole_numbers(axis)
        axes.set(xlabel="column (west to east)", ylabel="row (south to north)")
        low, high = limits
        return axes.imshow(image, origin="lower", cmap=colours, vmin=low, vmax=high, interpolation="nearest")

    def dots(axes: Any, values: npt.NDArray[np.floating], colours: str, limits: Limits) -> Any:
        assert dataset.lonlat is not None  # noqa: S101 - chosen below only if there are coordinates
        longitude, latitude = dataset.lonlat[rows, columns].T
        axes.set(xlabel="longitude", ylabel="latitude")
        low, high = limits
        return axes.scatter(longitude, latitude, c=values, cmap=colours, vmin=low, vmax=high, s=18)

    def bars(axes: Any, values: npt.NDArray[np.floating], colours: str, limits: Limits) -> None:
        labels = [str(name) for name in dataset.unique_ids()]
        axes.bar(np.arange(len(values)), np.nan_to_num(values), color=COLOURS[0])
        axes.set_ylim(*limits)
        shown = np.arange(0, len(values), max(len(values) // 10, 1))
        axes.set_xticks(shown, [labels[i] for i in shown], rotation=45, ha="right")
        axes.set(xlabel="cell")

    if dataset.geometry == "grid":
        return raster
    return bars if dataset.lonlat is None else dots


def _with_bar(figure: Figure, axes: Any, drawn: Any, text: str) -> None:
    """Label the colour bar, or the axis of the heights of bars."""
    if drawn is None:
        axes.set(ylabel=text)
    else:
        figure.colorbar(drawn, ax=axes, label=text, shrink=0.8)
