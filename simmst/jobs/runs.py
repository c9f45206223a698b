"""Jobs that train: fit a forecaster, test it, and write a run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simmst.data import TrafficDataset
from simmst.distributed import ALONE, ProcessGroup
from simmst.errors import ConfigError
from simmst.evaluation import Report, WeightReport
from simmst.evaluation.forecasts import FORECASTS_FILE, TRAFFIC_FILE
from simmst.forecaster import Forecaster, ForecasterConfig
from simmst.forecaster.saving import RECENT_FILE, WEIGHTS_FILE
from simmst.foundation.files import locked
from simmst.jobs.inputs import checked_split, described, open_data
from simmst.jobs.pictures import draw
from simmst.jobs.tested import tested_slots
from simmst.training import Progress, RunFolder, quiet
from simmst.training.recipes import refuse_processes

REPORT_FILE = "report.json"
WEIGHTS_REPORT_FILE = "weights.json"
_MADE = (WEIGHTS_FILE, RECENT_FILE, REPORT_FILE, WEIGHTS_REPORT_FILE, FORECASTS_FILE, TRAFFIC_FILE)


@dataclass(frozen=True)
class Outcome:
    """The result of training and testing a forecaster.

    Attributes:
        report: errors on the test slots, with the naive baselines.
        files: files written for people to read.
        forecaster: the fitted forecaster.
        weights: weights of the simulated cities, where this call has computed them.
    """

    report: Report
    files: tuple[Path, ...]
    forecaster: Forecaster
    weights: WeightReport | None = None


def open_run(out: str | Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> RunFolder:
    """Make the folder of a run, or open it to resume; overwriting first removes the files of an earlier run.

    Args:
        out: the folder.
        settings: all settings that decide the run's numbers, with the job's name under "job".
        overwrite: whether to delete an earlier run of the same job.

    Raises:
        ConfigError: the folder holds a run with other settings, or something that the job did not write.
    """
    run = RunFolder(out)
    if overwrite and run.config_path.is_file():
        job = run.config().get("job")
        if job != settings["job"]:
            what = "from no run of simmst" if job is None else f"from simmst {job}"
            raise ConfigError(f"{run.config_path} is {what}, and is not overwritten; choose another folder")
        for path in (run.summary_path, *(run.path / name for name in _MADE), *run.figures.glob("*.png")):
            path.unlink(missing_ok=True)
    return RunFolder.create(out, settings, overwrite=overwrite)


def unfinished(out: str | Path, settings: Mapping[str, Any]) -> bool:
    """Return whether the folder holds an interrupted run with these settings."""
    run = RunFolder(out)
    if run.finished or not run.config_path.is_file():
        return False
    try:
        return bool(run.config() == json.loads(json.dumps(settings)))
    except ValueError:  # not a run's file; open_run raises the error
        return False


def fit_and_test(
    dataset: TrafficDataset,
    config: ForecasterConfig,
    run: RunFolder,
    *,
    simulated: int | Sequence[TrafficDataset] | None,
    test_days: int = 7,
    stride: int = 1,
    progress: Progress = quiet,
    processes: ProcessGroup = ALONE,
) -> Outcome:
    """Fit on all but the last days, test on these, and write the report and the pictures into the run folder.

    Args:
        dataset: real city, or its surrogate.
        config: the forecaster's settings.
        run: run folder; an interrupted run resumes from its last checkpoint, a finished one is only tested again.
        simulated: simulated cities, as in `Forecaster.fit`.
        test_days: last days to test on, fewer where the series is short (the report says so).
        stride: slots between successive tested forecasts.
        progress: called as the work advances.
        processes: process group that shares the training; this process is rank 0.

    Raises:
        DataError: the series is too short.
        ConfigError: the settings contradict each other or do not fit this machine.
        CheckpointError: the folder's checkpoint is damaged, or has other settings or data.
    """
    split = checked_split(dataset, config, simulated=simulated, test_days=test_days)
    if run.finished and (run.path / WEIGHTS_FILE).is_file():
        forecaster = Forecaster.load(run.path)
        report = forecaster.evaluate(dataset, split, stride=stride)
        if not (run.path / FORECASTS_FILE).is_file():
            tested_slots(forecaster, dataset, report).save(run.path)
        files = [
            run.path / REPORT_FILE,
            run.path / WEIGHTS_REPORT_FILE,
            run.path / WEIGHTS_FILE,
            *sorted(run.figures.glob("*.png")),
        ]
        return Outcome(report, tuple(path for path in files if path.is_file()), forecaster)
    forecaster = Forecaster(config=config)
    past = dataset.slice_steps(0, split.test.start)
    forecaster.fit(
        past, simulated, validation_steps=len(split.validation), run=run, progress=progress, processes=processes
    )
    report = forecaster.evaluate(dataset, split, stride=stride, notes=dataset.layout.notes)
    weights = forecaster.weight_report
    saved = [] if forecaster.network is None else [forecaster.save(run.path)]
    files = [report.to_json(run.path / REPORT_FILE), *saved, *draw(forecaster, dataset, report, run)]
    if weights is not None:
        files.append(weights.to_json(run.path / WEIGHTS_REPORT_FILE))
    tested_slots(forecaster, dataset, report).save(run.path)
    run.finish({"report": report.to_dict(), "chosen": None if forecaster.result is None else forecaster.result.chosen})
    return Outcome(report, tuple(files), forecaster, weights)


def train(
    data: str | Path,
    out: str | Path,
    config: ForecasterConfig | None = None,
    *,
    simulated: int | None = None,
    step: int | None = None,
    services: Sequence[str] | None = None,
    table: Mapping[str, Any] | None = None,
    test_days: int = 7,
    overwrite: bool = False,
    progress: Progress = quiet,
    processes: ProcessGroup = ALONE,
) -> Outcome | None:
    """Train a forecaster on a file, test it on the file's last days and write a run folder.

    A second call with the same settings and data resumes an interrupted run; a finished run is only tested again.

    Args:
        data: path or name of a traffic file.
        out: the run folder.
        config: the forecaster's settings.
        simulated: number of cities to simulate; None takes `config.cities`, 0 trains only on the file.
        step: minutes of a slot; None keeps the file's.
        services: services to keep; None keeps all.
        table: options for reading a table, as in `simmst.jobs.inputs.open_data`.
        test_days: last days to test on.
        overwrite: whether to delete an earlier run in the folder.
        progress: called as the work advances.
        processes: process group that shares the training; each of its processes makes the same call.

    Returns:
        The result on rank 0; None on the other ranks, whose work ends with the training.

    Raises:
        DataError: the file cannot be read, or its series is too short.
        ConfigError: the settings do not fit together, or the folder holds another run.
        CheckpointError: the folder's checkpoint is damaged.
    """
    config = config or ForecasterConfig()
    if config.solver is not None:
        refuse_processes(config.solver, processes)
    dataset = open_data(data, step=step, services=services, table=table)
    simulated = config.cities if simulated is None else simulated
    split = checked_split(dataset, config, simulated=simulated, test_days=test_days)
    settings = {
        "job": "train",
        **described(dataset, data),
        "simulated": simulated,
        "test_days": test_days,
        "forecaster": config.to_dict(),
    }
    if processes.rank:
        if not processes.broadcast_object():
            past = dataset.slice_steps(0, split.test.start)
            validation = len(split.validation)
            Forecaster(config=config).fit(
                past, simulated, validation_steps=validation, run=RunFolder(out), processes=processes
            )
        return None
    with locked(Path(out), ConfigError):
        run = open_run(out, settings, overwrite=overwrite)
        processes.broadcast_object(run.finished)
        return fit_and_test(
            dataset, config, run, simulated=simulated, test_days=test_days, progress=progress, processes=processes
        )
