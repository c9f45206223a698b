"""The folder of one run: its settings, its environment and its results."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simmst.errors import CheckpointError, ConfigError
from simmst.foundation.documents import DocumentError, decode_json, read_json
from simmst.foundation.files import is_half_written, remove_half_written, write_atomically, write_json

_PACKAGES = ("simmst", "torch", "numpy", "pandas", "polars", "scikit-learn", "safetensors", "matplotlib", "holidays")


class RunFolder:
    """The files of one training run.

    ``config.json``, ``environment.json``, ``metrics.jsonl`` (one line for each epoch of a stage), ``times.jsonl``,
    ``checkpoints/``, ``figures/`` and, once the run is finished, ``summary.json``.

    Args:
        path: path of the folder, which `RunFolder.create` makes.

    Example:
        >>> import tempfile
        >>> run = RunFolder.create(Path(tempfile.mkdtemp()) / "run", {"seed": 0})
        >>> run.log({"stage": "real", "epoch": 1, "train_loss": 0.5})
        >>> run.metrics()
        [{'stage': 'real', 'epoch': 1, 'train_loss': 0.5}]
        >>> run.finished
        False
        >>> run.finish({"best_score": 0.4})
        >>> run.finished
        True
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: str | Path, config: Mapping[str, Any], *, overwrite: bool = False) -> RunFolder:
        """Make the folder, or resume the run that is in it, if that was made with the same config.

        Args:
            path: folder, which is new, empty, or of an earlier run.
            config: everything that decides the run's numbers, as values that JSON can hold.
            overwrite: whether to discard an earlier run's metrics, checkpoints and summary and start again.

        Raises:
            ConfigError: the folder holds a run of another config (the message names the keys that differ), or files
                that are not a run.
        """
        run = cls(path)
        if run.path.exists() and not run.path.is_dir():
            raise ConfigError(f"the run folder {run.path} is a file; choose another folder")
        config = _normalised(config)
        if run.config_path.is_file():
            if overwrite:
                run._clear()
            else:
                run._check_config(config)
        elif run.path.is_dir():
            others = sorted(entry.name for entry in run.path.iterdir() if not is_half_written(entry))
            if others:
                raise ConfigError(
                    f"the folder {run.path} holds files but no run (no config.json; there is {others[0]!r}); "
                    "choose an empty or new folder"
                )
        run.path.mkdir(parents=True, exist_ok=True)
        run._remove_leftovers()
        # written first, so the folder is known as a run's whenever the process may die
        write_json(run.config_path, config)
        for folder in (run.checkpoints, run.figures):
            folder.mkdir(exist_ok=True)
        write_json(run.environment_path, environment())
        return run

    @property
    def config_path(self) -> Path:
        """The file with the settings."""
        return self.path / "config.json"

    @property
    def environment_path(self) -> Path:
        """The file with versions, threads and processor."""
        return self.path / "environment.json"

    @property
    def metrics_path(self) -> Path:
        """The file with one JSON line for each epoch."""
        return self.path / "metrics.jsonl"

    @property
    def times_path(self) -> Path:
        """The file with the seconds of each epoch."""
        return self.path / "times.jsonl"

    @property
    def summary_path(self) -> Path:
        """The file that only a finished run has."""
        return self.path / "summary.json"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def figures(self) -> Path:
        """The folder of the pictures."""
        return self.path / "figures"

    def checkpoint_path(self, stage: str) -> Path:
        """Return the file that holds a stage's last state."""
        return self.checkpoints / f"{stage}.safetensors"

    @property
    def finished(self) -> bool:
        """Whether the run has ended."""
        return self.summary_path.is_file()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Mark the run finished with a summary of its result."""
        write_json(self.summary_path, _normalised(summary))

    def config(self) -> dict[str, Any]:
        """Read the settings.

        Raises:
            ConfigError: the folder holds no run.
        """
        return self._read(self.config_path)

    def summary(self) -> dict[str, Any]:
        """Read the summary of a finished run.

        Raises:
            ConfigError: the run is not finished.
        """
        return self._read(self.summary_path)

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``.

        Raises:
            ValueError: the record holds a NaN or an infinity.
        """
        line = json.dumps(dict(record), allow_nan=False) + "\n"
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def log_time(self, record: Mapping[str, Any]) -> None:
        """Append one line to ``times.jsonl``; times stay out of the metrics, which every repetition reproduces."""
        with self.times_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(record)) + "\n")

    def metrics(self, stage: str | None = None) -> list[dict[str, Any]]:
        """Read the lines of ``metrics.jsonl``, of one stage or of all; an unfinished last line is left out.

        Raises:
            CheckpointError: a line before the last is damaged.
        """
        return [record for record in self._records() if stage is None or record.get("stage") == stage]

    def drop_metrics(self, stage: str, after_epoch: int) -> None:
        """Drop a stage's lines after an epoch, which a killed run wrote after its last checkpoint."""
        if not self.metrics_path.is_file():
            return
        kept = [record for record in self._records() if record["stage"] != stage or record["epoch"] <= after_epoch]
        self._rewrite(kept)

    def _records(self) -> list[dict[str, Any]]:
        if not self.metrics_path.is_file():
            return []
        text = self.metrics_path.read_bytes()
        lines = text.splitlines()
        records = []
        for number, line in enumerate(lines, start=1):
            try:
                record = decode_json(line, dict[str, Any])
                _check_record(record)
            except DocumentError as error:
                if number == len(lines) and not text.endswith(b"\n"):
                    break  # the process died while it wrote this line
                shown = line[:60].decode(errors="replace")
                raise CheckpointError(
                    f"{self.metrics_path}, line {number}: not a JSON record: {shown!r} ({error}); "
                    "delete that line, or start the run again in another folder"
                ) from error
            records.append(record)
        return records

    def _rewrite(self, records: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(dict(record), allow_nan=False) + "\n" for record in records)
        write_atomically(self.metrics_path, lambda path: path.write_text(text, encoding="utf-8"))

    def _check_config(self, config: dict[str, Any]) -> None:
        before, now = flattened(self.config()), flattened(config)
        different = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if different:
            shown = "; ".join(
                f"{key} was {before.get(key, 'not set')!r}, now {now.get(key, 'not set')!r}" for key in different[:6]
            )
            more = f" (and {len(different) - 6} more)" if len(different) > 6 else ""
            raise ConfigError(
                f"{self.path} holds a run made with another config: {shown}{more}; "
                "choose another folder, delete this one, or overwrite it (--overwrite, overwrite=True)"
            )

    def _remove_leftovers(self) -> None:
        """Delete the temporary files that a killed process left."""
        for folder in (self.path, self.checkpoints, self.figures):
            remove_half_written(folder)

    def _clear(self) -> None:
        checkpoints = sorted(self.checkpoints.glob("*.safetensors")) if self.checkpoints.is_dir() else []
        for path in (self.summary_path, self.metrics_path, self.times_path, *checkpoints):
            path.unlink(missing_ok=True)

    def _read(self, path: Path) -> dict[str, Any]:
        if not path.is_file():
            what = "a finished run" if path == self.summary_path else "a run"
            raise ConfigError(f"{self.path} does not hold {what}: there is no {path.name}; check the path")
        try:
            return read_json(path, dict[str, Any])
        except DocumentError as error:
            raise ConfigError(f"{path}: {error}; restore it, or choose another folder") from error


