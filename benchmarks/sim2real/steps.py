"""Time and memory of an outer step of re-weighting: `python benchmarks sim2real.steps`.

Steps of the default solver on a network of |phi| parameters and 30,638 simulated samples, against

    planes           the same loop with the planes in plain torch: stored in float32, two products per step
    double backward  the same loop with psi differentiated by double backward instead of forward mode
    one step         the one-step hypergradient, solver "online", which keeps no planes

and the loop of 64 planes and two million parameters between two refreshes, in three storages, against plain torch with
float32. Both sides of a line are timed in turn in one process, after their results were compared. `--threads` sets the
team size (2), `--rounds` the rounds (5), `--quick` takes small sizes, `--out` writes the figures as JSON.
"""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import harness
from harness.machine import conditions, team
from harness.timing import Timing, time_pair
from simmst.sim2real import ReweightingConfig
from simmst.sim2real.cutting_plane import CuttingPlane
from simmst.sim2real.polyhedron import AdamState, Polyhedron
from simmst.sim2real.problem import Problem
from simmst.sim2real.references import Online

SAMPLES, REAL, FEATURES = 30_638, 720, 64
SIMULATED_BATCH, REAL_BATCH = 512, 128
SIZES = (100_000, 2_000_000, 20_000_000)
QUICK_SIZES = (2_000,)
STORAGES = {"float32": 2.0, "bfloat16": 3.0, "sign": 8.0}  # storage: ratio to reach
PLANES = 64
AGREEMENT = 1e-3  # relative difference of phi after the steps that are compared


