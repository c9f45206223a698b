"""Weights made like the shipped ones, but fewer and without a part of the network: what is each part worth?

    python benchmarks sim2real.ablations --out runs/ablations
    python benchmarks sim2real.ablations --out runs/ablations --cities 2400 --epochs 60 --seeds 0 1 2

Every network learns from the same simulated cities, as many steps as the others. The seed decides the cities, the
first weights and the order of the batches. The errors are those of the network alone, without companions, on real
series and on simulated cities of another seed and prior than those of the training (SURROGATE). They are divided by the
traffic of each service. A part that is cut off and missed has a ratio above 1 to the whole network. A second call
resumes what the first had begun.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from sim2real.shipped import CASES, Case, Score
from simmst.data import TrafficDataset
from simmst.forecaster.zero_shot import ZeroShotPredictor
from simmst.jobs.pretraining import PretrainingConfig, pretrain
from simmst.models import ABLATIONS
from simmst.pretrained import load_pretrained
from simmst.simulation import surrogate_city

_SURROGATES = range(3)


def surrogates() -> Iterator[TrafficDataset]:
    """Simulate the cities of the SURROGATE case."""
    for seed in _SURROGATES:
        yield surrogate_city(seed, height=10, width=10, days=16)


def cases() -> dict[str, Case]:
    """Return the series to forecast, with a test of at most a week."""
    real = {name: CASES[name] for name in ("milan", "milan-10min", "milan-cells", "services", "shandong", "nanjing")}
    return {**real, "SURROGATE": Case(surrogates, 48, (1, 6, 24), (14,), relative=True)}


def errors(folder: Path, cached: dict[str, list[TrafficDataset]]) -> dict[tuple[str, int, int], float]:
    """Return the errors of weights by case, step ahead and service, each divided by the traffic."""
    found = {}
    weights = load_pretrained(folder)
    for name, case in cases().items():
        score = Score(case)
        if name not in cached:
            cached[name] = list(case.series())
        for dataset in cached[name]:
            predictor = ZeroShotPredictor(weights, max(case.horizons), context_days=case.contexts[0], combine=False)
            score.add(dataset, predictor, quantiles=True)
        for step, service in score.error:
            found[name, step, service] = score.error[step, service] / score.traffic[step, service]
    return found


def run(options: argparse.Namespace) -> None:
    """Train what is missing, and print errors and their ratios to the whole network's."""
    cached: dict[str, list[TrafficDataset]] = {}
    for seed in options.seeds:
        table: dict[str, dict[tuple[str, int, int], float]] = {}
        for name in ("full", *(name for name in ABLATIONS if name != "full")):
            usual = PretrainingConfig()
            training = dataclasses.replace(usual.training, epochs=options.epochs, seed=seed)
            network = {"dropout": 0.0, **ABLATIONS[name]}
            config = dataclasses.replace(usual, cities=options.cities, network=network, training=training)
            folder = options.out / f"{name}-{seed}"
            pretrain(folder, config, workers=options.workers)
            table[name] = errors(folder, cached)
            loss = load_pretrained(folder).record["validation_loss"]
            print(f"seed {seed}  {name:10s}  loss on held-out cities {loss:.5f}", flush=True)
        whole = table["full"]
        print(f"{'':>28s}" + "".join(f"{name:>11s}" for name in table))
        for key in whole:
            place, step, service = key
            ratios = "".join(f"{table[name][key] / whole[key]:11.3f}" for name in list(table)[1:])
            print(f"{place:>12s} h={step:<3d} service {service}{100 * whole[key]:9.2f} %{ratios}")
        for name in list(table)[1:]:
            ratio = np.array([table[name][key] / whole[key] for key in whole])
            worse = int((ratio > 1).sum())
            mean = np.exp(np.log(ratio).mean())
            print(f"seed {seed}  {name:10s}  worse in {worse} of {len(ratio)}; geometric mean {mean:.3f}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python benchmarks sim2real.ablations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--cities", type=int, default=300, help="simulated cities to learn from (300)")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of 96 steps (10)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds (0)")
    parser.add_argument("--workers", type=int, default=None, help="simulating processes (one for each core)")
    run(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
