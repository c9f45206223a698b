"""A folder of simulated cities: shards or official daily files, and a manifest of their settings and parameters."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simmst import __version__
from simmst.data.city_manifest import MANIFEST_FILE, read_manifest
from simmst.data.city_shards import read_headers, write_shard
from simmst.errors import ConfigError, DataError
from simmst.foundation.bounds import at_most
from simmst.foundation.files import locked, remove_half_written, write_json
from simmst.foundation.workers import available_cores, in_workers
from simmst.simulation import CityConfig, DomainPrior, simulate_city, write_official_files
from simmst.simulation.prior.plain import to_plain
from simmst.training import Progress, quiet

_TRACES = ("cities-*.parquet", "city-*")
_HALF_WRITTEN = ".half-written-"
FORMATS = ("shards", "official")
CITIES_PER_SHARD = 16


def simulate(
    cities: int,
    out: str | Path,
    *,
    seed: int = 0,
    city: Mapping[str, Any] | None = None,
    prior: str | Path | DomainPrior | None = None,
    format: str = "shards",  # noqa: A002 the option's name on the command line
    workers: int | None = None,
    progress: Progress = quiet,
) -> tuple[Path, ...]:
    """Simulate cities into a folder, with a manifest of every parameter.

    ``"shards"`` packs 16 cities into each ``cities-*.parquet``, which `simmst.data.CityShards` reads city by city;
    ``"official"`` writes each city into its own folder ``city-*``, as daily text files of the Telecom Italia challenge.
    A second call keeps finished cities, and makes cities again whose shard or folder is incomplete. The same seed,
    prior and index give the same city, bit for bit, whatever the number of workers.

    Args:
        cities: number of cities.
        out: folder to write.
        seed: seed of the cities.
        city: fields of `simmst.simulation.CityConfig` to fix, such as ``{"days": 7}``.
        prior: distribution of the parameters, or its YAML file; None takes `DomainPrior.default`.
        format: ``"shards"`` or ``"official"``.
        workers: number of processes; None takes one per core, and a single one for few cities. They are started with
            "spawn", so a script must guard its main part with ``if __name__ == "__main__":``.
        progress: callable that gets the number of cities done.

    Returns:
        The shards, or the folders of the cities, in order.

    Raises:
        ConfigError: a number is below 1, a field is unknown or out of range, or the folder holds cities of another
            seed, with other settings or from another version.
        DataError: the format cannot hold such cities.
    """
    for name, value in (("cities", cities), ("workers", workers)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
        if value is not None:
            at_most(name, value, 1_000_000 if name == "cities" else 1_024)
    if format not in FORMATS:
        raise ConfigError(f"format is {format!r}; it must be one of {', '.join(FORMATS)}")
    fixed = dict(city or {})
    for name in ("seed", "index"):
        if name in fixed:
            raise ConfigError(f"city holds {name!r}, which differs from city to city; give one seed for all instead")
    law = prior if isinstance(prior, DomainPrior) else DomainPrior.from_yaml(prior) if prior else DomainPrior.default()
    configs = [law.sample(seed, index, **fixed) for index in range(cities)]
    folder = Path(out)
    plain_law = {name: _plain(to_plain(distribution)) for name, distribution in law.parameters.items()}
    made_from = {"simmst": __version__, "seed": seed, "city": _plain(fixed), "prior": plain_law, "format": format}
    with locked(folder, ConfigError):
        manifest = _Manifest(folder, made_from)
        earlier = manifest.take_up()
        files = _shards(folder, configs) if format == "shards" else _city_folders(folder, configs)
        jobs = [job for job in files if not job.is_done()]
        done = cities - sum(len(job.configs) for job in jobs)
        workers = _default_workers(cities - done) if workers is None else workers
        for finished in in_workers(_Job.make, jobs, workers, ordered=False):
            done += len(finished.configs)
            progress("simulate", done, cities)
        rows = [
            {"file": job.path.name, "index": config.index, "parameters": _plain(law.values(config))}
            for job in files
            for config in job.configs
        ]
        manifest.write([*rows, *earlier[cities:]])
        return tuple(job.path for job in files)


@dataclass(frozen=True)
class _Job:
    """A shard or folder and its cities, which a worker process makes and returns."""

    path: Path
    configs: Sequence[CityConfig]
    official: bool

    def is_done(self) -> bool:
        """Return whether the file exists with all its cities; half-written files have other names."""
        if not self.path.exists() or self.official:
            return self.path.exists()
        there = [header.name for header in read_headers(self.path)]
        return there[: len(self.configs)] == [config.city_name for config in self.configs]

    def make(self) -> _Job:
        """Simulate the cities and write them."""
        if not self.official:
            write_shard(self.path, map(simulate_city, self.configs))
            return self
        temporary = Path(tempfile.mkdtemp(dir=self.path.parent, prefix=_HALF_WRITTEN))
        try:
            for config in self.configs:
                write_official_files(simulate_city(config), temporary, seed=config.seed)
            temporary.chmod(0o755)  # the permissions of an ordinary folder
            temporary.rename(self.path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return self


def _shards(folder: Path, configs: Sequence[CityConfig]) -> list[_Job]:
    groups = [configs[start : start + CITIES_PER_SHARD] for start in range(0, len(configs), CITIES_PER_SHARD)]
    return [_Job(folder / f"cities-{number:05d}.parquet", group, False) for number, group in enumerate(groups)]


def _city_folders(folder: Path, configs: Sequence[CityConfig]) -> list[_Job]:
    return [_Job(folder / f"city-{config.index:05d}", [config], True) for config in configs]


def _default_workers(cities: int) -> int:
    # A process takes as long to start as fifty cities take to make.
    return max(1, min(available_cores(), cities // 50))


class _Manifest:
    """The list of the cities in a folder, with the settings they were made from and their parameters."""

    def __init__(self, folder: Path, made_from: Mapping[str, Any]) -> None:
        self.folder = folder
        self.path = folder / MANIFEST_FILE
        self.made_from = made_from

    def take_up(self) -> list[dict[str, Any]]:
        """Return the cities already listed, after checking that the new ones are made from the same settings."""
        if not self.path.exists():
            if self.folder.is_dir() and any(path for trace in _TRACES for path in self.folder.glob(trace)):
                raise ConfigError(f"{self.folder} holds cities but no {MANIFEST_FILE}; choose another folder")
            self.write([])
            return []
        remove_half_written(self.folder)  # left by a process that was killed
        for path in self.folder.glob(f"{_HALF_WRITTEN}*"):
            shutil.rmtree(path)
        try:
            found = read_manifest(self.folder)
        except DataError as error:
            raise ConfigError(str(error)) from error
        assert found is not None  # noqa: S101 - it exists
        for key, value in self.made_from.items():
            before = getattr(found, key)
            if before != value:
                raise ConfigError(
                    f"{self.folder} holds cities made with {key} {_brief(before)}, wanted {_brief(value)}; "
                    "choose another folder"
                )
        return [dataclasses.asdict(row) for row in found.cities]

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        write_json(self.path, {**self.made_from, "cities": list(rows)})


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _plain(value: Any) -> Any:
    """Return a setting as JSON would read it back."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.to_dict() if hasattr(value, "to_dict") else value
