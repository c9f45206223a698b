"""The value of simulated cities where real data are scarce: MAE on the last days of real series, by days to train on.

    python benchmarks sim2real.real_data --out results
    python benchmarks sim2real.real_data --out results --data milan-hourly --days 1 2 --seeds 5
    python benchmarks sim2real.real_data --out results --table

Each case (series, days, horizon, solver, seed) is a JSON file in ``OUT/cases``. A case that has a file is not repeated,
and one that was cut off resumes from its checkpoint. Training targets are in the last DAYS days before the validation,
which comes before the test; inputs may reach back further, as they may for the naive forecasts. The naive forecasts are
fitted twice: on the same training days, and on training and validation days, on which nothing else is trained. Only the
errors in the table read the test days.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import harness
from simmst.baselines import BASELINES
from simmst.data import CALENDAR_FEATURES, ConcatWindows, Scaler, Split, TrafficDataset, Windows, WindowSpec, load
from simmst.errors import DataError
from simmst.evaluation import ModelPredictor, Predictor, evaluate
from simmst.forecaster.similar_cities import cities_like
from simmst.foundation.files import write_json
from simmst.models import SimMSTNet, SimMSTNetConfig, STNet
from simmst.training import RunFolder, TrainingConfig, derive_seed, seeded, solve

SOLVERS = ("real-only", "joint", "pretrain-finetune", "cutting-plane")
MORE = ", with the validation days"
# The errors are absolute, so the loss is too; simulated cities allow longer training than the default.
TRAINING = {"loss": "mae", "epochs": 40, "patience": 10, "reweighting": {"steps": 150, "share_decay": 0.0}}


class Series(NamedTuple):
    """A real series, and the settings of its cases."""

    file: str
    step: int
    days: tuple[int, ...]
    horizons: tuple[int, ...]
    recent: int
    daily: int
    validation_days: int
    test_days: int


SERIES = {
    "milan-hourly": Series("milan_block5x5_internet_10min", 60, (1, 2, 4, 14), (1, 6, 24), 24, 3, 2, 7),
    "milan-10min": Series("milan_block5x5_internet_10min", 10, (1, 2, 4, 14), (1, 3, 6), 12, 1, 2, 7),
    "services-hourly": Series("milan_three_services_3cells_hourly", 60, (1, 2, 4), (1, 6), 24, 1, 1, 2),
}


class Case(NamedTuple):
    """One training."""

    data: str
    days: int
    horizon: int
    solver: str
    seed: int

    @property
    def name(self) -> str:
        """The name of the case's file and folder."""
        return f"{self.data}-{self.days}d-h{self.horizon}-{self.solver}-{self.seed}"


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Iterate over the requested cases, all of one seed before the next."""
    for seed, data in itertools.product(range(options.seeds), options.data):
        series = SERIES[data]
        settings = itertools.product(options.days or series.days, options.horizons or series.horizons, options.solvers)
        yield from (Case(data, days, horizon, solver, seed) for days, horizon, solver in settings)


@functools.cache
def real_series(data: str) -> TrafficDataset:
    """Read a series at its step."""
    return load(SERIES[data].file).resample(SERIES[data].step)


@functools.cache
def simulated_cities(data: str, number: int) -> list[TrafficDataset]:
    """Simulate cities that resemble a series; they are the same for every seed of the training."""
    return cities_like(real_series(data), number, seed=derive_seed(0, "cities"))


def setting(case: Case) -> tuple[WindowSpec, Split]:
    """Return the windows and the split of a case."""
    series, real = SERIES[case.data], real_series(case.data)
    a_day = real.steps_per_day
    test = real.num_steps - series.test_days * a_day
    validation = test - series.validation_days * a_day
    train = validation - case.days * a_day
    side = 5 if real.geometry == "grid" else 1
    spec = WindowSpec.recent(case.horizon, series.recent, daily=series.daily, steps_per_day=a_day, neighbourhood=side)
    if train < 0 or spec.reach + case.horizon > validation:
        raise DataError(
            f"{case.data} has {real.num_steps / a_day:g} days, too few for {case.days} of training beside "
            f"{series.validation_days} of validation and {series.test_days} of test"
        )
    return spec, Split(range(train, validation), range(validation, test), range(test, real.num_steps))


def network(case: Case, spec: WindowSpec, options: argparse.Namespace) -> SimMSTNet:
    """Return the untrained network of a case."""
    real = real_series(case.data)
    config = SimMSTNetConfig(
        services=real.services,
        input_length=spec.input_length,
        horizon=spec.horizon,
        label_length=min(12, spec.input_length),
        num_marks=len(CALENDAR_FEATURES),
        neighbourhood=spec.neighbourhood,
        **options.network,
    )
    with seeded(derive_seed(case.seed, "weights")):
        return STNet(config) if config.num_tasks == 1 else SimMSTNet(config)


def run_case(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Train and test one case."""
    real, (spec, split) = real_series(case.data), setting(case)
    cities = simulated_cities(case.data, options.cities)
    scaler = Scaler.fit(real, split.train)
    parts = [
        Windows(city, spec, Scaler.fit(city, range(city.num_steps), scaler.kind), steps=range(city.num_steps))
        for city in cities
    ]
    config = training(case, options)
    settings = {**case._asdict(), **described(options), "training": config.to_dict()}
    model = network(case, spec, options)
    started = time.perf_counter()
    result = solve(
        case.solver,
        model,
        real_train=Windows(real, spec, scaler, steps=split.train),
        real_validation=Windows(real, spec, scaler, steps=split.validation),
        simulated=ConcatWindows(parts),
        config=config,
        run=RunFolder.create(options.out / "runs" / case.name, settings),
    )
    seconds = time.perf_counter() - started
    predictors: dict[str, Predictor] = {case.solver: ModelPredictor(model, scaler, spec)}
    left_out = {}
    for suffix, known in (("", split.train), (MORE, range(split.train.start, split.validation.stop))):
        fitted, missing = baselines(real, spec, split, known)
        predictors |= {name + suffix: baseline for name, baseline in fitted.items()}
        left_out |= {name + suffix: why for name, why in missing.items()}
    report = evaluate(predictors, real, spec, split, stride=options.stride)
    return {
        **settings,
        "parameters": sum(p.numel() for p in model.parameters()),
        "chosen": result.chosen,
        "validation": result.best_score,
        "seconds": round(seconds, 1),
        "points": report.num_points,
        "unit": report.unit,
        "mae": {row.name: dict(zip(real.services, map(float, row.mae), strict=True)) for row in report.rows},
        "left_out": left_out,
    }


