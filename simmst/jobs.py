"""What the commands do: each job reads files, calls the library, writes files, and returns what it made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simmst.data import Split, TrafficDataset, chronological_split, load
from simmst.errors import ConfigError, DataError
from simmst.evaluation import Report, plot_error_map, plot_forecast, plot_losses, plot_task_weights
from simmst.files import write_atomically, write_json
from simmst.forecaster import Forecaster
from simmst.forecaster_config import ForecasterConfig
from simmst.simulation import DomainPrior, simulate_city
from simmst.training import Progress, RunFolder, quiet

if TYPE_CHECKING:
    import pandas

_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Outcome:
    """What training and testing a forecaster left behind.

    Attributes:
        report: errors on the test slots, with the naive baselines.
        files: everything that was written for people to look at.
        forecaster: the fitted forecaster.
    """

    report: Report
    files: tuple[Path, ...]
    forecaster: Forecaster


def open_data(data: str | Path, *, step: int | None = None, services: Sequence[str] | None = None) -> TrafficDataset:
    """Read a traffic file, sum it up to slots of `step` minutes and keep some services.

    Raises:
        DataError: the file, the step or a service is not there; the message says what is.
    """
    dataset = load(data)
    if services is not None:
        dataset = dataset.select_services(services)
    if step is not None and step != dataset.step_minutes:
        dataset = dataset.resample(step)
    return dataset


def fit_and_test(
    dataset: TrafficDataset,
    config: ForecasterConfig,
    run: RunFolder,
    *,
    simulated: int | Sequence[TrafficDataset] | None,
    test_days: int = 7,
    progress: Progress = quiet,
) -> Outcome:
    """Fit on all but the last days, test on those, and write the report and the pictures into the run folder.

    Args:
        dataset: the real city, or its surrogate.
        config: the forecaster's settings.
        run: its folder; a run that was killed goes on from its last checkpoint.
        simulated: as in `Forecaster.fit`.
        test_days: days at the end to test on, fewer where the series is short (the report says so).
        progress: called as the work advances.
    """
    split = chronological_split(
        dataset.num_steps, dataset.steps_per_day, test_days=test_days, validation_days=config.validation_days
    )
    past = dataset.slice_steps(0, split.test.start)
    forecaster = Forecaster(config=config).fit(past, simulated, run=run, progress=progress)
    report = forecaster.evaluate(dataset, split)
    saved = [] if forecaster.network is None else [forecaster.save(run.path)]
    files = [report.to_json(run.path / "report.json"), *saved, *draw(forecaster, dataset, report, run)]
    run.finish({"report": report.to_dict(), "chosen": None if forecaster.result is None else forecaster.result.chosen})
    return Outcome(report, tuple(files), forecaster)


def draw(forecaster: Forecaster, dataset: TrafficDataset, report: Report, run: RunFolder) -> list[Path]:
    """Draw the run's pictures; a naive baseline has no curves of training."""
    paths = []
    if forecaster.result is not None:
        histories = forecaster.result.histories
        paths.append(plot_losses(run.figures / "loss.png", histories, dataset=dataset))
        paths.append(plot_task_weights(run.figures / "task_weights.png", histories, dataset=dataset))
    forecasts = report.forecasts
    if forecasts is None:
        return paths
    names = [forecaster.name, best_baseline(report, forecaster.name)]
    paths.append(plot_forecast(run.figures / "forecast.png", dataset, forecasts, names))
    paths.append(plot_error_map(run.figures / "error_map.png", dataset, forecasts, forecaster.name))
    return paths


def best_baseline(report: Report, name: str) -> str:
    """Return the baseline with the best mean skill, other than `name` itself."""
    others = [row for row in report.rows if row.name != name]
    return max(others, key=lambda row: float(np.nanmean(row.skill))).name


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
) -> Outcome:
    """Train a forecaster on a file, test it on the file's last days and write a run folder.

    Called again with the same settings, it goes on where it was killed.

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
    """
    config = config or ForecasterConfig()
    dataset = open_data(data, step=step, services=services)
    simulated = config.cities if simulated is None else simulated
    settings = {
        "job": "train",
        "data": str(data),
        "step": dataset.step_minutes,
        "services": list(dataset.services),
        "simulated": simulated,
        "test_days": test_days,
        "forecaster": config.to_dict(),
    }
    run = RunFolder.create(out, settings, overwrite=overwrite)
    return fit_and_test(dataset, config, run, simulated=simulated or None, test_days=test_days, progress=progress)


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


def simulate(
    cities: int, out: str | Path, *, seed: int = 0, progress: Progress = quiet, **overrides: Any
) -> tuple[Path, ...]:
    """Simulate cities into a folder, one .npz file each beside a manifest with every parameter.

    Called again, it keeps the cities that are there; the same seed and index give the same city, bit for bit.

    Args:
        cities: how many.
        out: the folder.
        seed: of the family of cities.
        progress: called after each city.
        **overrides: fields of `simmst.simulation.CityConfig` to hold fixed, such as ``days=7``.

    Raises:
        ConfigError: `cities` is below 1, or the folder holds cities of another seed or other settings.
    """
    if cities < 1:
        raise ConfigError(f"cities is {cities}; it must be at least 1")
    folder = Path(out)
    prior = DomainPrior.default()
    configs = [prior.sample(seed, index, **overrides) for index in range(cities)]
    manifest = {"seed": seed, "overrides": {key: _plain(value) for key, value in overrides.items()}}
    folder.mkdir(parents=True, exist_ok=True)
    _check_manifest(folder / _MANIFEST, manifest)
    paths = []
    for config in configs:
        path = folder / f"city-{config.index:05d}.npz"
        if not path.exists():
            simulate_city(config).save(path)
        paths.append(path)
        progress("simulate", len(paths), cities)
    rows = [{"file": path.name, **config.to_dict()} for path, config in zip(paths, configs, strict=True)]
    write_json(folder / _MANIFEST, {**manifest, "cities": rows})
    return tuple(paths)


def _check_manifest(path: Path, wanted: dict[str, Any]) -> None:
    import json

    if not path.exists():
        write_json(path, {**wanted, "cities": []})
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {error.lineno}: {error.msg}; delete it to simulate anew") from error
    for key, value in wanted.items():
        if found.get(key) != value:
            raise ConfigError(
                f"{path.parent} holds cities made with {key} {found.get(key)!r}, wanted {value!r}; "
                "choose another folder"
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
