"""The forecasts that a run keeps of its test, one for each tested slot."""

from __future__ import annotations

from simmst.data import TrafficDataset
from simmst.errors import DataError
from simmst.evaluation import Report, TestedSlots
from simmst.evaluation.forecasts import LEVEL
from simmst.forecaster import Forecaster


def tested_slots(forecaster: Forecaster, dataset: TrafficDataset, report: Report) -> TestedSlots:
    """Choose one forecast for each tested slot, with its 80 % interval.

    Args:
        forecaster: the fitted forecaster.
        dataset: series that it was tested on.
        report: report of `Forecaster.evaluate`.

    Raises:
        DataError: the report has no forecasts.
    """
    forecasts, fitted = report.forecasts, forecaster.fitted()
    if forecasts is None:
        raise DataError("the report has no forecasts; use the report of Forecaster.evaluate")
    interval = forecasts.intervals.get(fitted.name)
    if interval is None and fitted.errors is not None:
        interval = fitted.errors.interval(forecasts.by_name[fitted.name], LEVEL)
    return TestedSlots.of(forecasts, fitted.matched(dataset), fitted.name, interval)
