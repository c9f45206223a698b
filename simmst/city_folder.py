"""A folder of simulated cities: one file each, and a manifest of what they were made from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simmst import __version__
from simmst.errors import ConfigError
from simmst.files import write_json
from simmst.simulation import DomainPrior, simulate_city
from simmst.training import Progress, quiet

_MANIFEST = "manifest.json"


def simulate(
    cities: int,
    out: str | Path,
    *,
    seed: int = 0,
    city: Mapping[str, Any] | None = None,
    progress: Progress = quiet,
) -> tuple[Path, ...]:
    """Simulate cities into a folder, one .npz file each beside a manifest with every parameter.

    Called again, it keeps the cities that are there; the same seed and index give the same city, bit for bit.

    Args:
        cities: how many.
        out: the folder.
        seed: of the family of cities.
        city: fields of `simmst.simulation.CityConfig` to hold fixed, such as ``{"days": 7}``.
        progress: called after each city.

    Returns:
        The files, in order.

    Raises:
        ConfigError: `cities` is below 1, a field is unknown or out of range, or the folder holds cities of another
            seed, of other settings or of another version.
    """
    if cities < 1:
        raise ConfigError(f"cities is {cities}; it must be at least 1")
    fixed = dict(city or {})
    for name in ("seed", "index"):
        if name in fixed:
            raise ConfigError(f"city holds {name!r}, which each city has of its own; give the seed of them all instead")
    folder = Path(out)
    prior = DomainPrior.default()
    configs = [prior.sample(seed, index, **fixed) for index in range(cities)]
    manifest = _Manifest(folder, {"simmst": __version__, "seed": seed, "city": _plain(fixed)})
    earlier = manifest.take_up()
    paths = []
    for config in configs:
        path = folder / f"city-{config.index:05d}.npz"
        if not path.exists():
            simulate_city(config).save(path)
        paths.append(path)
        progress("simulate", len(paths), cities)
    rows = [{"file": path.name, **config.to_dict()} for path, config in zip(paths, configs, strict=True)]
    manifest.write([*rows, *earlier[cities:]])
    return tuple(paths)


class _Manifest:
    """The list of the cities in a folder, with what they were made from."""

    def __init__(self, folder: Path, made_from: Mapping[str, Any]) -> None:
        self.folder = folder
        self.path = folder / _MANIFEST
        self.made_from = made_from

    def take_up(self) -> list[dict[str, Any]]:
        """Return the cities listed already, after a check that those to come are of the same family."""
        if not self.path.exists():
            if self.folder.is_dir() and any(self.folder.glob("city-*.npz")):
                raise ConfigError(f"{self.folder} holds cities but no {_MANIFEST}; choose another folder")
            self.write([])
            return []
        for path in self.folder.glob(".city-*.npz"):  # of a process that was killed
            path.unlink()
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ConfigError(f"{self.path}, line {error.lineno}: {error.msg}; choose another folder") from error
        if not isinstance(found, dict) or not isinstance(found.get("cities"), list):
            raise ConfigError(f"{self.path} lists no simulated cities; choose another folder")
        for key, value in self.made_from.items():
            if found.get(key) != value:
                raise ConfigError(
                    f"{self.folder} holds cities made with {key} {found.get(key)!r}, wanted {value!r}; "
                    "choose another folder"
                )
        rows: list[dict[str, Any]] = found["cities"]
        return rows

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        write_json(self.path, {**self.made_from, "cities": list(rows)})


def _plain(value: Any) -> Any:
    """Return a setting as JSON gives it back."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.to_dict() if hasattr(value, "to_dict") else value
