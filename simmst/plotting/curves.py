"""Figures of the training, and of the errors by slots ahead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from simmst.data import TrafficDataset
from simmst.errors import ConfigError, DataError
from simmst.evaluation import Report
from simmst.foundation.pictures import COLOURS, colours, new_figure, panels
from simmst.plotting.labels import label, tell_whole_numbers
from simmst.training.history import History

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_losses(histories: Sequence[History], *, dataset: TrafficDataset) -> Figure:
    """Draw training and validation loss over the epochs, one panel per stage.

    Args:
        histories: one history per stage.
        dataset: series that is named in the title.

    Raises:
        DataError: there is no history.
        MissingExtraError: matplotlib is not installed.

    Example:
        >>> city = TrafficDataset.from_arrays(np.ones(24), np.arange(24) * 3600, name="toytown")
        >>> figure = plot_losses([History("real", [{"epoch": 1, "train_loss": 0.5}])], dataset=city)
        >>> figure.get_suptitle()
        'toytown: loss'
    """
    if not histories:
        raise DataError("there is no training history to draw; give the histories of a solver's result")
    figure = new_figure(4.2 * len(histories), 3.4)
    for axes, history in zip(panels(figure, 1, len(histories)), histories, strict=True):
        axes.plot(*history.series("train_loss"), color=COLOURS[0], marker=".", label="training")
        epochs, scores = history.series("validation_loss")
        if epochs:
            axes.plot(epochs, scores, color=COLOURS[1], marker=".", label="validation")
            axes.axvline(history.best_epoch, color="grey", linewidth=0.8, linestyle=":", label="kept")
        axes.set(title=f"stage {history.stage}", xlabel="epoch", ylabel="loss (scaled)")
        if len(history.records) == 1:
            axes.set_xlim(history.best_epoch - 1, history.best_epoch + 1)
        tell_whole_numbers(axes.xaxis)
        axes.legend(frameon=False)
    figure.suptitle(f"{label(dataset)}: loss")
    return figure


def plot_task_weights(histories: Sequence[History], *, dataset: TrafficDataset) -> Figure:
    """Draw the weight of each task's loss (Sim-MSTNet, Eq. 13-14; epoch means) over the steps of all stages.

    Args:
        histories: one history per stage; their steps are joined.
        dataset: series that is named in the title.

    Raises:
        DataError: no epoch has task weights.
        MissingExtraError: matplotlib is not installed.

    Example:
        >>> city = TrafficDataset.from_arrays(np.ones(24), np.arange(24) * 3600, name="toytown")
        >>> records = [{"epoch": 1, "step": 5, "task_weights": {"call": 0.4, "sms": 0.6}}]
        >>> plot_task_weights([History("real", records)], dataset=city).get_suptitle()
        'toytown: task weights (real)'
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
            name = service if number == 0 else None
            axes.plot([start + step for step in steps], weights, color=colour, marker=".", label=name)
        if number:
            axes.axvline(start, color="grey", linewidth=0.8, linestyle=":")
        start += max((record["step"] for record in history.records), default=0)
    axes.set(xlabel="step", ylabel="weight", ylim=(0.0, 1.02))
    axes.legend(frameon=False)
    stages = ", ".join(history.stage for history in histories)
    figure.suptitle(f"{label(dataset)}: task weights ({stages})")
    return figure


def plot_errors(report: Report, name: str) -> Figure:
    """Draw the mean absolute error of every predictor by slots ahead, one panel per service.

    Args:
        report: report with the errors.
        name: name of the predictor to draw bold.

    Raises:
        ConfigError: there is no such predictor.
        MissingExtraError: matplotlib is not installed.

    Example:
        >>> from simmst.data import WindowSpec, chronological_split
        >>> from simmst.evaluation import evaluate
        >>> city = TrafficDataset.from_arrays(np.arange(240.0), np.arange(240) * 3600, name="toytown")
        >>> report = evaluate({}, city, WindowSpec.recent(2, 6, steps_per_day=24), chronological_split(240, 24))
        >>> plot_errors(report, "persistence").axes[0].lines[0].get_ydata().round(2).tolist()
        [1.0, 2.0]
    """
    names = [row.name for row in report.rows]
    if name not in names:
        raise ConfigError(f"there is no predictor {name!r}; there are: {', '.join(names)}")
    figure = new_figure(4.2 * len(report.services), 3.8)
    ahead = np.arange(1, report.horizon + 1)
    all_panels = panels(figure, 1, len(report.services))
    for k, (axes, service) in enumerate(zip(all_panels, report.services, strict=True)):
        for number, (row, colour) in enumerate(zip(report.rows, colours(len(names)), strict=True)):
            style = {"linewidth": 2.5 if row.name == name else 1.0, "linestyle": "-" if number < len(COLOURS) else "--"}
            axes.plot(ahead, row.mae_by_step[:, k], color=colour, marker=".", label=row.name, **style)
        axes.set(title=service, xlabel="slots ahead", ylabel=f"MAE, {report.unit}")
        axes.set_ylim(bottom=0)
        tell_whole_numbers(axes.xaxis)
    figure.legend(*all_panels[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=3)
    figure.suptitle(report.title)
    return figure