def _check_record(record: Mapping[str, Any]) -> None:
    for name, kind in (("stage", str), ("epoch", int)):
        if type(record.get(name)) is not kind:
            raise DocumentError(f"{name} is {record.get(name)!r}")


def environment() -> dict[str, Any]:
    """Return what a run's numbers may depend on besides its config: versions, commit, threads, processor, GPU.

    Example:
        >>> sorted(environment())
        ['commit', 'gpu', 'packages', 'platform', 'processor', 'python', 'threads']
    """
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # noqa: PERF203
            versions[package] = "not installed"
    return {
        "python": sys.version.split()[0],
        "packages": versions,
        "commit": checkout_commit(),
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": {"torch": torch.get_num_threads(), "cores": os.cpu_count()},
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def checkout_commit() -> str | None:
    """Return the commit of the checkout that the command runs in; None outside a checkout."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _normalised(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` as they are after a trip through JSON: tuples as lists, NumPy numbers as Python's."""

    def plain(value: object) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, Path):
            return str(value)
        raise TypeError(f"a run's config cannot hold {value!r} of type {type(value).__name__}; use JSON types")

    normalised = json.loads(json.dumps(dict(values), default=plain, allow_nan=False))
    assert isinstance(normalised, dict)  # noqa: S101 - for the type checker
    return normalised


def flattened(values: Mapping[str, Any], separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """Return nested settings by the paths of their keys, so that an error can name those that differ.

    Example:
        >>> flattened({"seed": 0, "network": {"width": 8}})
        {'seed': 0, 'network.width': 8}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flattened(value, separator, f"{prefix}{key}{separator}"))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
