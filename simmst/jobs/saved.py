"""Jobs on a forecaster that lies in a folder: test it, forecast with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from simmst.data import Split
from simmst.errors import DataError
from simmst.evaluation import Report
from simmst.forecaster import Forecaster
from simmst.foundation.files import write_atomically
from simmst.jobs.inputs import open_data

if TYPE_CHECKING:
    import pandas


def evaluate(run: str | Path, data: str | Path, *, out: str | Path | None = None) -> Report:
    """Test a saved forecaster on the part of a file that it has not seen, beside the naive baselines.

    Args:
        run: a folder that `train` or `Forecaster.save` wrote.
        data: the file it was trained on, or a longer one of the same cells.
        out: a JSON file for the report.

    Raises:
        DataError: the file ends before, or has no slot of, the forecaster's own series.
    """
    forecaster = Forecaster.load(run)
    fitted = forecaster.dataset
    dataset = open_data(data, step=fitted.step_minutes, services=fitted.services)
    start = int(np.searchsorted(dataset.time, fitted.time[-1], side="right"))
    if start == 0 or dataset.time[start - 1] != fitted.time[-1]:
        raise DataError(
            f"{data} has no slot at {fitted.time[-1]}Z, the last one that the forecaster in {run} was fitted on; give "
            "the file it was trained on, or a longer one of the same cells"
        )
    split = Split(range(start), range(start, start), range(start, dataset.num_steps))
    if len(split.test) < forecaster.spec.horizon:
        raise DataError(
            f"{data} ends {len(split.test)} slots after the last one that the forecaster was fitted on; scoring takes "
            f"at least the horizon of {forecaster.spec.horizon}"
        )
    report = forecaster.evaluate(dataset, split)
    if out is not None:
        report.to_json(out)
    return report


def forecast(
    run: str | Path, *, data: str | Path | None = None, levels: Sequence[int] = (), out: str | Path | None = None
) -> pandas.DataFrame:
    """Forecast the slots after the end of a file, or of what the forecaster was fitted on.

    Args:
        run: a folder that `train` or `Forecaster.save` wrote.
        data: the latest traffic; None takes the forecaster's own.
        levels: central prediction intervals in percent.
        out: a CSV file for the forecast.
    """
    forecaster = Forecaster.load(run)
    fitted = forecaster.dataset
    dataset = None if data is None else open_data(data, step=fitted.step_minutes, services=fitted.services)
    frame = forecaster.predict(dataset, levels=levels)
    if out is not None:
        write_atomically(out, lambda temporary: frame.to_csv(temporary, index=False))
    return frame