class PlainPolyhedron(Polyhedron):
    """The planes in plain torch: float32 matrices, with one product before the step and one after it."""

    def _evaluate(self, weights: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        part = self.offsets + (self.weight_rows.dense() @ weights.float()).double()
        return part, part + (self.model_rows.dense() @ phi.float()).double()

    def step_(
        self,
        coefficients: Tensor,
        weights: Tensor,
        weight_gradient: Tensor,
        phi: Tensor,
        model_gradient: Tensor,
        *,
        lr_weights: float,
        lr_model: float,
        adam_state: AdamState | None,
    ) -> None:
        direction = torch.addmv(weight_gradient, self.weight_rows.dense().T, coefficients)
        if adam_state is None:
            weights.sub_(direction, alpha=lr_weights)
        else:
            first, second, taken = adam_state
            taken += 1
            first.lerp_(direction, 0.1)
            second.mul_(0.999).addcmul_(direction, direction, value=0.001)
            size = (second / (1 - 0.999 ** float(taken))).sqrt_().add_(1e-8)
            weights.addcdiv_(first, size, value=-lr_weights / (1 - 0.9 ** float(taken)))
        phi.sub_(torch.addmv(model_gradient, self.model_rows.dense().T, coefficients), alpha=lr_model)
        self.values = self._evaluate(weights, phi)[1]


def network(size: int) -> nn.Module:
    """Return a network with two hidden layers, of the width that gives about `size` parameters."""
    width = round(((FEATURES + 3) ** 2 / 4 + size) ** 0.5 - (FEATURES + 3) / 2)
    layers = nn.Linear(FEATURES, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
    return nn.Sequential(*layers)


def loss(module: nn.Module, batch: Any) -> Tensor:
    result: Tensor = (module(batch[0]).squeeze(1) - batch[1]).square() / 2
    return result


def problem(size: int, **settings: Any) -> Problem:
    """Return the problem of a size, the same for every side."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x, x_real = torch.randn(SAMPLES, FEATURES), torch.randn(REAL, FEATURES)
        law = torch.randn(FEATURES) / 8
        module = network(size)
    config = ReweightingConfig(
        simulated_batch=SIMULATED_BATCH,
        real_batch=REAL_BATCH,
        **{"derivative": "forward", **settings},
    )
    return Problem(module, loss, (x, torch.tanh(x @ law)), (x_real, torch.tanh(x_real @ law)), config)


class Stepper:
    """A solver that takes one step per call."""

    def __init__(self, solver: Any) -> None:
        self.solver, self.number = solver, 0

    def __call__(self) -> Tensor:
        self.solver.step(self.number)
        self.number += 1
        phi: Tensor = self.solver.phi
        return phi


def with_planes(kind: type[Polyhedron], made: Problem) -> Stepper:
    solver = CuttingPlane(made)
    sizes = made.num_weights, made.model.size
    config = made.config
    storage = "float32" if kind is PlainPolyhedron else config.storage
    solver.polyhedron = kind(*sizes, max_planes=config.max_planes, storage=storage, device=made.model.device)
    return Stepper(solver)


def sides(name: str, size: int) -> tuple[Stepper, Stepper]:
    """Return our side and the peer's of a comparison."""
    ours = with_planes(Polyhedron, problem(size))
    if name == "planes":
        return ours, with_planes(PlainPolyhedron, problem(size))
    if name == "double backward":
        return ours, with_planes(Polyhedron, problem(size, derivative="double-backward"))
    return ours, Stepper(Online(problem(size)))


def whole_steps(size: int, rounds: int) -> list[dict[str, Any]]:
    """Time steps that each have a refresh."""
    rows = []
    for name in ("planes", "double backward", "one step"):
        ours, peer = sides(name, size)
        for _ in range(12):  # until the number of planes is at its limit
            one, other = ours(), peer()
        difference = float((one - other).norm() / other.norm())
        if name != "one step" and difference > AGREEMENT:
            raise SystemExit(f"{name} at {size}: the two sides differ by {difference:.2g}")
        timing = time_pair(ours, peer, rounds)
        rows.append(row(f"step, {name}", ours.solver.problem.model.size, "float32", None, timing))
        del ours, peer, one, other
        gc.collect()
    return rows


def between_refreshes(size: int, storage: str, rounds: int) -> dict[str, Any]:
    """Time the loop on a full polyhedron, without refresh and without the model's own gradient."""
    generator = torch.Generator().manual_seed(0)
    ours, peer = (
        kind(SAMPLES, size, max_planes=PLANES, storage=form, device=torch.device("cpu"))
        for kind, form in ((Polyhedron, storage), (PlainPolyhedron, "float32"))
    )
    points = [(torch.zeros(SAMPLES), torch.zeros(size)) for _ in range(2)]
    for _ in range(PLANES):
        a, signs = torch.randn(SAMPLES, generator=generator), torch.randn(size, generator=generator).sign()
        for polyhedron, point in zip((ours, peer), points, strict=True):
            polyhedron.add(a / size**0.5, signs / size**0.5, value=0.0, weights=point[0], phi=point[1])
    gradient = torch.randn(size, generator=generator)

    def looper(polyhedron: Polyhedron, point: tuple[Tensor, Tensor]) -> Any:
        w, phi = point
        polyhedron.multipliers = torch.ones(PLANES)
        polyhedron.anchor(w, phi)
        state = torch.zeros_like(w), torch.zeros_like(w), torch.tensor(0.0)
        still = torch.zeros_like(w)

        def loop() -> Tensor:
            ascent = polyhedron.multipliers + 1e-3 * polyhedron.values.float()
            polyhedron.multipliers = ascent.clamp(min=0)
            polyhedron.step_(
                polyhedron.multipliers, w, still, phi, gradient, lr_weights=1e-3, lr_model=1e-3, adam_state=state
            )
            return polyhedron.values

        return loop

    loops = [looper(polyhedron, point) for polyhedron, point in zip((ours, peer), points, strict=True)]
    one, other = (loop() for loop in loops)
    # bfloat16 rounds the magnitude of these planes' entries, which is the same for all.
    if float((one - other).norm() / other.norm()) > (0.01 if storage == "bfloat16" else AGREEMENT):
        raise SystemExit(f"the loop with {storage}: the values differ, {one[:4].tolist()} and {other[:4].tolist()}")
    timing = time_pair(*loops, rounds)
    return row("loop without refresh", size, storage, STORAGES[storage], timing)


def row(name: str, size: int, storage: str, wanted: float | None, timing: Timing) -> dict[str, Any]:
    return {
        "case": name,
        "parameters": size,
        "storage": storage,
        "ours_ms": 1e3 * timing.ours.median,
        "peer_ms": 1e3 * timing.peer.median,
        "ratio": timing.ratio,
        "wanted": wanted,
        "ours_peak_mb": None if timing.ours.peak is None else timing.ours.peak / 1e6,
        "peer_peak_mb": None if timing.peer.peak is None else timing.peer.peak / 1e6,
    }


def line(found: dict[str, Any]) -> str:
    wanted = "" if found["wanted"] is None else f"{found['wanted']:.1f}"
    peaks = " | ".join("?" if found[key] is None else f"{found[key]:.0f}" for key in ("ours_peak_mb", "peer_peak_mb"))
    return (
        f"| {found['case']} | {found['parameters']:.1e} | {found['storage']} | {found['ours_ms']:.2f} | "
        f"{found['peer_ms']:.2f} | {found['ratio']:.2f} | {wanted} | {peaks} |"
    )


def main() -> None:
    parser = harness.parser("sim2real.steps", __doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, to check that it runs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="file for the figures")
    given = parser.parse_args()
    rows = []
    print("| case | parameters | storage | ours ms | peer ms | ratio | wanted | ours MB | peer MB |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    with team(given.threads):
        for size in QUICK_SIZES if given.quick else SIZES:
            for found in whole_steps(size, given.rounds):
                rows.append(found)
                print(line(found), flush=True)
        for storage in STORAGES:
            rows.append(between_refreshes(5_000 if given.quick else 2_000_000, storage, 4 * given.rounds))
            print(line(rows[-1]), flush=True)
        about = conditions()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    if given.out:
        given.out.write_text(json.dumps({"rows": rows, "conditions": about}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
