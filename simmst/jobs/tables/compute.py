"""Computation of a cell: fit a system to the slots before the test, forecast from every test origin, and score."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from simmst.baselines import BASELINES, Persistence
from simmst.data import Split, TrafficDataset
from simmst.errors import ConfigError, DataError
from simmst.evaluation import EvaluationProtocol, Predictor, QuantilePredictor, score, seasonal_naive_error
from simmst.evaluation.leaks import refuse_leaking_forecasts
from simmst.evaluation.metrics import QUANTILE_LEVELS, score_quantiles
from simmst.evaluation.protocol import split_of
from simmst.evaluation.tables import Cell, finite
from simmst.forecaster import Forecaster, ForecasterConfig
from simmst.forecaster.zero_shot import ZeroShotPredictor
from simmst.foundation.threads import at_most
from simmst.jobs.tables.plan import Task, code_digest, digest_of
from simmst.jobs.tables.published import Published, published_path
from simmst.pretrained import load_pretrained
from simmst.training import RunFolder

Floats = npt.NDArray[np.float32]


class Known(NamedTuple):
    """The slots that a task's system may know, and those it must forecast.

    Attributes:
        dataset: series, without the slots that must not be known.
        split: training, validation and test slots.
        validation_steps: number of slots to hold out before the test; None leaves it to the forecaster.
        note: note on what was shrunk.
    """

    dataset: TrafficDataset
    split: Split
    validation_steps: int | None
    note: str

    @property
    def past(self) -> TrafficDataset:
        """The slots before the test, the only ones that a system is fitted to."""
        return self.dataset.slice_steps(0, self.split.test.start)


def known_slots(dataset: TrafficDataset, protocol: EvaluationProtocol, days: int | None) -> Known:
    """Split a series for a protocol.

    With `days` the series begins that many days before the test, for the fit and for the context of every forecast. A
    third of these days is the validation part, as in `Forecaster.fit`.

    Raises:
        DataError: fewer days than `days` precede the test.
    """
    per_day = dataset.steps_per_day
    split = split_of(protocol, dataset)
    if days is None:
        return Known(dataset, split, len(split.validation), split.note)
    start = split.test.start - days * per_day
    if start < 0:
        raise DataError(f"{split.test.start / per_day:g} days precede the test, fewer than the {days} to be known")
    cut = days * per_day
    validation = max(min(protocol.validation_days, days // 3) * per_day, cut // 3 if days < 3 else 0)
    shorter = Split(range(cut - validation), range(cut - validation, cut), range(cut, dataset.num_steps - start))
    note = "the fit and every forecast know only the last days before the test; a third of them is for validation"
    notes = f"{split.note}; {note}" if split.note else note
    return Known(dataset.slice_steps(start, dataset.num_steps), shorter, None, notes)


def compute(task: Task, folder: str, tuning: Mapping[str, Any] | None = None) -> Cell:
    """Compute a cell; if the system cannot be fitted to so little data, the cell says why.

    Args:
        task: cell to compute.
        folder: folder of the table, which holds the series.
        tuning: record of `simmst.jobs.tables.tuning.tune`; its choice changes the settings.
    """
    began, began_cpu = time.perf_counter(), time.process_time()
    settings = merged(task.settings, (tuning or {}).get("chosen", {}))
    cell = Cell(
        task.system.name,
        task.protocol.name,
        task.horizon,
        task.seed,
        task.days,
        task.key,
        code_digest(),
        dict(task.data),
        {**settings, "cities": task.cities},
        left_out="not computed",
        tuning=dict(tuning or {}),
    )
    record: dict[str, Any] = {"commit": commit(), "date": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    record |= {"torch": torch.__version__, "threads": 1}
    try:
        known = known_slots(series(folder, task.data["digest"]), task.protocol, task.days)
        with at_most(1):
            run = RunFolder.create(running_path(task, settings, folder), settings) if task.system.random else None
            predictor, chosen, notes = fitted(task, settings, known, folder, run)
            scored = scores(predictor, known, task.horizon)
    except (ConfigError, DataError) as error:  # too little data, or a network that needs longer windows
        return dataclasses.replace(cell, left_out=" ".join(str(error).split()), record=record)
    record |= {
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - began_cpu, 1),
    }
    record["chosen"] = chosen
    notes = tuple(note for note in (known.note, *notes) if note)
    return dataclasses.replace(cell, left_out=None, notes=notes, record=record, **scored)


def fitted(
    task: Task, settings: Mapping[str, Any], known: Known, folder: str, run: RunFolder | None = None
) -> tuple[Predictor, str | None, tuple[str, ...]]:
    """Fit a system to the slots before the test; return it, the stage whose weights it has, and notes."""
    if task.system.published:
        return Published(published_path(folder, task.data["digest"])), None, ()
    if task.system.untrained:
        combine = settings.get("combine", True)
        return ZeroShotPredictor(load_pretrained(), task.horizon, device="cpu", combine=combine), None, ()
    days = getattr(BASELINES.get(str(settings.get("model")), Persistence)(), "days", 0)
    if days * known.dataset.steps_per_day > known.split.test.start:
        raise DataError(f"it looks {days} days back, but fewer precede the test")
    forecaster = Forecaster(config=ForecasterConfig.from_dict(settings))
    forecaster.fit(known.past, task.cities or None, validation_steps=known.validation_steps, run=run)
    chosen = None if forecaster.result is None else forecaster.result.chosen
    return forecaster.predictor, chosen, forecaster.notes


def running_path(task: Task, settings: Mapping[str, Any], folder: str) -> Path:
    """Return the folder of a training's checkpoints, from which an interrupted cell resumes."""
    decides = [task.key, code_digest(), {name: value for name, value in settings.items() if name != "cities"}]
    return Path(folder) / "running" / f"{Path(task.file).stem}-{digest_of(decides)[:8]}"


