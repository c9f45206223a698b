"""The cells of a table, the settings that decide their numbers, and the hashes that identify finished cells."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import simmst
from simmst.data import TrafficDataset
from simmst.errors import ConfigError
from simmst.evaluation import EvaluationProtocol
from simmst.jobs.inputs import described
from simmst.jobs.tables.systems import Effort, System
from simmst.models import SimMSTNetConfig

# The packages whose code decides a number; a change of a help text elsewhere does not count.
_ROOMS = (
    *("baselines", "core", "data", "forecaster", "models", "nn", "ops", "pretrained", "reference", "sim2real"),
    *("simulation", "training"),
)
_FILES = ("evaluation/evaluate.py", "evaluation/metrics.py", "evaluation/intervals.py", "jobs/tables/compute.py")


@dataclass(frozen=True)
class Task:
    """One cell to fill.

    Attributes:
        system: system to test.
        protocol: protocol of the test.
        horizon: number of steps ahead.
        seed: seed of everything random.
        days: number of days known before the test; None for all.
        data: description of the series, with the digest of its values.
        settings: complete settings of the forecaster, before tuning.
        cities: number of simulated cities that it learns from.
        budget: number of configurations that compete on the validation split; 1 uses the settings unchanged.
    """

    system: System
    protocol: EvaluationProtocol
    horizon: int
    seed: int
    days: int | None
    data: Mapping[str, Any]
    settings: Mapping[str, Any]
    cities: int
    budget: int = 1

    @cached_property
    def key(self) -> str:
        """Hash of everything that decides the numbers, except the code."""
        values = dataclasses.asdict(self)
        values["system"] = [self.system.name, self.system.untrained, self.system.published]
        # The name of a file does not identify its content.
        values["data"] = {key: value for key, value in self.data.items() if key != "name"}
        return digest_of(values)

    @property
    def file(self) -> str:
        """Name of the cell's file."""
        days = "" if self.days is None else f"-{self.days}d"
        where = f"{as_file_name(self.data['name'])}-{self.protocol.name}{days}-h{self.horizon}"
        return f"{where}/{self.system.name}-{self.seed}-{self.key[:12]}.json"


def tasks(
    systems: Sequence[System],
    dataset: TrafficDataset,
    protocol: EvaluationProtocol,
    effort: Effort,
    *,
    seeds: int,
    horizons: Sequence[int] | None = None,
    days: Sequence[int] | None = None,
    budget: int = 1,
) -> list[Task]:
    """Return the cells of a table, seed by seed.

    Args:
        systems: systems, one per row.
        dataset: series in the protocol's slots.
        protocol: protocol of the test.
        effort: effort of the training.
        seeds: number of seeds; a system that no seed changes has one cell.
        horizons: numbers of steps ahead; None takes the protocol's.
        days: numbers of days known before the test, for a protocol that has some; None takes all of the protocol's.
        budget: number of configurations tried for each trained system.

    Raises:
        ConfigError: a number is out of range.
    """
    horizons = protocol.horizons if not horizons else tuple(horizons)
    for name, values in (("seeds", [seeds]), ("tune", [budget]), ("horizons", horizons), ("days", days or [])):
        for value in values:
            if value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
    if days and protocol.first_days is None:
        raise ConfigError(f"protocol {protocol.name!r} uses all days; days go with lowdata and lowdata-tenmin")
    known = tuple(days or protocol.first_days or (None,))
    data = describe(dataset)
    return [
        Task(
            system,
            protocol,
            horizon,
            seed,
            day,
            data,
            settings(system, protocol, effort, horizon, seed),
            effort.cities if system.cities else 0,
            budget if system.random and not system.untrained else 1,
        )
        for seed in range(seeds)
        for system in systems
        if system.random or seed == 0
        for day in known
        for horizon in horizons
    ]


def settings(system: System, protocol: EvaluationProtocol, effort: Effort, horizon: int, seed: int) -> dict[str, Any]:
    """Return the settings of a system's forecaster, fields of `ForecasterConfig`."""
    model = system.settings.get("model")
    training = {**effort.training, "seed": seed}
    if system.settings.get("start") == "scratch":
        training |= effort.ablation
    own = model is None
    return {
        **system.settings,
        "horizon": horizon,
        # The shipped weights have a fixed length of input.
        "recent": max(protocol.recent, 24) if own else protocol.recent,
        "validation_days": protocol.validation_days,
        "network": {**effort.networks.get(model or "", {}), **system.settings.get("network", {})},
        "training": {"device": "cpu", **training},
    }


def describe(dataset: TrafficDataset) -> dict[str, Any]:
    """Return the description of a series in its cells; its digest covers the values, the times and the calendar."""
    found = described(dataset, None)
    calendar = [dataset.timezone, dataset.country, list(dataset.events), dataset.geometry]
    return {
        "name": dataset.name,
        "digest": digest_of([found["digest"], calendar]),
        "unit": dataset.unit,
        "services": list(dataset.services),
        "step_minutes": dataset.step_minutes,
        "surrogate": dataset.surrogate,
        "days": round(dataset.num_steps / dataset.steps_per_day, 2),
        "cells": dataset.num_cells,
    }


def digest_of(value: Any) -> str:
    """Return a hash, 16 hex digits, of a value that JSON can hold.

    Example:
        >>> digest_of({"b": 1, "a": 2}) == digest_of({"a": 2, "b": 1})
        True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=list).encode()).hexdigest()[:16]


@cache
def code_digest() -> str:
    """Return a hash, 16 hex digits, of the version of the package and of the code that decides the numbers."""
    home = Path(simmst.__file__).parent
    files = [path for room in _ROOMS for path in (home / room).rglob("*") if path.suffix in (".py", ".json")]
    found = hashlib.sha256(simmst.__version__.encode())
    for path in sorted([*files, *(home / name for name in _FILES)]):
        found.update(path.relative_to(home).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def as_file_name(name: str) -> str:
    """Return the name of a series in a form that file names can hold.

    Example:
        >>> as_file_name("north/cells *.csv")
        'north-cells-.csv'
    """
    return re.sub(r"[^\w.-]+", "-", name)


def memory_note() -> str:
    """Say what every system sees, for the caption."""
    return (
        "every system sees the same windows; 'with the memory' adds the same slots of up to "
        f"{SimMSTNetConfig().memory_days} days before, which our systems always see"
    )