def training(case: Case, options: argparse.Namespace) -> TrainingConfig:
    """Return the settings of a case's training."""
    return TrainingConfig.from_dict({**TRAINING, **options.training, "seed": case.seed})


def baselines(
    real: TrafficDataset, spec: WindowSpec, split: Split, known: range
) -> tuple[dict[str, Predictor], dict[str, str]]:
    """Fit the naive baselines on the slots `known`; name those that cannot forecast the whole test."""
    fitted, left_out = {}, {}
    origins = np.arange(split.test.start, split.test.stop - spec.horizon + 1)
    truth = ~np.isnan(real.activity[split.test.start : split.test.stop][..., real.mask])
    for name, make in BASELINES.items():
        try:
            baseline = make().fit(real, spec, known)
        except DataError as error:
            left_out[name] = str(error)
            continue
        if truth.all() and np.isnan(baseline.predict(real, origins)).any():
            left_out[name] = f"no value for some hours after {len(known) / real.steps_per_day:g} days"
        else:
            fitted[name] = baseline
    return fitted, left_out


def described(options: argparse.Namespace) -> dict[str, Any]:
    """Return what decides a case's numbers besides the case itself."""
    names = ("cities", "stride", "network")
    return {name: getattr(options, name) for name in names}


def table(found: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table with one row per setting.

    The columns are the MAE of the solvers (mean and spread over seeds), of the best naive forecast fitted to the same
    days, and of the best naive forecast that also knows the validation days. The last columns are the ratios of the
    last solver to each of these forecasts, as means over services and seeds.
    """
    rows = defaultdict(lambda: defaultdict(list))
    for one in found:
        rows[one["data"], one["days"], one["horizon"]][one["solver"]].append(one)
    solvers = [name for name in SOLVERS if any(name in row for row in rows.values())]
    solvers += sorted({name for row in rows.values() for name in row} - set(SOLVERS))
    last = solvers[-1]
    heads = ["series", "days", "steps", *solvers, "naive", "naive, more days"]
    heads += [f"{last} / real-only", "/ naive", "/ naive, more days"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for (data, days, horizon), by_solver in sorted(rows.items()):
        shown = [_spread([_mean(one["mae"][one["solver"]]) for one in by_solver[name]]) for name in solvers]
        ours = by_solver[last]
        against, naive = [_ratio(ours, by_solver["real-only"], "real-only")], []
        for suffix in ("", MORE):
            known = {name: _mean(mae) for name, mae in next(iter(by_solver.values()))[0]["mae"].items()}
            known = {name: mae for name, mae in known.items() if name in {base + suffix for base in BASELINES}}
            best = min(known, key=known.__getitem__)
            naive.append(f"{known[best]:.1f} ({best.removesuffix(MORE)})")
            against.append(_ratio(ours, ours, best))
        lines.append("| " + " | ".join(map(str, [data, days, horizon, *shown, *naive, *against])) + " |")
    return "\n".join(lines)


def _mean(mae: dict[str, float]) -> float:
    return float(np.mean(list(mae.values())))


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"


def _ratio(ours: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], name: str) -> str:
    """Return the mean, over services and common seeds, of our MAE divided by the other's."""
    theirs = {one["seed"]: one for one in others}
    ratios = [
        one["mae"][one["solver"]][service] / theirs[one["seed"]]["mae"][name][service]
        for one in ours
        if one["seed"] in theirs
        for service in one["mae"][one["solver"]]
    ]
    return f"{np.mean(ratios):.3f}" if ratios else "-"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = harness.parser("sim2real.real_data", __doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", nargs="+", choices=SERIES, default=list(SERIES))
    parser.add_argument("--days", type=int, nargs="+", help="default: the series' own")
    parser.add_argument("--horizons", type=int, nargs="+", help="default: the series' own")
    parser.add_argument("--solvers", nargs="+", default=list(SOLVERS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cities", type=int, default=120)
    parser.add_argument("--stride", type=int, default=1, help="slots from one forecast of the test to the next")
    parser.add_argument("--network", type=json.loads, default={}, help="fields of SimMSTNetConfig, as JSON")
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
            wanted = {**case._asdict(), **described(options)}
            wanted["training"] = training(case, options).to_dict()
            different = [key for key, value in wanted.items() if done[-1].get(key) != value]
            if different:
                raise SystemExit(f"{path} has other settings ({', '.join(different)}); choose another --out")
        elif not options.table:
            done.append(run_case(case, options))
            write_json(path, done[-1])
            print(f"{case.name}: {_mean(done[-1]['mae'][case.solver]):.2f} in {done[-1]['seconds']} s", flush=True)
    if done:
        print(table(done))
        for name, why in {name: why for one in done for name, why in one["left_out"].items()}.items():
            print(f"{name} is left out of some rows: {why}")
        write_json(options.out / "results.json", done)


if __name__ == "__main__":
    main()
