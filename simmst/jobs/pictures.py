"""The pictures in a run's folder, and what to show in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from simmst.data import TrafficDataset
from simmst.evaluation import (
    Forecasts,
    Report,
    Row,
    plot_error_map,
    plot_forecast,
    plot_losses,
    plot_task_weights,
    plot_weights,
)
from simmst.forecaster import Forecaster
from simmst.training import RunFolder


def draw(forecaster: Forecaster, dataset: TrafficDataset, report: Report, run: RunFolder) -> list[Path]:
    """Draw the run's pictures; a naive baseline has no curves of training."""
    paths = []
    if forecaster.result is not None:
        histories = forecaster.result.histories
        paths.append(plot_losses(run.figures / "loss.png", histories, dataset=dataset))
        paths.append(plot_task_weights(run.figures / "task_weights.png", histories, dataset=dataset))
    if forecaster.weight_report is not None:
        paths.append(plot_weights(run.figures / "weights.png", forecaster.weight_report))
    forecasts = report.forecasts
    if forecasts is None:
        return paths
    names = [forecaster.name, best_baseline(report, forecaster.name)]
    cell = busiest_cell(forecasts)
    paths.append(plot_forecast(run.figures / "forecast.png", dataset, forecasts, names, cell=cell))
    paths.append(plot_error_map(run.figures / "error_map.png", dataset, forecasts, forecaster.name))
    return paths


def busiest_cell(forecasts: Forecasts) -> int:
    """Return the number of the cell with the most traffic, each service counted by its share of the city's."""
    known = np.where(np.isnan(forecasts.truth), 0.0, forecasts.truth)
    by_cell = known.sum(axis=(0, 2))  # (C, K)
    total = by_cell.sum(axis=0)
    return int((by_cell / np.where(total > 0, total, 1.0)).sum(axis=1).argmax())


def best_baseline(report: Report, name: str) -> str:
    """Return the baseline with the best mean skill, other than `name` itself."""

    def mean_skill(row: Row) -> float:
        known = row.skill[np.isfinite(row.skill)]
        return float(known.mean()) if known.size else -np.inf

    return max((row for row in report.rows if row.name != name), key=mean_skill).name
