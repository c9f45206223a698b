"""Jobs on a saved forecaster: test it, or forecast with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simmst.data import Split, TrafficDataset
from simmst.errors import ConfigError, DataError
from simmst.evaluation import Report
from simmst.forecaster import Forecaster
from simmst.forecaster.zero_shot import zero_shot_notes
from simmst.foundation.files import write_atomically
from simmst.jobs.inputs import open_data
from simmst.pretrained import load_pretrained

if TYPE_CHECKING:
    import pandas


def evaluate(
    run: str | Path, data: str | Path, *, table: Mapping[str, Any] | None = None, out: str | Path | None = None
) -> Report:
    """Test a saved forecaster on the part of a file that it has not seen, beside the naive baselines.

    Args:
        run: folder that `train` or `Forecaster.save` wrote.
        data: file that the forecaster was trained on, or a longer one of the same cells.
        table: options for reading a table, as in `simmst.jobs.inputs.open_data`.
        out: JSON file for the report.

    Raises:
        DataError: the file lacks the last slot of the forecaster's series, or ends too soon after it.
    """
    _, report = score_unseen(Forecaster.load(run), run, data, table=table)
    if out is not None:
        report.to_json(out)
    return report


def score_unseen(
    forecaster: Forecaster,
    run: str | Path,
    data: str | Path,
    *,
    table: Mapping[str, Any] | None = None,
    stride: int = 1,
) -> tuple[TrafficDataset, Report]:
    """Score forecasts of the slots in a file that follow the slots that a forecaster was fitted on.

    Args:
        forecaster: the loaded forecaster.
        run: its folder, for error messages.
        data: as in `evaluate`.
        table: as in `evaluate`.
        stride: slots between successive forecasts.

    Returns:
        The traffic in the file, and the report that holds the forecasts.

    Raises:
        DataError: as in `evaluate`.
    """
    fitted = forecaster.dataset
    dataset = open_data(data, step=fitted.step_minutes, services=fitted.services, table=table, like=fitted)
    start = int(np.searchsorted(dataset.time, fitted.time[-1], side="right"))
    if start == 0 or dataset.time[start - 1] != fitted.time[-1]:
        raise DataError(
            f"{data} has no slot at {fitted.time[-1]}Z, the last one that the forecaster in {run} was fitted on; give "
            "the file it was trained on, or a longer one of the same cells"
        )
    split = Split(range(start), range(start, start), range(start, dataset.num_steps))
    if len(split.test) < forecaster.spec.horizon:
        raise DataError(
            f"{data} ends {len(split.test)} slots after the last one that the forecaster was fitted on; scoring needs "
            f"at least the horizon of {forecaster.spec.horizon}"
        )
    return dataset, forecaster.evaluate(dataset, split, stride=stride)


@dataclass(frozen=True, eq=False)
class ForecastFrame:
    """A forecast and the notes on it.

    Attributes:
        frame: frame of `Forecaster.predict`.
        notes: notes on what was replaced or left out.
    """

    frame: pandas.DataFrame
    notes: tuple[str, ...] = ()

    def save(self, path: str | Path) -> Path:
        """Write the frame as CSV, atomically."""
        return write_atomically(path, lambda temporary: self.frame.to_csv(temporary, index=False))


def forecast(
    run: str | Path | None = None,
    *,
    data: str | Path | None = None,
    horizon: int | None = None,
    step: int | None = None,
    services: Sequence[str] | None = None,
    levels: Sequence[int] = (),
    table: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
) -> ForecastFrame:
    """Forecast the slots after the end of a file, or of the series that a forecaster was fitted on.

    Args:
        run: folder that `train` or `Forecaster.save` wrote; None takes the shipped weights, without training.
        data: file of the latest traffic; None takes the forecaster's own series.
        horizon: number of slots to forecast with the shipped weights; None takes 6. A run has its own horizon.
        step: minutes of a slot; None keeps the run's or the file's.
        services: services to forecast with the shipped weights; None takes all.
        levels: central prediction intervals in percent.
        table: options for reading a table, as in `simmst.jobs.inputs.open_data`.
        out: CSV file for the forecast.

    Raises:
        ConfigError: neither a run nor data is given, or a run is given together with a setting that it fixes itself.
        DataError: the file cannot be read as traffic.
    """
    if run is None and data is None:
        raise ConfigError("give data to forecast with the shipped weights, or the run of a trained forecaster")
    forecaster = opened(run, horizon=horizon, step=step, services=services)
    made = forecast_with(forecaster, data, step=step, services=services, levels=levels, table=table)
    if out is not None:
        made.save(out)
    return made


def opened(
    run: str | Path | None,
    *,
    horizon: int | None = None,
    step: int | None = None,
    services: Sequence[str] | None = None,
) -> Forecaster:
    """Return the forecaster in a folder, or the shipped weights, and refuse settings that a run fixes itself.

    Raises:
        ConfigError: a run is given together with a setting that it fixes itself.
        CheckpointError: the folder holds no forecaster, or a damaged one.
    """
    if run is None:
        return Forecaster.pretrained(horizon=6 if horizon is None else horizon)
    for name, value in (("horizon", horizon), ("step", step), ("services", services)):
        if value is not None:
            raise ConfigError(f"the forecaster in {run} has a {name} of its own; leave {name} out")
    return Forecaster.load(run)


def forecast_with(
    forecaster: Forecaster,
    data: str | Path | None,
    *,
    step: int | None = None,
    services: Sequence[str] | None = None,
    levels: Sequence[int] = (),
    table: Mapping[str, Any] | None = None,
) -> ForecastFrame:
    """Forecast the slots after the end of a file with a forecaster from `opened`: see `forecast`."""
    fitted = forecaster.fitted().dataset
    notes = forecaster.notes
    dataset = None
    if fitted is None:
        assert data is not None  # noqa: S101 - the shipped weights have no series of their own
        dataset = open_data(data, step=step, services=services, table=table)
        notes = zero_shot_notes(dataset, load_pretrained(), forecaster.spec.horizon)
    elif data is not None:
        dataset = open_data(data, step=fitted.step_minutes, services=fitted.services, table=table, like=fitted)
    if dataset is not None:
        notes = (*dataset.layout.notes, *notes)
    frame = forecaster.predict(dataset, levels=levels)
    return ForecastFrame(frame if hasattr(frame, "to_csv") else frame.to_pandas(), notes)  # polars