def scores(predictor: Predictor, known: Known, horizon: int) -> dict[str, Any]:
    """Forecast from every test origin, score the last step, and return the fields of a cell.

    Raises:
        DataError: the system has no value for a known target.
    """
    dataset, test = known.dataset, known.split.test
    origins = np.arange(test.start, test.stop - horizon + 1, dtype=np.int64)
    if len(origins) == 0:
        raise DataError(f"the test has {len(test)} slots, too few for a horizon of {horizon}")
    refuse_leaking_forecasts("this system", predictor, dataset, origins)
    wql = None
    truth = _last_targets(dataset, origins, horizon)  # (n, C, 1, K)
    if isinstance(predictor, QuantilePredictor) and getattr(predictor, "has_quantiles", True):
        quantiles = predictor.quantiles(dataset, origins, QUANTILE_LEVELS)[:, :, -1:]
        forecast = quantiles[..., QUANTILE_LEVELS.index(0.5)]
        wql = score_quantiles(quantiles, truth).wql
    else:
        forecast = predictor.predict(dataset, origins)[:, :, -1:]
    missing = float((np.isnan(forecast) & ~np.isnan(truth)).sum() / max((~np.isnan(truth)).sum(), 1))
    if missing:
        raise DataError(f"it has no value for {100 * missing:.1f} % of the targets")
    train = dataset.activity[known.split.train.start : known.split.train.stop][..., dataset.mask]
    naive = seasonal_naive_error(np.moveaxis(train, 1, 2), dataset.steps_per_day)
    found = score(forecast, truth, naive_error=naive)
    error = np.abs(forecast.astype(np.float64) - truth)[:, :, 0]  # (n, C, K)
    there = ~np.isnan(error)
    count = there.sum(1)
    with np.errstate(invalid="ignore"):
        by_origin = np.where(there, error, 0).sum(1) / count  # (n, K), NaN without a target
        activity = np.where(np.isnan(truth), 0, truth).sum((0, 1, 2)) / (~np.isnan(truth)).sum((0, 1, 2))
    traffic = np.where(np.isnan(truth), 0, np.abs(truth)).sum((0, 2))  # (C, K)
    busiest = int((traffic / np.maximum(traffic.sum(0), 1e-9)).sum(1).argmax())
    trace = {
        name: [finite(row) for row in of[:, busiest, 0]] for name, of in (("truth", truth), ("forecast", forecast))
    }
    return {
        "truth": hashlib.sha256(truth.tobytes()).hexdigest()[:16],
        "points": tuple(int(one) for one in count.sum(0)),
        "activity": finite(activity),
        "mae": finite(found.mae),
        "rmse": finite(found.rmse),
        "mase": finite(found.mase),
        "wql": finite(np.full(len(found.mae), np.nan) if wql is None else wql),
        "errors": tuple(finite(row) for row in by_origin),
        "trace": {"cell": busiest, **trace},
    }


def merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with changes, merged section by section.

    Example:
        >>> merged({"training": {"epochs": 2, "seed": 1}}, {"training": {"epochs": 3}})
        {'training': {'epochs': 3, 'seed': 1}}
    """
    both = dict(settings)
    for key, value in changes.items():
        both[key] = merged(both.get(key, {}), value) if isinstance(value, Mapping) else value
    return both


def series_path(folder: str | Path, digest: str) -> Path:
    """Return the path of the series of a table, for the processes that compute its cells."""
    return Path(folder) / "series" / f"{digest}.npz"


@lru_cache(maxsize=2)
def series(folder: str, digest: str) -> TrafficDataset:
    """Read the series of a table, once per process."""
    return TrafficDataset.from_npz(series_path(folder, digest))


@lru_cache(maxsize=1)
def commit() -> str | None:
    """Return the commit of the checkout that holds this package; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def _last_targets(dataset: TrafficDataset, origins: npt.NDArray[np.int64], horizon: int) -> Floats:
    """Return the truth of the last step, (n, C, 1, K)."""
    targets = dataset.activity[origins + horizon - 1][..., dataset.mask]  # (n, K, C)
    return np.ascontiguousarray(targets.transpose(0, 2, 1)[:, :, None])
