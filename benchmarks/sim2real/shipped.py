"""The shipped weights on real series: MAE at several steps ahead, and coverage of 80 % intervals.

    python benchmarks sim2real.shipped
    python benchmarks sim2real.shipped --cases milan nanjing --fit

Every forecast knows only the days before its origin; the naive forecasts next to it are fitted to all slots before the
test. ``--fit`` also adapts the weights to the days before the test, with the defaults of `Forecaster.fit`. Series of
patches are scored by the sum of absolute errors divided by the sum of traffic.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from simmst import Forecaster
from simmst.baselines import BASELINES
from simmst.data import TrafficDataset, data_directory, load
from simmst.evaluation import Predictor
from simmst.forecaster.zero_shot import ZeroShotPredictor
from simmst.pretrained import load_pretrained
from simmst.realism import read_patches


@dataclass(frozen=True)
class Case:
    """A real series and the settings of its scores.

    Attributes:
        series: function that gives the data sets, one per place.
        test: number of slots at the end that are forecast.
        horizons: steps ahead that are scored.
        contexts: numbers of days that a forecast may know.
        relative: whether errors are divided by the traffic.
        naive: baselines in the comparison.
    """

    series: Callable[[], Iterator[TrafficDataset]]
    test: int
    horizons: tuple[int, ...]
    contexts: tuple[int, ...]
    relative: bool = False
    naive: tuple[str, ...] = ("seasonal-naive-day", "hour-of-week-mean", "ridge", "gradient-boosting")


def extract(name: str, step: int) -> Callable[[], Iterator[TrafficDataset]]:
    """Return a function that reads a file with `load` and sums it to slots of `step` minutes."""
    return lambda: iter([load(name).resample(step)])


def patches(name: str) -> Callable[[], Iterator[TrafficDataset]]:
    """Return a function that gives the patches of a file in hours; their dates are assumed."""
    return lambda: (patch.resample(60) for patch in read_patches(data_directory() / f"{name}.npz"))


BLOCK = "milan_block5x5_internet_10min"
CASES = {
    "milan": Case(extract(BLOCK, 60), 168, (1, 6, 24), (16, 14, 7, 4, 2, 1)),
    "milan-10min": Case(extract(BLOCK, 10), 1008, (1, 3, 6), (14, 2)),
    "milan-cells": Case(extract("milan_3cells_internet_10min_november", 60), 168, (1, 6, 24), (21, 2)),
    "services": Case(extract("milan_three_services_3cells_hourly", 60), 48, (1, 6), (7,)),
    "shandong": Case(patches("shandong_12_patches_hourly"), 48, (1, 6, 24), (7,), relative=True),
    "nanjing": Case(patches("nanjing_8_patches_15min"), 48, (1, 6, 24), (7,), relative=True),
    "trento": Case(extract("trento_223_communes_internet_10min_zscored", 10), 288, (1,), (3,), naive=("persistence",)),
}


class Score:
    """The errors of one forecaster, added up over places."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.error: dict[tuple[int, int], float] = {}
        self.traffic: dict[tuple[int, int], float] = {}
        self.count: dict[tuple[int, int], int] = {}
        self.inside = self.number = 0

    def add(self, dataset: TrafficDataset, predictor: Predictor, *, quantiles: bool) -> None:
        """Forecast the test slots of a place, and add the errors."""
        horizon, start = max(self.case.horizons), dataset.num_steps - self.case.test
        origins = np.arange(start, dataset.num_steps)
        # The last origins' targets are beyond the series. The predictors continue it, and only known slots are scored.
        if quantiles:
            assert isinstance(predictor, ZeroShotPredictor)
            low, median, high = np.moveaxis(predictor.quantiles(dataset, origins, (0.1, 0.5, 0.9)), -1, 0)
        else:
            median = predictor.predict(dataset, origins)
        series = np.moveaxis(dataset.series(), -1, 1)  # (T, C, K)
        for step in range(horizon):
            truth = series[origins[: len(origins) - step] + step]
            known = np.isfinite(truth)
            if quantiles:
                held = (truth >= low[: len(truth), :, step]) & (truth <= high[: len(truth), :, step])
                self.inside += int(held[known].sum())
                self.number += int(known.sum())
            if step + 1 not in self.case.horizons:
                continue
            error = np.abs(median[: len(truth), :, step] - truth)
            for service in range(truth.shape[-1]):
                at, key = known[..., service], (step + 1, service)
                self.error[key] = self.error.get(key, 0.0) + float(error[..., service][at].sum())
                self.traffic[key] = self.traffic.get(key, 0.0) + float(truth[..., service][at].sum())
                self.count[key] = self.count.get(key, 0) + int(at.sum())

    def line(self) -> str:
        """Return the errors by step ahead and service, and the coverage if there are intervals."""
        scale = self.traffic if self.case.relative else self.count
        by_step = {
            step: [self.error[key] / scale[key] for key in sorted(self.error) if key[0] == step]
            for step in self.case.horizons
        }
        digits = 3 if self.case.relative else 2
        cells = [
            f"h={step}: " + " / ".join(f"{value:.{digits}f}" for value in values) for step, values in by_step.items()
        ]
        if self.number:
            cells.append(f"80 % interval holds {100 * self.inside / self.number:.1f} %")
        return ",  ".join(cells)


def run(name: str, *, fit: bool) -> None:
    """Print the lines of one case."""
    case, pretrained = CASES[name], load_pretrained()
    horizon = max(case.horizons)
    print(f"{name}: the last {case.test} slots")
    for days in case.contexts:
        score, began = Score(case), time.process_time()
        predictor = ZeroShotPredictor(pretrained, horizon, context_days=days)
        for dataset in case.series():
            score.add(dataset, predictor, quantiles=True)
        print(f"  shipped weights, {days} days of context   {score.line()}  ({time.process_time() - began:.0f} CPU s)")
    for days in (None, 2, 1) if fit else ():
        score = Score(case)
        for dataset in case.series():
            start = dataset.num_steps - case.test
            first = 0 if days is None else start - days * dataset.steps_per_day
            fitted = Forecaster(horizon=horizon).fit(dataset.slice_steps(first, start))
            score.add(dataset, fitted.predictor, quantiles=False)
        print(f"  fit on {'all' if days is None else days} days   {score.line()}", flush=True)
    for baseline in case.naive:
        score = Score(case)
        for dataset in case.series():
            start = dataset.num_steps - case.test
            spec = ZeroShotPredictor(pretrained, horizon).spec
            score.add(dataset, BASELINES[baseline]().fit(dataset, spec, range(start)), quantiles=False)
        print(f"  {baseline}   {score.line()}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python benchmarks sim2real.shipped",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--fit", action="store_true", help="adapt the weights as well")
    options = parser.parse_args(arguments)
    for name in options.cases:
        run(name, fit=options.fit)


if __name__ == "__main__":
    main()
