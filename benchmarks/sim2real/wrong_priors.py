"""Re-weighting where half of the simulated cities are wrong, in one of three known ways.

    python benchmarks sim2real.wrong_priors --out results
    python benchmarks sim2real.wrong_priors --out results --ways night --memories 28 --seeds 2
    python benchmarks sim2real.wrong_priors --out results --table

The "real" city is a SURROGATE: one more city simulated from the right prior. Four of its days are known for training
and two for validation; the errors are those of the week after. Half of the simulated cities come from the same prior,
and half from one that is wrong in one way:

    night    the whole day is twelve hours late: night and day are swapped
    no-week  weekends are like other days
    noise    white noise instead of slow noise

The same small network is trained for the same time on the right cities alone ("right"), on all of them ("joint"), and
on all of them drawn by the weights that the solver "cutting-plane" gives each city from the real days ("weighted").
The network itself is never trained on real windows, so the difference is due to the cities. `--memories` gives the
days before that the network sees: 28, the default; with 0 it sees only the last 24 hours, and cannot tell from the days
before what kind of city it is in.

Each training is a JSON file in ``OUT/cases``; one that has a file is not repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import harness
from simmst.data import CALENDAR_FEATURES, ConcatWindows, Scaler, TrafficDataset, Windows, WindowSource, WindowSpec
from simmst.distributed import ALONE
from simmst.evaluation import ModelPredictor
from simmst.evaluation.weight_report import effective_number
from simmst.foundation.files import write_json
from simmst.models import SimMSTNetConfig, STNet
from simmst.simulation import DomainPrior, LogUniform, Uniform, simulate_city
from simmst.training import TrainingConfig, derive_seed, quiet, seeded, train_stage
from simmst.training.recipes.reweighting import weighted_windows
from simmst.training.weighing import WindowWeights, weigh

WAYS = ("night", "no-week", "noise")
TRAINED = ("right", "joint", "weighted")
TRAIN_DAYS, VALIDATION_DAYS, TEST_DAYS = 4, 2, 7
START = "2013-10-10"  # start of the surrogate, a Thursday: the training days contain a weekend
RECENT, HORIZON = 24, 6
SHAPE: dict[str, Any] = {"height": 6, "width": 6, "services": ("internet",)}
NETWORK: dict[str, Any] = {"width": 16, "feedforward": 64, "neighbourhood": 1, "spatial": False}
TRAINING: dict[str, Any] = {
    "epochs": 12,
    "samples_per_epoch": 2048,
    "weights": "city",
    "samples_per_city": 128,
    "reweighting": {"steps": 100},
}


class Case(NamedTuple):
    """One training; the right cities alone are trained on once for all ways."""

    way: str
    memory: int
    seed: int
    trained: str

    @property
    def name(self) -> str:
        """The name of the training's file."""
        return f"{self.way}-m{self.memory}-{self.seed}-{self.trained}"


def right() -> DomainPrior:
    """Return the prior of the surrogate and of the right cities: usual cities with a marked week and slow noise."""
    return DomainPrior.usual().narrow(
        {
            "weekend_factor": (0.5, 0.7),
            "noise_log_std": (0.1, 0.3),
            "noise_correlation_h": (7.0, 16.0),
            "load_flicker_log_std": (0.004, 0.03),
            "flicker_log_std": (0.0, 0.01),
        }
    )


def wrong(way: str) -> DomainPrior:
    """Return the prior that is wrong in one way."""
    changes: dict[str, dict[str, Any]] = {
        "night": {"habits.clock_error_h": 12.0},
        "no-week": {
            "weekend_factor": 1.0,
            "weekend_delay_h": 0.0,
            "internet.weekend_factor": 1.0,
            "holiday_rest": 0.0,
            "season_rest": 0.0,
        },
        "noise": {
            "noise_correlation_h": LogUniform(0.05, 0.2),
            "load_flicker_log_std": Uniform(0.3, 0.45),
            "flicker_log_std": Uniform(0.2, 0.35),
        },
    }
    return right().narrow(changes[way])


