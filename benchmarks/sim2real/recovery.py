"""Re-weighting on problems with a known answer: `python benchmarks sim2real.recovery`.

    linear   settings drawn from `RANGES` by seed. The recovery, (unweighted - found) / (unweighted - exact), is the
             share of the test error due to bad simulated samples that a solver removes, for the shipped model and for
             the inner minimiser at the found weights; AUC is how often a clean sample weighs more than a corrupted one
    curved   a small network on five seeds, next to the plain references

All settings are the defaults. `--solver` chooses another solver; `--out` writes the figures as JSON.
"""

from __future__ import annotations

import json
import statistics
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import harness
from sim2real.problems import Small, curved, half_square, linear
from simmst.sim2real import DivergedError, ReweightingConfig, reweight

RANGES = {
    "features": (5, 40),
    "simulated": (100, 1000),
    "real": (20, 200),
    "corrupted": (0.1, 0.5),
    "noise": (0.1, 1.0),
    "gap": (0.0, 0.3),
}
LINEAR_SEEDS = range(40)
CURVED_SEEDS = range(11, 16)
CURVED_SOLVERS = ("unweighted", "joint", "real-only", "pretrain-finetune", "online", "cutting-plane", "qp")
EXACT = ReweightingConfig(steps=150, lr_weights=0.2)


def setting(seed: int) -> dict[str, Any]:
    """Draw the linear problem of a seed: each entry is uniform over its range, and an integer if the range is."""
    generator = np.random.default_rng([seed, *b"linear sim2real problem"])
    drawn: dict[str, Any] = {}
    for name, (low, high) in RANGES.items():
        whole = isinstance(low, int)
        drawn[name] = int(generator.integers(low, high + 1)) if whole else float(generator.uniform(low, high))
    return drawn


def inner_minimiser(problem: Small, share: Tensor, ridge: float) -> Tensor:
    """Return phi*(w) of a linear problem."""
    x, y = problem.simulated
    weighted = x * (share.double()[:, None] / len(x))
    identity = torch.eye(x.shape[1], dtype=torch.float64)
    return torch.linalg.solve(weighted.T @ x + ridge * identity, weighted.T @ y)


def run_linear(seed: int, solver: str) -> dict[str, Any]:
    """Measure the recovery and AUC of a solver on the problem of a seed."""
    drawn, config = setting(seed), ReweightingConfig()

    def error(phi: Tensor) -> float:
        x, y = problem.test
        return float((x @ phi - y).square().mean())

    problem = linear(seed, **drawn)
    unweighted = error(inner_minimiser(problem, torch.full((drawn["simulated"],), 0.5), config.ridge))
    reweight(problem.module, half_square, problem.simulated, problem.real, solver="exact", config=EXACT)
    exact = problem.error()
    row = {"seed": seed, **drawn, "unweighted": unweighted, "exact": exact}
    problem = linear(seed, **drawn)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            found = reweight(problem.module, half_square, problem.simulated, problem.real, solver=solver)
    except DivergedError:
        return {**row, "diverged": True, "shipped": -np.inf, "minimiser": -np.inf, "auc": 0.0, "warnings": 0}
    errors = problem.error(), error(inner_minimiser(problem, found.weights, config.ridge))
    shipped, minimiser = ((unweighted - value) / (unweighted - exact) for value in errors)
    # A loss that grew without becoming infinite has diverged as well.
    diverged = not max(errors) < 2 * unweighted
    return {
        **row,
        "diverged": diverged,
        "shipped": shipped,
        "minimiser": minimiser,
        "auc": problem.auc(found.weights),
        "warnings": len(warned),
    }


def run_curved(seed: int, solvers: Iterable[str]) -> dict[str, Any]:
    """Measure the test errors of solvers on the curved problem of a seed, and the AUC of those that weigh."""
    row: dict[str, Any] = {"seed": seed}
    for solver in solvers:
        problem = curved(seed)
        found = reweight(problem.module, half_square, problem.simulated, problem.real, solver=solver)
        row[solver] = problem.error()
        if float(found.raw_weights.abs().max()) > 0:
            row[f"{solver} auc"] = problem.auc(found.weights)
    return row


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarise the rows of the linear problem."""
    middle = {name: statistics.median(row[name] for row in rows) for name in ("shipped", "minimiser", "auc")}
    return {"settings": len(rows), "diverged": sum(row["diverged"] for row in rows), **middle}


def print_linear(rows: list[dict[str, Any]], solver: str) -> None:
    found = summary(rows)
    print(f"linear problem, {found['settings']} settings, {solver}: {found['diverged']} diverged; median recovery")
    print(f"  of the shipped model {found['shipped']:.3f}, of the inner minimiser {found['minimiser']:.3f}")
    low = sorted(row["shipped"] for row in rows)
    print(f"  lowest of the shipped model {low[0]:.3f}, lowest quarter up to {low[len(low) // 4]:.3f}")
    print(f"  median AUC {found['auc']:.3f}", flush=True)


def print_curved(rows: list[dict[str, Any]], solvers: list[str]) -> None:
    print("curved problem, test error")
    print(" ".join(["| seed |", *(f"{name} |" for name in solvers)]))
    print("|---" * (len(solvers) + 1) + "|")
    for row in rows:
        print(" ".join([f"| {row['seed']} |", *(f"{row[name]:.3f} |" for name in solvers)]))
    weighing = [name for name in solvers if f"{name} auc" in rows[0]]
    middle = ", ".join(f"{name} {statistics.median(row[f'{name} auc'] for row in rows):.3f}" for name in weighing)
    print(f"  median AUC: {middle}", flush=True)


def main() -> None:
    parser = harness.parser("sim2real.recovery", __doc__)
    parser.add_argument("--solver", default="cutting-plane", help="solver of the linear problem")
    parser.add_argument("--linear-seeds", type=int, nargs="*", default=list(LINEAR_SEEDS))
    parser.add_argument("--curved-seeds", type=int, nargs="*", default=list(CURVED_SEEDS))
    parser.add_argument("--curved-solvers", nargs="+", default=list(CURVED_SOLVERS))
    parser.add_argument("--out", type=Path, help="file for the figures")
    given = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    if given.linear_seeds:
        figures["linear"] = [run_linear(seed, given.solver) for seed in given.linear_seeds]
        print_linear(figures["linear"], given.solver)
    if given.curved_seeds:
        figures["curved"] = [run_curved(seed, given.curved_solvers) for seed in given.curved_seeds]
        print_curved(figures["curved"], given.curved_solvers)
    if given.out:
        given.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
