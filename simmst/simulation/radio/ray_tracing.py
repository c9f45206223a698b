"""The radio stage by ray tracing: Sionna RT in a procedural city, with the statistical radio where no ray arrives."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import os
import tempfile
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from simmst.foundation.files import write_atomically
from simmst.simulation.config import CityConfig
from simmst.simulation.radio.built_environment import Buildings, BuiltEnvironment, write_scene
from simmst.simulation.radio.ray_tracing_probe import require_ray_tracing
from simmst.simulation.radio.statistical import SECTORS_PER_SITE, USER_HEIGHT_M, Coverage, Sites, StatisticalRadio

LEAST_CARRIER_GHZ = 1.0  # the material models do not hold below it
MAST_M = 3.0  # height of a rooftop site above its roof
_ARRAY_ROWS = 4
_SECTORS_AT_ONCE = 96
_LEAST_RAYS, _MOST_RAYS = 2_000, 1_000_000  # per sector
_VERSION = 1


class RayTracedRadio:
    """Three-sector sites in a procedural city, with signals traced by Sionna RT with up to three reflections.

    Sites are those of `StatisticalRadio`; a site stands on a roof where its block has a building. Cells that no ray
    reaches take the power of the statistical radio, so that every cell is served. The tracing draws from a random
    stream of its own, so the statistical part of a city is the same with and without it. Results are kept on disk
    under a hash of everything they depend on. The tracing runs on one thread, so its sums are the same every time.

    Needs the extra ``raytracing`` and LLVM 19 (Debian and Ubuntu: ``apt-get install libllvm19``).

    Args:
        environment: the buildings.
        rays: total number of rays, divided among the sectors.
        cache: folder of earlier results. None uses ``simmst/ray-tracing`` in ``XDG_CACHE_HOME`` or ``~/.cache``;
            False keeps nothing.

    Raises:
        MissingExtraError: the extra is not installed (raised by `coverage`).
        RayTracingError: Sionna RT does not run here (raised by `coverage`).

    Source:
        Hoydis et al. 2023, "Sionna RT: Differentiable Ray Tracing for Radio Propagation Modeling"; sector antennas of
        3GPP TR 38.901, in columns of four.
    """

    def __init__(
        self,
        environment: BuiltEnvironment | None = None,
        *,
        rays: int = 2_000_000,
        cache: str | Path | bool | None = None,
    ) -> None:
        self.environment = environment or BuiltEnvironment()
        self.rays = rays
        self._cache = cache

    @property
    def cache(self) -> Path | None:
        """The folder of earlier results; None where none are kept."""
        if self._cache is False:
            return None
        if self._cache is None or self._cache is True:
            base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
            return base / "simmst" / "ray-tracing"
        return Path(self._cache)

    def coverage(self, config: CityConfig, rng: np.random.Generator) -> Coverage:
        """Draw the sites, trace their signals, and associate the city's cells with sectors.

        Args:
            config: the city; a carrier below 1 GHz is traced at 1 GHz.
            rng: source of randomness for the sites and the statistical power.

        Returns:
            The coverage, cells in row-major order.
        """
        return StatisticalRadio().coverage(config, rng, tracing=self.power_dbm)

    def power_dbm(self, config: CityConfig, sites: Sites) -> np.ndarray:
        """Return the power of every sector in every cell, traced or read from the cache.

        Returns:
            float32 ``(sites, 3, cells)``, NaN where no ray arrived.
        """
        require_ray_tracing()
        file = None if self.cache is None else self.cache / f"{self._key(config, sites)}.npz"
        gain_db = _read(file)
        if gain_db is None:
            gain_db = self._trace(config, sites)
            if file is not None:
                write_atomically(file, lambda path: np.savez_compressed(path, gain_db=gain_db))
        # The traced gain includes the antennas' pattern and the array, so only the transmit power is added.
        power: np.ndarray = gain_db + np.float32(config.transmit_power_dbm)
        return power

    def _key(self, config: CityConfig, sites: Sites) -> str:
        names = ("seed", "index", "height", "width", "cell_m", "carrier_ghz", "antenna_height_m", "tilt_deg")
        facts = {
            "version": [_VERSION, importlib.metadata.version("sionna-rt")],
            "config": {name: getattr(config, name) for name in names},
            "environment": asdict(self.environment),
            "rays": self.rays,
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for array in (sites.position_m, sites.azimuth_rad):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:32]

    def _trace(self, config: CityConfig, sites: Sites) -> np.ndarray:
        margin = config.inter_site_distance_m
        size = np.array([config.width, config.height]) * config.cell_m
        rng = np.random.default_rng([config.seed, config.index, 0x7AC3])
        buildings = self.environment.build(float(size.max()) + 2 * margin, rng)
        position = sites.position_m.reshape(-1, 2) + margin  # in the scene, whose corner is a margin outside the grid
        near = ((position > 0) & (position < size + 2 * margin)).all(axis=1)
        azimuth = sites.azimuth_rad.reshape(-1)
        sectors = [
            (int(site), sector, position[site], float(azimuth[site]) + sector * 2 * np.pi / SECTORS_PER_SITE)
            for site in np.flatnonzero(near)
            for sector in range(SECTORS_PER_SITE)
        ]
        gain_db = np.full((len(position), SECTORS_PER_SITE, config.num_cells), np.nan, np.float32)
        with tempfile.TemporaryDirectory() as folder:
            scene = _Scene(write_scene(Path(folder), buildings), config, margin)
            rays = int(np.clip(self.rays // max(len(sectors), 1), _LEAST_RAYS, _MOST_RAYS))
            # Groups are of nearly equal size, because Dr.Jit compiles its kernel once for each size.
            groups = -(-len(sectors) // _SECTORS_AT_ONCE)
            for part in (sectors[number::groups] for number in range(groups)):
                gain = scene.gain(part, buildings, rays)
                index = np.array([(site, sector) for site, sector, _, _ in part])
                with np.errstate(divide="ignore"):
                    gain_db[index[:, 0], index[:, 1]] = np.where(gain > 0, 10 * np.log10(gain), np.nan)
        return gain_db


class _Scene:
    """A city loaded into Sionna RT."""

    def __init__(self, path: Path, config: CityConfig, margin: float) -> None:
        self.rt: Any = importlib.import_module("sionna.rt")
        self.mi: Any = importlib.import_module("mitsuba")
        self.config, self.margin = config, margin
        importlib.import_module("drjit").set_thread_count(1)  # sums in one order
        self.scene = self.rt.load_scene(str(path))
        half_wave = {"vertical_spacing": 0.5, "horizontal_spacing": 0.5, "polarization": "V"}
        self.scene.tx_array = self.rt.PlanarArray(num_rows=_ARRAY_ROWS, num_cols=1, pattern="tr38901", **half_wave)
        self.scene.rx_array = self.rt.PlanarArray(num_rows=1, num_cols=1, pattern="iso", **half_wave)
        self.scene.frequency = max(config.carrier_ghz, LEAST_CARRIER_GHZ) * 1e9
        self.solver = self.rt.RadioMapSolver()

    def gain(self, sectors: list[tuple[int, int, np.ndarray, float]], buildings: Buildings, rays: int) -> np.ndarray:
        """Return the linear path gain with antennas, ``(sectors, cells)``; 0 where no ray arrived."""
        config = self.config
        tilt = np.radians(config.tilt_deg)
        names = []
        for site, sector, position, azimuth in sectors:
            roof = float(buildings.roof_at(position))
            height = max(config.antenna_height_m, roof + MAST_M if roof else 0.0)
            names.append(f"{site}-{sector}")
            place, orientation = [*map(float, position), height], [azimuth, float(tilt), 0.0]
            self.scene.add(self.rt.Transmitter(names[-1], position=place, orientation=orientation))
        width, height_m = config.width * config.cell_m, config.height * config.cell_m
        radio_map = self.solver(
            self.scene,
            center=self.mi.Point3f(self.margin + width / 2, self.margin + height_m / 2, USER_HEIGHT_M),
            orientation=self.mi.Point3f(0, 0, 0),
            size=self.mi.Point2f(width, height_m),
            cell_size=self.mi.Point2f(config.cell_m, config.cell_m),
            samples_per_tx=rays,
            max_depth=3,
            refraction=False,
            seed=1,
        )
        gain = np.array(radio_map.path_gain, dtype=np.float64)
        for name in names:
            self.scene.remove(name)
        return gain.reshape(len(sectors), config.height * config.width)


def _read(file: Path | None) -> np.ndarray | None:
    """Return an earlier result; None if there is none or it is damaged, and then it is traced and written again."""
    if file is None or not file.exists():
        return None
    try:
        with np.load(file, allow_pickle=False) as arrays:
            found: np.ndarray = arrays["gain_db"]
            return found
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