@functools.lru_cache(maxsize=2)
def surrogate(seed: int) -> TrafficDataset:
    """Simulate the city that stands for a real one."""
    days = TRAIN_DAYS + VALIDATION_DAYS + TEST_DAYS
    return simulate_city(right().sample(derive_seed(seed, "surrogate"), 0, days=days, start=START, **SHAPE))


@functools.lru_cache(maxsize=8)
def cities(way: str, seed: int, number: int, days: int) -> tuple[TrafficDataset, ...]:
    """Simulate right cities, or cities that are wrong in one way."""
    prior = right() if way == "right" else wrong(way)
    family = derive_seed(seed, "cities", way)
    return tuple(simulate_city(prior.sample(family, index, days=days, **SHAPE)) for index in range(number))


def spec_of(memory: int) -> WindowSpec:
    """Return the windows: the last 24 hours, and the memory of the days before if there is one."""
    return WindowSpec(HORIZON, tuple(range(-RECENT, 0)), 1, memory_days=memory)


def windows_of(data: Sequence[TrafficDataset], spec: WindowSpec) -> ConcatWindows:
    """Return all windows of some cities, each city on its own scale."""
    return ConcatWindows(
        [
            Windows(city, spec, Scaler.fit(city, range(city.num_steps), "relative"), steps=range(city.num_steps))
            for city in data
        ]
    )


def network(case: Case) -> STNet:
    """Return the untrained network of a case: the same for all cases that are compared."""
    config = SimMSTNetConfig(
        services=("internet",),
        input_length=RECENT,
        horizon=HORIZON,
        num_marks=len(CALENDAR_FEATURES),
        **{"memory_days": max(case.memory, 1), **NETWORK},
    )
    with seeded(derive_seed(case.seed, "weights")):
        return STNet(config)


