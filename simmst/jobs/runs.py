"""What the commands do: each job reads files, calls the library, writes files, and returns what it made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simmst.data import Split, TrafficDataset, chronological_split, load
from simmst.distributed import ALONE, Distribution
from simmst.errors import ConfigError, DataError, SimmstError
from simmst.evaluation import (
    Forecasts,
    Report,
    Row,
    WeightReport,
    plot_error_map,
    plot_forecast,
    plot_losses,
    plot_task_weights,
    plot_weights,
)
from simmst.forecaster import Forecaster
from simmst.forecaster.config import ForecasterConfig, make_plan
from simmst.forecaster.forecaster import RECENT_FILE, WEIGHTS_FILE
from simmst.forecaster.similar_cities import simulation_step
from simmst.foundation.files import write_atomically
from simmst.training import Progress, RunFolder, quiet
from simmst.training.solvers import refuse_processes

if TYPE_CHECKING:
    import pandas

_REPORT = "report.json"
_WEIGHTS_REPORT = "weights.json"


@dataclass(frozen=True)
class Outcome:
    """What training and testing a forecaster left behind.

    Attributes:
        report: errors on the test slots, with the naive baselines.
        files: everything that was written for people to look at.
        forecaster: the fitted forecaster.
        weights: of the simulated cities, where this run has just weighed them.
    """

    report: Report
    files: tuple[Path, ...]
    forecaster: Forecaster
    weights: WeightReport | None = None


def open_data(data: str | Path, *, step: int | None = None, services: Sequence[str] | None = None) -> TrafficDataset:
    """Read a traffic file, sum it up to slots of `step` minutes and keep some services.

    Raises:
        DataError: the file, the step or a service is not there; the message says what is.
    """
    try:
        dataset = load(data)
    except DataError as error:
        if Path(data).name in str(error):
            raise
        raise DataError(f"{data}: {error}") from error
    except SimmstError:
        raise
    except (ValueError, LookupError) as error:  # what the readers of the formats raise
        raise DataError(f"{data} cannot be read as traffic ({type(error).__name__}: {error}); fetch it anew") from error
    if services is not None:
        dataset = dataset.select_services(services)
    return dataset if step is None else dataset.resample(step)


def checked_split(
    dataset: TrafficDataset,
    config: ForecasterConfig,
    *,
    simulated: int | Sequence[TrafficDataset] | None,
    test_days: int = 7,
) -> Split:
    """Split a series, and refuse what could not be trained or tested on it before anything is written.

    Raises:
        DataError: the series is too short, or its slots cannot be simulated.
        ConfigError: settings that contradict each other or this machine.
    """
    if isinstance(simulated, int) and simulated < 0:
        raise ConfigError(f"simulated is {simulated}; it must be a number of cities of at least 0")
    split = chronological_split(
        dataset.num_steps, dataset.steps_per_day, test_days=test_days, validation_days=config.validation_days
    )
    if len(split.test) < config.horizon:
        raise DataError(
            f"the test part of {dataset.name} has {len(split.test)} slots, too few for a horizon of {config.horizon}; "
            "give a longer series, more test days or a shorter horizon"
        )
    past = dataset.slice_steps(0, split.test.start)
    plan = make_plan(config, past, simulated=bool(simulated), validation_steps=len(split.validation))
    if isinstance(simulated, int) and plan.learns_from_cities:
        simulation_step(dataset.step_minutes)
    return split


def open_run(out: str | Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> RunFolder:
    """Make the folder of a run, or take up the run in it; overwriting removes what an earlier run wrote there.

    Args:
        out: the folder.
        settings: everything that decides the run's numbers, with the job's name under "job".
        overwrite: throw away an earlier run, of the same job alone.

    Raises:
        ConfigError: the folder holds a run of other settings, or something that the job did not write.
    """
    run = RunFolder(out)
    try:
        if overwrite and run.config_path.is_file():
            job = run.config().get("job")
            if job != settings["job"]:
                what = "of no run of simmst" if job is None else f"of simmst {job}"
                raise ConfigError(f"{run.config_path} is {what}, and is not overwritten; choose another folder")
            old = (
                run.summary_path,
                *(run.path / name for name in (WEIGHTS_FILE, RECENT_FILE, _REPORT, _WEIGHTS_REPORT)),
            )
            for path in (*old, *run.figures.glob("*.png")):
                path.unlink(missing_ok=True)
        return RunFolder.create(out, settings, overwrite=overwrite)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{run.config_path}, line {error.lineno}: {error.msg}; the folder is of no run, choose another"
        ) from error


def unfinished(out: str | Path, settings: Mapping[str, Any]) -> bool:
    """Whether the folder holds a run of these settings that was cut off."""
    run = RunFolder(out)
    if run.finished or not run.config_path.is_file():
        return False
    try:
        return bool(run.config() == json.loads(json.dumps(settings)))
    except ValueError:  # not a run's file: open_run says so
        return False


def fit_and_test(
    dataset: TrafficDataset,
    config: ForecasterConfig,
    run: RunFolder,
    *,
    simulated: int | Sequence[TrafficDataset] | None,
    test_days: int = 7,
    progress: Progress = quiet,
    distribution: Distribution = ALONE,
) -> Outcome:
    """Fit on all but the last days, test on those, and write the report and the pictures into the run folder.

    Args:
        dataset: the real city, or its surrogate.
        config: the forecaster's settings.
        run: its folder; a run that was killed goes on from its last checkpoint, a finished one is only tested again.
        simulated: as in `Forecaster.fit`.
        test_days: days at the end to test on, fewer where the series is short (the report says so).
        progress: called as the work advances.
        distribution: the processes that share a re-weighting; this is rank 0.

    Raises:
        DataError: the series is too short.
        ConfigError: settings that contradict each other or this machine.
        CheckpointError: the folder's checkpoint is damaged, or of other settings or data.
    """
    split = checked_split(dataset, config, simulated=simulated, test_days=test_days)
    if run.finished and (run.path / WEIGHTS_FILE).is_file():
        forecaster = Forecaster.load(run.path)
        report = forecaster.evaluate(dataset, split)
        files = [
            run.path / _REPORT,
            run.path / _WEIGHTS_REPORT,
            run.path / WEIGHTS_FILE,
            *sorted(run.figures.glob("*.png")),
        ]
        return Outcome(report, tuple(path for path in files if path.is_file()), forecaster)
    forecaster = Forecaster(config=config)
    past = dataset.slice_steps(0, split.test.start)
    forecaster.fit(
        past, simulated, validation_steps=len(split.validation), run=run, progress=progress, distribution=distribution
    )
    report = forecaster.evaluate(dataset, split)
    weights = forecaster.weight_report
    saved = [] if forecaster.network is None else [forecaster.save(run.path)]
    files = [report.to_json(run.path / _REPORT), *saved, *draw(forecaster, dataset, report, run)]
    if weights is not None:
        files.append(weights.to_json(run.path / _WEIGHTS_REPORT))
    run.finish({"report": report.to_dict(), "chosen": None if forecaster.result is None else forecaster.result.chosen})
    return Outcome(report, tuple(files), forecaster, weights)


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


def train(
    data: str | Path,
    out: str | Path,
    config: ForecasterConfig | None = None,
    *,
    simulated: int | None = None,
    step: int | None = None,
    services: Sequence[str] | None = None,
    test_days: int = 7,
    overwrite: bool = False,
    progress: Progress = quiet,
    distribution: Distribution = ALONE,
) -> Outcome | None:
    """Train a forecaster on a file, test it on the file's last days and write a run folder.

    Called again with the same settings and data, it goes on where it was killed; a finished run is only tested again.

    Args:
        data: path or name of a traffic file.
        out: the run folder.
        config: the forecaster's settings.
        simulated: how many cities to simulate; None takes `config.cities`, 0 trains on the file alone.
        step: minutes of a slot; None keeps the file's.
        services: which services to keep; None keeps all.
        test_days: days at the end to test on.
        overwrite: throw an earlier run in the folder away.
        progress: called as the work advances.
        distribution: the processes that share a re-weighting, one of which this is; all are called alike.

    Returns:
        What rank 0 made of it; None on the other ranks, whose work is the re-weighting alone.

    Raises:
        DataError: the file cannot be read, or its series is too short.
        ConfigError: the settings do not fit together, or the folder holds another run.
        CheckpointError: the folder's checkpoint is damaged.
    """
    config = config or ForecasterConfig()
    refuse_processes(config.solver or "pretrain-finetune", distribution)
    dataset = open_data(data, step=step, services=services)
    simulated = config.cities if simulated is None else simulated
    split = checked_split(dataset, config, simulated=simulated, test_days=test_days)
    settings = {
        "job": "train",
        **described(dataset, data),
        "simulated": simulated,
        "test_days": test_days,
        "forecaster": config.to_dict(),
    }
    if distribution.rank:
        if not distribution.broadcast_object():
            past = dataset.slice_steps(0, split.test.start)
            validation = len(split.validation)
            Forecaster(config=config).fit(
                past, simulated, validation_steps=validation, run=RunFolder(out), distribution=distribution
            )
        return None
    run = open_run(out, settings, overwrite=overwrite)
    distribution.broadcast_object(run.finished)
    return fit_and_test(
        dataset, config, run, simulated=simulated, test_days=test_days, progress=progress, distribution=distribution
    )


def described(dataset: TrafficDataset, data: str | Path | None) -> dict[str, Any]:
    """Describe the data of a run for its settings: a run goes on with the same values alone, wherever they lie."""
    values = np.nan_to_num(dataset.activity, nan=-1.0)
    digest = hashlib.sha256(values.tobytes())
    digest.update(dataset.time.tobytes())
    digest.update(dataset.mask.tobytes())
    return {
        "data": None if data is None else Path(data).name,
        "digest": digest.hexdigest()[:16],
        "step": dataset.step_minutes,
        "services": list(dataset.services),
    }


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
    fitted, spec = forecaster.fitted()
    dataset = open_data(data, step=fitted.step_minutes, services=fitted.services)
    start = int(np.searchsorted(dataset.time, fitted.time[-1], side="right"))
    if start == 0 or dataset.time[start - 1] != fitted.time[-1]:
        raise DataError(
            f"{data} has no slot at {fitted.time[-1]}Z, the last one that the forecaster in {run} was fitted on; give "
            "the file it was trained on, or a longer one of the same cells"
        )
    split = Split(range(start), range(start, start), range(start, dataset.num_steps))
    if len(split.test) < spec.horizon:
        raise DataError(
            f"{data} ends {len(split.test)} slots after the last one that the forecaster was fitted on; scoring takes "
            f"at least the horizon of {spec.horizon}"
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
    fitted, _ = forecaster.fitted()
    dataset = None if data is None else open_data(data, step=fitted.step_minutes, services=fitted.services)
    frame = forecaster.predict(dataset, levels=levels)
    if out is not None:
        write_atomically(out, lambda temporary: frame.to_csv(temporary, index=False))
    return frame
