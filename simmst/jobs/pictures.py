"""The pictures in a run's folder, and the cell and baseline shown in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from simmst.baselines import BASELINES
from simmst.data import TrafficDataset
from simmst.evaluation import Report, Row, TestedSlots
from simmst.forecaster import Forecaster
from simmst.foundation.pictures import save_picture
from simmst.jobs.tested import tested_slots
from simmst.plotting import plot_error_map, plot_losses, plot_series, plot_task_weights, plot_weights
from simmst.plotting.scales import busiest_cell
from simmst.training import RunFolder


def draw(forecaster: Forecaster, dataset: TrafficDataset, report: Report, run: RunFolder) -> list[Path]:
    """Draw the run's pictures; a naive baseline has no training curves."""
    figures = {}
    if forecaster.result is not None:
        histories = forecaster.result.histories
        figures["loss"] = plot_losses(histories, dataset=dataset)
        if dataset.num_services > 1:
            figures["task_weights"] = plot_task_weights(histories, dataset=dataset)
    if forecaster.weight_report is not None:
        figures["weights"] = plot_weights(forecaster.weight_report)
    if report.forecasts is not None:
        slots, name = tested_slots(forecaster, dataset, report), best_baseline(report, forecaster.name)
        baseline = TestedSlots.of(report.forecasts, forecaster.fitted().matched(dataset), name, None)
        cell = busiest_cell(np.moveaxis(report.forecasts.truth, 3, 0).swapaxes(1, 2))  # (K, C, n, T_out)
        figures["forecast"] = plot_series(slots, cell, baseline=baseline)
        figures["error_map"] = plot_error_map(dataset, report.forecasts, forecaster.name)
    return [save_picture(figure, run.figures / f"{name}.png") for name, figure in figures.items()]


def best_baseline(report: Report, name: str) -> str:
    """Return the naive baseline with the best mean skill, other than `name` itself."""

    def mean_skill(row: Row) -> float:
        known = row.skill[np.isfinite(row.skill)]
        return float(known.mean()) if known.size else -np.inf

    return max((row for row in report.rows if row.name in BASELINES and row.name != name), key=mean_skill).name