def run_case(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Train one network, and measure its error in the surrogate's last week."""
    real, spec = surrogate(case.seed), spec_of(case.memory)
    a_day = real.steps_per_day
    train = range(TRAIN_DAYS * a_day)
    validation = range(train.stop, train.stop + VALIDATION_DAYS * a_day)
    scaler = Scaler.fit(real, train, "relative")
    held_out = Windows(real, spec, scaler, steps=validation)
    half = options.cities // 2
    own = cities("right", case.seed, half, options.days)
    if case.trained != "right":
        own += cities(case.way, case.seed, half, options.days)
    config = TrainingConfig.from_dict({**TRAINING, **options.training, "seed": case.seed})
    model, simulated = network(case), windows_of(own, spec)
    begun, found = time.process_time(), {}
    source: WindowSource = simulated
    if case.trained == "weighted":
        weights = weigh(
            "cutting-plane",
            network(case),
            simulated,
            Windows(real, spec, scaler, steps=train),
            held_out,
            config,
            run=None,
            progress=quiet,
            processes=ALONE,
        )[1]
        source = weighted_windows(simulated, weights, config)
        found = told(weights, half) | {"weighing_seconds": round(time.process_time() - begun, 1)}
    history = train_stage(model, source, held_out, config, stage="pretrain", fit_highway=True)
    origins = np.arange(validation.stop, real.num_steps - HORIZON + 1)
    forecast = ModelPredictor(model, scaler, spec).predict(real, origins)  # (O, C, T, K)
    series = np.moveaxis(real.series(), -1, 1)
    truth = np.stack([series[origins + step] for step in range(HORIZON)], axis=2)
    return {
        **described(case, options),
        "mae": float(np.nanmean(np.abs(forecast - truth))),
        "validation": history.best_score,
        "seconds": round(time.process_time() - begun, 1),
        **found,
    }


def told(weights: WindowWeights, half: int) -> dict[str, Any]:
    """Return how well the weights tell the right cities, which come first, from the wrong ones."""
    by_city = weights.by_city()
    ours, theirs = by_city[:half, None], by_city[None, half:]
    return {
        "weights": by_city.tolist(),
        "auc": float(((ours > theirs) + 0.5 * (ours == theirs)).mean()),
        "effective_cities": effective_number(by_city),
        "mean_right": float(by_city[:half].mean()),
        "mean_wrong": float(by_city[half:].mean()),
    }


def described(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Return what decides a case's numbers."""
    training = TrainingConfig.from_dict({**TRAINING, **options.training, "seed": case.seed})
    # Turned into JSON values, because it is compared with the content of a file.
    plain = json.loads(json.dumps(dataclasses.asdict(training)))
    return {**case._asdict(), "cities": options.cities, "days": options.days, "network": NETWORK, "training": plain}


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Iterate over the requested cases, all of one seed before the next."""
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for memory in options.memories:
            if "right" in options.trained:
                yield Case("all", memory, seed, "right")
            for way in options.ways:
                yield from (Case(way, memory, seed, trained) for trained in TRAINED[1:] if trained in options.trained)


def table(found: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table with one row per way and memory: mean ratios with each seed's in brackets."""
    mae = {(one["way"], one["memory"], one["seed"], one["trained"]): one for one in found}
    lines = [
        "| way | memory | right alone, MAE | joint / right | weighted / right | AUC | effective cities | weights |",
        "|" + "---|" * 8,
    ]
    for memory in dict.fromkeys(one["memory"] for one in found):
        for way in WAYS:
            seeds = sorted(
                seed for w, m, seed, how in mae if (w, m, how) == (way, memory, "weighted") and seed is not None
            )
            if not seeds:
                continue
            base = [mae["all", memory, seed, "right"]["mae"] for seed in seeds]
            cells = [f"{np.mean(base):.1f}"]
            for how in TRAINED[1:]:
                ratios = [mae[way, memory, seed, how]["mae"] / b for seed, b in zip(seeds, base, strict=True)]
                cells.append(f"{np.mean(ratios):.3f} ({', '.join(f'{r:.3f}' for r in ratios)})")
            told_ = [mae[way, memory, seed, "weighted"] for seed in seeds]
            cells.append(", ".join(f"{one['auc']:.2f}" for one in told_))
            cells.append(", ".join(f"{one['effective_cities']:.1f}" for one in told_))
            cells.append(", ".join(f"{one['mean_right']:.2f} / {one['mean_wrong']:.2f}" for one in told_))
            lines.append("| " + " | ".join([way, f"{memory} days", *cells]) + " |")
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = harness.parser("sim2real.wrong_priors", __doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--trained", nargs="+", choices=TRAINED, default=list(TRAINED))
    parser.add_argument("--memories", type=int, nargs="+", default=[28, 0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--cities", type=int, default=24, help="half of them right, half wrong")
    parser.add_argument("--days", type=int, default=14, help="days of each simulated city")
    parser.add_argument("--training", type=json.loads, default={}, help="fields of TrainingConfig, as JSON")
    parser.add_argument("--table", action="store_true", help="only print the table of the finished cases")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the remaining cases, and print the table."""
    options = parse(arguments)
    done = []
    for case in cases(options):
        path = options.out / "cases" / f"{case.name}.json"
        if path.is_file():
            done.append(json.loads(path.read_text()))
            different = [key for key, value in described(case, options).items() if done[-1].get(key) != value]
            if different:
                raise SystemExit(f"{path} has other settings ({', '.join(different)}); choose another --out")
        elif not options.table:
            done.append(run_case(case, options))
            write_json(path, done[-1])
            print(f"{case.name}: {done[-1]['mae']:.2f} in {done[-1]['seconds']} s", flush=True)
    if done:
        print(table(done))


if __name__ == "__main__":
    main()
