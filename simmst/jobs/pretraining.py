"""The making of the shipped weights: simulate cities of every kind, learn from them, write weights and record."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from simmst import __version__
from simmst.data import CALENDAR_FEATURES, StreamedWindows, TrafficDataset, WindowSpec
from simmst.distributed import ALONE, ProcessGroup
from simmst.errors import ConfigError
from simmst.foundation.files import locked
from simmst.foundation.memory import MAX_CONTEXT_DAYS
from simmst.foundation.scalars import python_scalars
from simmst.foundation.workers import available_cores, in_workers
from simmst.models import SimMSTNet, SimMSTNetConfig
from simmst.pretrained import Pretrained, save_pretrained
from simmst.pretrained.weights import WEIGHTS_FILE
from simmst.simulation import CityConfig, DomainPrior, simulate_city
from simmst.training import Progress, RunFolder, TrainingConfig, derive_seed, quiet, seeded, train_stage
from simmst.training.run_folder import checkout_commit

SERVICES = ("call", "sms", "internet")
# Minutes of a slot, days of the series, share of the cities.
_SLOTS = ((60, 36, 0.6), (30, 30, 0.08), (15, 22, 0.09), (10, 18, 0.12), (5, 8, 0.05), (1440, 80, 0.06))
# Services that a city has, share of the cities; a city's other services are unknown throughout.
_PRESENT = (
    (SERVICES, 0.45),
    (("internet",), 0.3),
    (("call", "sms"), 0.07),
    (("call",), 0.06),
    (("sms",), 0.06),
    (("sms", "internet"), 0.06),
)
# Days of context that a city's windows may know, share of the cities.
_CONTEXTS = ((1, 2, 3, 4, 5, 7, 10, 14, 21, 28), (0.08, 0.18, 0.09, 0.07, 0.06, 0.13, 0.05, 0.14, 0.07, 0.13))
_USUAL_SHARE = 0.45  # of the cities, drawn from the prior without outliers unless the caller gives a prior
_HELD_OUT_WINDOWS = 32  # of each city, at most
_POINTS_SHARE = 0.12  # of the cities; their cells have no neighbours
_TRAINING = TrainingConfig(
    epochs=60,
    samples_per_epoch=12_288,
    batch_size=128,
    learning_rate=2e-3,
    weight_decay=1e-2,
    warmup_steps=100,
    patience=None,
    fit_highway=False,
)


@dataclass(frozen=True)
class PretrainingConfig:
    """Settings for making the shipped weights.

    Args:
        cities: number of simulated cities to learn from.
        held_out: number of further cities that choose the best epoch.
        side: number of cells on each side of a city.
        windows_per_city: windows drawn from each city.
        origins_per_city: origins that these windows share.
        horizon: number of steps ahead to learn.
        network: fields of SimMSTNetConfig to change.
        training: settings of the training loop; its seed also seeds the cities.

    Raises:
        ConfigError: a number is below 1, or the cities are too small for so many windows.
    """

    cities: int = 2400
    held_out: int = 48
    side: int = 10
    windows_per_city: int = 96
    origins_per_city: int = 12
    horizon: int = 24
    network: dict[str, Any] = dataclasses.field(default_factory=lambda: {"dropout": 0.0, "task_weights": "average"})
    training: TrainingConfig = _TRAINING

    def __post_init__(self) -> None:
        python_scalars(self)
        for name in ("cities", "held_out", "side", "windows_per_city", "origins_per_city", "horizon"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}; it must be an integer of at least 1")
        most = self.origins_per_city * self.side**2
        if self.windows_per_city > most:
            raise ConfigError(
                f"windows_per_city is {self.windows_per_city}; {self.origins_per_city} origins of {self.side} x "
                f"{self.side} cells have {most}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as values that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PretrainingConfig:
        """Build the settings from the values of `to_dict`.

        Raises:
            ConfigError: a value is out of range.
        """
        training = values.get("training", _TRAINING)
        if isinstance(training, dict):
            training = TrainingConfig.from_dict(training)
        return cls(**{**values, "training": training})


@dataclass(frozen=True)
class Drawn:
    """One city to learn from.

    Attributes:
        city: its parameters.
        present: the services it has.
        points: whether its cells have no neighbours.
        context_days: days of context that its windows may use.
    """

    city: CityConfig
    present: tuple[str, ...]
    points: bool
    context_days: int


def draw_city(prior: DomainPrior | None, seed: int, index: int, side: int) -> Drawn:
    """Draw city number `index`, which depends only on the arguments.

    Without a prior the city comes from the default prior, or for a share of the cities from the usual prior, which
    holds most real places.
    """
    rng = np.random.default_rng([seed, index, 1])
    usual = rng.random() < _USUAL_SHARE
    prior = prior or (DomainPrior.usual() if usual else DomainPrior.default())
    shares = np.array([share for *_, share in _SLOTS])
    step, days, _ = _SLOTS[rng.choice(len(_SLOTS), p=shares / shares.sum())]
    shares = np.array([share for _, share in _PRESENT])
    present, _ = _PRESENT[rng.choice(len(_PRESENT), p=shares / shares.sum())]
    contexts, shares = np.array(_CONTEXTS[0]), np.array(_CONTEXTS[1])
    fitting = contexts <= max(days - 2, 1)
    context = int(rng.choice(contexts[fitting], p=shares[fitting] / shares[fitting].sum()))
    if step == 1440:
        context = MAX_CONTEXT_DAYS
    points = bool(rng.random() < _POINTS_SHARE)
    config = prior.sample(seed, index, height=side, width=side, days=days, step_minutes=step, services=list(SERVICES))
    return Drawn(config, present, points, context)


def make_city(drawn: Drawn) -> TrafficDataset:
    """Simulate a drawn city, and remove the services and the neighbours that it does not have."""
    city = simulate_city(drawn.city)
    activity = city.activity.copy()
    for number, service in enumerate(city.services):
        if service not in drawn.present:
            activity[:, number] = np.nan
    city = city.with_(activity=activity)
    if not drawn.points:
        return city
    flat = {name: getattr(city, name).reshape(1, -1) for name in ("mask", "cell_id")}
    inside = flat["mask"][0]
    return city.with_(
        activity=np.ascontiguousarray(activity.reshape(*activity.shape[:2], 1, -1)[..., inside]),
        geometry="points",
        lonlat=None,
        **{name: values[:, inside] for name, values in flat.items()},
    )


def make_cities(drawn: Sequence[Drawn], workers: int, progress: Progress) -> list[TrafficDataset]:
    """Simulate drawn cities, in worker processes."""

    def made() -> Iterator[TrafficDataset]:
        for done, city in enumerate(in_workers(make_city, drawn, workers, chunk=8), start=1):
            progress("simulate", done, len(drawn), {})
            yield city

    return list(made())


class _OwnCities(Sequence[TrafficDataset]):
    """Cities r, r + R, ... of rank r of R, indexed by their numbers among all; any other number gives one of these."""

    def __init__(self, own: Sequence[TrafficDataset], total: int, world_size: int) -> None:
        self.own, self.total, self.world_size = own, total, world_size

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, number: Any) -> Any:
        return self.own[min(number // self.world_size, len(self.own) - 1)]


def pretrain(
    out: str | Path,
    config: PretrainingConfig | None = None,
    *,
    prior: DomainPrior | None = None,
    workers: int | None = None,
    progress: Progress = quiet,
    processes: ProcessGroup = ALONE,
) -> Path:
    """Make weights like the shipped ones, in a folder.

    The same settings give the same weights on one machine. A second call simulates the cities again and resumes the
    training where it was killed. Several processes share the cities: rank r of R simulates and keeps the cities r,
    r + R, ..., and gathers the windows that a batch takes from them. The batches, and up to rounding the weights, are
    the same as with one process.

    Args:
        out: run folder, where ``weights.safetensors`` and ``weights.json`` are written at the end.
        config: settings; None takes those of the shipped weights.
        prior: distribution of the cities; None takes the default one, and for a share of the cities the usual one.
        workers: simulating processes of each rank; None divides the cores among the ranks.
        progress: callable that the work reports to.
        processes: process group that shares the work. Each of its processes makes the same call; rank 0 writes the
            folder and all read it.

    Returns:
        The path of the weights.

    Raises:
        ConfigError: the folder holds a run with other settings; a rank would get no city to learn from or none held
            out; or several processes are to fit the highway.
        CheckpointError: the folder's checkpoint is damaged.
    """
    config = config or PretrainingConfig()
    _check_shared(config, processes)
    with locked(Path(out), ConfigError) if processes.rank == 0 else nullcontext():
        return _pretrain(Path(out), config, prior, workers, progress, processes)


def _pretrain(
    out: Path,
    config: PretrainingConfig,
    prior: DomainPrior | None,
    workers: int | None,
    progress: Progress,
    processes: ProcessGroup,
) -> Path:
    seed = config.training.seed
    drawn = [draw_city(prior, seed, index, config.side) for index in range(config.cities + config.held_out)]
    law = hashlib.sha256(repr([one.city.to_dict() for one in drawn]).encode()).hexdigest()
    run = RunFolder(out)
    if processes.rank == 0:
        run = RunFolder.create(out, {"job": "pretrain", "cities_sha256": law, **config.to_dict()})
    processes.broadcast_object()  # the others read once the folder exists
    commit = checkout_commit()
    cities = _cities(drawn, config.cities, workers, progress, processes)
    spec = WindowSpec(config.horizon, tuple(range(-24, 0)), memory_days=MAX_CONTEXT_DAYS)
    learned, held_out = (
        StreamedWindows(
            shared,
            spec,
            per_city=per_city,
            seed=seed,
            scaler_kind="relative",
            keep=64,
            origins_per_city=config.origins_per_city,
            redraw=part.start is None,
            context_days=[one.context_days for one in drawn[part]],
        )
        for shared, part, per_city in (
            (cities[0], slice(config.cities), config.windows_per_city),
            (cities[1], slice(config.cities, None), min(_HELD_OUT_WINDOWS, config.windows_per_city)),
        )
    )
    wanted = SimMSTNetConfig.from_dict(
        {**config.network, "services": SERVICES, "horizon": config.horizon, "num_marks": len(CALENDAR_FEATURES)}
    )
    with seeded(derive_seed(seed, "weights")):
        network = SimMSTNet(wanted)
    history = train_stage(
        network,
        learned,
        held_out,
        config.training,
        stage="pretrain",
        run=run,
        progress=progress,
        processes=processes,
    )
    if processes.rank:
        return run.path / WEIGHTS_FILE
    record = {
        "made": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit,
        "version": __version__,
        "settings": config.to_dict(),
        "cities_sha256": law,
        "step_minutes": sorted({one.city.step_minutes for one in drawn}),
        "validation_loss": history.best_score,
        "best_epoch": history.best_epoch,
    }
    path = save_pretrained(run.path, Pretrained(network.config, network.state_dict(), record))
    run.finish({"validation_loss": history.best_score})
    return path


def _check_shared(config: PretrainingConfig, processes: ProcessGroup) -> None:
    fewest = min(config.cities, config.held_out)
    if fewest < processes.world_size:
        raise ConfigError(
            f"{processes.world_size} processes share {config.cities} cities and {config.held_out} held out; each needs "
            f"one of both kinds: start at most {fewest} processes, or raise cities and held_out"
        )
    if processes.world_size > 1 and config.training.fit_highway:
        raise ConfigError(
            "fit_highway is True, but no process holds all the cities to fit the highway to; set it to "
            "False, or start one process"
        )


def _cities(
    drawn: Sequence[Drawn], learned: int, workers: int | None, progress: Progress, processes: ProcessGroup
) -> tuple[_OwnCities, _OwnCities]:
    """Simulate this process's part of the first `learned` cities, and its part of those held out."""
    rank, ranks = processes.rank, processes.world_size
    parts = drawn[:learned][rank::ranks], drawn[learned:][rank::ranks]
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if ranks > 1 else 1
    made = make_cities([*parts[0], *parts[1]], workers or max(available_cores() // here, 1), progress)
    cut = len(parts[0])
    return _OwnCities(made[:cut], learned, ranks), _OwnCities(made[cut:], len(drawn) - learned, ranks)
