"""Tuning: the same number of configurations for every trained system, judged only on the validation split."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simmst.data import Split
from simmst.errors import ConfigError, DataError
from simmst.foundation.documents import DocumentError, read_json
from simmst.foundation.extras import import_extra
from simmst.foundation.files import write_json
from simmst.foundation.threads import at_most
from simmst.jobs.tables.compute import Known, fitted, known_slots, merged, scores, series
from simmst.jobs.tables.plan import Task, as_file_name, code_digest, digest_of
from simmst.jobs.tables.systems import System


def space_of(system: System) -> dict[str, list[Any]]:
    """Return the possible values of each setting of a system, from ``space.json``.

    Example:
        >>> from simmst.jobs.tables.systems import TABLES
        >>> sorted(space_of(TABLES[1][-2]))
        ['training.adapt_epochs', 'training.adapt_learning_rate', 'training.batch_size']
    """
    spaces = json.loads(Path(__file__).with_name("space.json").read_text(encoding="utf-8"))
    kind = "ablations" if system.settings.get("start") == "scratch" else system.name
    found: dict[str, list[Any]] = spaces[kind if kind in spaces else "networks"]
    return found


def configurations(system: System, budget: int) -> list[dict[str, Any]]:
    """Draw changes of a system's settings: first none, then others without repetition, the same at each call.

    Raises:
        ConfigError: the space has fewer configurations.

    Example:
        >>> from simmst.jobs.tables.systems import TABLES
        >>> drawn = configurations(TABLES[1][7], 3)
        >>> drawn[0], len(drawn), drawn == configurations(TABLES[1][7], 3)
        ({}, 3, True)
    """
    space = space_of(system)
    most = math.prod(map(len, space.values())) + 1
    if budget > most:
        raise ConfigError(
            f"tune is {budget}; the space of {system.name} has {most} configurations, counting the default"
        )
    sampler = import_extra("sklearn.model_selection", extra="forecast").ParameterSampler
    drawn = list(sampler(space, budget - 1, random_state=0)) if budget > 1 else []
    return [{}, *map(_nested, drawn)]


def tune(work: tuple[Task, str]) -> dict[str, Any]:
    """Try the configurations of a system, and record the one with the least error on the validation slots.

    The record, which `load_tuning` reads, holds the budget, the space, every trial and the chosen changes. A trial has
    its changes of the settings and its score: the MAE of the last step divided by the mean activity, averaged over the
    services, or None where it cannot be fitted.

    Args:
        work: task, and folder of the table.
    """
    task, folder = work
    trials = [judge(task, changes, folder) for changes in configurations(task.system, task.budget)]
    judged = [trial for trial in trials if trial["score"] is not None]
    chosen = min(judged, key=lambda trial: trial["score"])["changes"] if judged else {}
    record = {"budget": task.budget, "space": space_of(task.system), "trials": trials, "chosen": chosen}
    write_json(tuning_path(folder, task), record)
    return record


def judge(task: Task, changes: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Fit one configuration and score it on the validation slots; the test slots are cut off first."""
    task = untuned(task)
    trial: dict[str, Any] = {"changes": dict(changes), "score": None}
    try:
        known = known_slots(series(folder, task.data["digest"]), task.protocol, task.days)
        with at_most(1):
            predictor, _, _ = fitted(task, merged(task.settings, changes), known, folder)
            found = scores(predictor, on_validation(known), task.horizon)
    except (ConfigError, DataError) as error:
        return {**trial, "why": " ".join(str(error).split())}
    pairs = zip(found["mae"], found["activity"], strict=True)
    relative = [mae / max(abs(activity), 1e-9) for mae, activity in pairs if mae is not None]
    return {**trial, "score": float(f"{sum(relative) / len(relative):.6g}")}


def on_validation(known: Known) -> Known:
    """Return a series that ends with the validation slots, in place of the test slots."""
    validation = known.split.validation
    split = Split(known.split.train, range(validation.start, validation.start), validation)
    return known._replace(dataset=known.past, split=split)


def tuning_path(folder: str | Path, task: Task) -> Path:
    """Return the file that records the tuning of a task, which is common to all seeds."""
    first = untuned(task)
    key = digest_of([first.key, task.budget, space_of(task.system), code_digest()])
    days = "" if task.days is None else f"-{task.days}d"
    where = f"{as_file_name(task.data['name'])}-{task.protocol.name}{days}-h{task.horizon}"
    return Path(folder) / "tuning" / where / f"{task.system.name}-{key[:12]}.json"


def load_tuning(path: Path) -> dict[str, Any] | None:
    """Read the record of a tuning; None where there is no complete one."""
    try:
        found = read_json(path, _Tuning)
    except (OSError, DocumentError):
        return None
    return dataclasses.asdict(found) if len(found.trials) == found.budget else None


@dataclass
class _Tuning:
    """The record of a tuning, with its trials and its choice."""

    budget: int
    space: dict[str, Any]
    trials: list[dict[str, Any]]
    chosen: dict[str, Any]


def untuned(task: Task) -> Task:
    """Return the task with seed 0, whose validation errors decide for all seeds."""
    settings = merged(task.settings, {"training": {"seed": 0}})
    return dataclasses.replace(task, seed=0, settings=settings, budget=1)


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in flat.items():
        *sections, last = name.split(".")
        place = found
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return found
