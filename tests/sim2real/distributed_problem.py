"""One rank of a small problem: ``python distributed_problem.py FOLDER [STEP]``; at outer step STEP rank 1 dies.

``python distributed_problem.py FOLDER CASE...`` runs only these cases.

Under torchrun, or with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set, the ranks share the work.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import nn

from simmst.distributed import ALONE, ProcessGroup, process_group
from simmst.errors import DataError
from simmst.sim2real import ReweightingConfig, reweight

N = 37  # odd, so that ranks own different numbers of samples
CASES = {
    "cutting-plane": {"solver": "cutting-plane"},
    "batches": {"solver": "cutting-plane", "simulated_batch": 9, "real_batch": 5, "inner_steps": 2, "warmup_steps": 2},
    "cities": {"solver": "cutting-plane", "cities": True},
    "signs": {"solver": "cutting-plane", "norm": "l1", "storage": "sign"},
    "bfloat16": {"solver": "cutting-plane", "storage": "bfloat16", "refresh_every": 3},
    "signs of cities": {"solver": "qp", "cities": True, "norm": "l1", "storage": "sign"},
    "qp": {"solver": "qp"},
    "paper": {"solver": "paper", "lr_weights": 0.01, "lr_model": 0.01, "lr_multipliers": 0.01},
    "online": {"solver": "online", "weight_decay": 0.1},
    "joint": {"solver": "joint"},
}


def data():
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(N, 3, generator=generator), torch.randn(N, generator=generator)
    y = x.sum(1) * torch.where(torch.arange(N) < 15, -1.0, 1.0) + 0.1 * noise
    real, held_out = torch.randn(11, 3, generator=generator), torch.randn(7, 3, generator=generator)
    return (x, y), (real, real.sum(1)), (held_out, held_out.sum(1))


def module(seed=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def loss(model, batch):
    return (model(batch[0]).squeeze(1) - batch[1]).square() / 2


def solve(case, processes: ProcessGroup = ALONE, *, steps=40, **options):
    settings = dict(CASES[case])
    solver, cities = settings.pop("solver"), settings.pop("cities", False)
    config = ReweightingConfig(
        steps=steps, validate_every=10, checkpoint_every=10, refit_steps=5, **{"chunk": 4, **settings}
    )
    simulated, real, held_out = data()
    model = module(seed=1 + processes.rank)  # rank 0's counts
    found = reweight(
        model,
        loss,
        simulated,
        real,
        validation=held_out,
        solver=solver,
        config=config,
        groups=torch.arange(N) % 5 if cities else None,
        processes=processes,
        **options,
    )
    return found, torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def refusal(processes: ProcessGroup, spoilt: str, number: int) -> str:
    """Return the error for a sample whose loss is finite but whose gradient, of a root at 0, is NaN."""
    simulated, real, _ = data()
    inside = {"simulated": torch.ones(N), "real": torch.ones(len(real[0]))}
    inside[spoilt][number] = 0

    def rooted(model, batch):
        return loss(model, batch) + (batch[2] * model(batch[0]).squeeze(1)).square().sqrt()

    parts = (*simulated, inside["simulated"]), (*real, inside["real"])
    try:
        reweight(module(), rooted, *parts, config=ReweightingConfig(steps=4, derivative="forward"), processes=processes)
    except DataError as error:
        return str(error)
    return "nothing"


def main(folder: str, *cases: str) -> None:
    torch.set_num_threads(1)
    with process_group("cpu", timeout_seconds=60) as processes:
        if cases and cases[0].isdigit():
            die(Path(folder), int(cases[0]), processes)
            return
        results = {}
        for case in cases or CASES:
            saved = {}
            found, phi = solve(case, processes, save=lambda t, n, saved=saved: saved.update({n["done"]: (t, n)}))
            results[case] = {"weights": found.weights, "phi": phi, "raw": found.raw_weights, "state": saved.get(20)}
            state = [saved.get(20)]
            if processes.world_size > 1:
                torch.distributed.broadcast_object_list(state, 0)
            resumed, _ = solve(case, processes, resume=state[0])
            results[case]["resumed"] = resumed.weights
            solve(case, save=lambda t, n, saved=saved: saved.update({n["done"]: (t, n)}))
            of_one, _ = solve(case, processes, resume=saved[20])
            results[case]["resumed of one"] = of_one.weights
        results["refusals"] = [refusal(processes, "simulated", 23), refusal(processes, "real", 3)]
        torch.save(results, Path(folder) / f"{processes.rank}.pt")


def die(folder: Path, step: int, processes: ProcessGroup) -> None:
    def losses(model, batch):
        calls[0] += 1
        if processes.rank == 1 and calls[0] > 40 * step:
            os._exit(9)
        return loss(model, batch)

    calls = [0]
    simulated, real, _ = data()
    config = ReweightingConfig(steps=100_000, checkpoint_every=2, chunk=4)

    def save(tensors, numbers):
        torch.save((tensors, numbers), folder / "new.pt")
        (folder / "new.pt").replace(folder / "last.pt")

    reweight(module(), losses, simulated, real, config=config, save=save, processes=processes)


if __name__ == "__main__":
    main(*sys.argv[1:])
