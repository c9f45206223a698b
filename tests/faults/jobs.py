"""The commands that are killed: the input of each, and the contents of its folder at the end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simmst.foundation.files import is_half_written
from simmst.simulation import surrogate_city, write_official_files
from simmst.training import load_checkpoint

_TRAINING = (
    *(("samples_per_epoch", "48"), ("batch_size", "8"), ("validation_samples", "48"), ("epochs", "3")),
    ("device", "cpu"),
)
_SMALL = ("width", "8"), ("feedforward", "8"), ("num_heads", "2"), ("encoder_layers", "1")
# Differences between two repetitions of the same work: clocks, and the machine.
_UNLIKE = ("environment.json", "times.jsonl", "page.html", ".png", ".pdf", ".svg")
# Clocks, the checkout, and checksums of files with a clock in them; the content of these files is compared.
_CLOCKS = ("made", "date", "seconds", "cpu_seconds", "modified_ns", "commit", "sha256")


def write_data(folder: Path) -> Path:
    """Write the input of the commands: a city and three daily files."""
    surrogate_city(0, height=3, width=3, days=9, services=("internet",)).save(folder / "city.npz")
    (folder / "days").mkdir()
    write_official_files(surrogate_city(0, height=3, width=3, days=3, step_minutes=10), folder / "days", seed=0)
    return folder


@dataclass(frozen=True)
class Job:
    """A command that writes into a folder.

    Attributes:
        name: name of the test.
        arguments: arguments of the command, given the file or folder of its data and the folder it writes to.
        ranks: number of processes that share it.
    """

    name: str
    arguments: Callable[[Path, Path], list[str]]
    ranks: int = 1


def _train(data: Path, out: Path) -> list[str]:
    given = (("horizon", "2"), ("start", "scratch"), ("neighbourhood", "3"))
    network = [(f"network.{name}", value) for name, value in _SMALL]
    training = [(f"training.{name}", value) for name, value in _TRAINING]
    settings = [word for name, value in (*given, *network, *training) for word in (f"--forecaster.{name}", value)]
    command = ["train", "--data", str(data / "city.npz"), "--out", str(out), "--quiet", "--simulated", "1"]
    return [*command, "--test_days", "2", *settings]


def _pretrain(data: Path, out: Path) -> list[str]:
    settings = {"cities": 3, "held_out": 2, "side": 3, "windows_per_city": 12, "origins_per_city": 4, "horizon": 2}
    network = {"width": 8, "num_heads": 2, "feedforward": 8, "spatial_steps": 2, "task_weights": "average"}
    training = {"epochs": 4, "samples_per_epoch": 24, "batch_size": 6, "patience": None, "fit_highway": False}
    path = data / "pretraining.yaml"
    content = {**settings, "network": network, "training": {**training, "device": "cpu", "warmup_steps": 2}}
    path.write_text(json.dumps({"pretraining": content}))
    return ["pretrain", "--config", str(path), "--out", str(out), "--quiet", "--workers", "1"]


def _simulate(cities: int, kind: str, *further: str) -> Callable[[Path, Path], list[str]]:
    def arguments(data: Path, out: Path) -> list[str]:
        size = ["--city.height", "3", "--city.width", "3", "--city.days", "2", "--workers", "1", "--quiet"]
        return ["simulate", "--cities", str(cities), "--out", str(out), "--format", kind, *size, *further]

    return arguments


def _prepare(data: Path, out: Path) -> list[str]:
    return ["data", "prepare", str(data / "days"), "--out", str(out / "milan.npz"), "--cells", "observed", "--quiet"]


def _evaluate(data: Path, out: Path) -> list[str]:
    systems = ["persistence", "hour-of-week-mean", "ridge-lags", "lstm"]
    what = ["--table", "1", "--quick", "--horizons", "1", "--seeds", "1", "--jobs", "1", "--quiet"]
    return ["evaluate", "--data", str(data / "city.npz"), "--out", str(out), *what, "--systems", *systems]


JOBS = (
    Job("simulate", _simulate(40, "shards")),
    Job("simulate-official", _simulate(4, "official", "--city.step_minutes", "10")),
    Job("prepare", _prepare),
    Job("train", _train),
    Job("train-two-ranks", _train, ranks=2),
    Job("pretrain", _pretrain),
    Job("evaluate", _evaluate),
)


def content(folder: Path) -> dict[str, str]:
    """Return a digest, without clocks, of every file in a folder that has the name of a finished file.

    A truncated file cannot be read, and raises.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_dir() or hidden or is_half_written(path) or name.endswith(_UNLIKE):
            continue
        found[name] = hashlib.sha256(repr(_read(path)).encode()).hexdigest()
    return found


def finished(folder: Path) -> dict[str, int]:
    """Return when each piece of work that a resumed command keeps was written: shards, cities, days, cells."""
    patterns = ("*.parquet", "city-*/*.txt", "*.days/*.day.npz", "cells/*/*.json", "series/*.npz")
    paths = [path for pattern in patterns for path in folder.glob(pattern) if not is_half_written(path)]
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in paths}


def epochs(folder: Path) -> dict[str, int]:
    """Return the epoch of each checkpoint; the work before it is never repeated."""
    return {path.stem: load_checkpoint(path).state["epoch"] for path in folder.rglob("checkpoints/[!.]*.safetensors")}


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        import safetensors

        with safetensors.safe_open(str(path), framework="np") as file:
            tensors = {name: _bytes(file.get_tensor(name)) for name in sorted(file.keys())}
            metadata = {key: _plain(value) for key, value in sorted((file.metadata() or {}).items()) if key != "sha256"}
            return tensors, metadata
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: _bytes(arrays[name]) for name in sorted(arrays)}
    if path.suffix == ".parquet":
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(path)
        return table.schema.metadata, table.to_pydict()
    if path.suffix == ".json":
        return _without_clocks(json.loads(path.read_text()))
    return path.read_bytes()


def _bytes(array: np.ndarray[Any, Any]) -> tuple[str, tuple[int, ...], bytes]:
    return str(array.dtype), array.shape, array.tobytes()


def _plain(value: str) -> Any:
    try:
        return _without_clocks(json.loads(value))
    except ValueError:
        return value


def _without_clocks(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_clocks(value[key]) for key in sorted(value) if key not in _CLOCKS}
    return [_without_clocks(item) for item in value] if isinstance(value, list) else value
