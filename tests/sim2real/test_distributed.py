"""Two processes give the same weights as one, and a process that dies leaves the checkpoint intact."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_problem import CASES, data, loss, module, solve

from simmst.distributed import ProcessGroup
from simmst.errors import ConfigError
from simmst.sim2real import ReweightingConfig, reweight
from simmst.sim2real.cutting_plane import CuttingPlane
from simmst.sim2real.polyhedron import Polyhedron
from simmst.sim2real.problem import Problem

SCRIPT = Path(__file__).with_name("distributed_problem.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
FEW = ["cutting-plane", "signs of cities"]

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distribution")


def launched(count, folder, *cases):
    """Run the cases in `count` ranks, and return the results of each rank, by case."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    done = subprocess.run(
        [*command, str(SCRIPT), str(folder), *cases],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{number}.pt", weights_only=False) for number in range(count)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return launched(2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """Four ranks for a model of 21 parameters, three parts of which are not empty."""
    return launched(4, tmp_path_factory.mktemp("four"), *FEW)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_give_the_weights_and_the_model_of_one(two, case):
    found, phi = solve(case)
    assert found.weights.std() > 1e-4 or case == "joint", "equal weights would compare nothing"
    for rank in two:
        torch.testing.assert_close(rank[case]["weights"], found.weights, rtol=0, atol=1e-5)
        torch.testing.assert_close(rank[case]["raw"], found.raw_weights, rtol=0, atol=1e-4)
        torch.testing.assert_close(rank[case]["phi"], phi, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_both_ranks_hold_the_same_to_the_last_bit(two, case):
    first, second = two[0][case], two[1][case]
    for name in ("weights", "raw", "phi"):
        assert torch.equal(first[name], second[name])


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_is_resumed_bit_for_bit_and_by_another_number_of_ranks(two, case):
    assert torch.equal(two[0][case]["resumed"], two[0][case]["weights"])
    alone, _ = solve(case, resume=two[0][case]["state"])
    torch.testing.assert_close(alone.weights, two[0][case]["weights"], rtol=0, atol=1e-5)
    torch.testing.assert_close(two[0][case]["resumed of one"], two[0][case]["weights"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", FEW)
def test_a_rank_without_a_part_of_the_model_gives_the_same(four, case):
    found, phi = solve(case)
    assert ProcessGroup(3, 4).block(len(phi)) == slice(21, 21)
    for rank in four:
        torch.testing.assert_close(rank[case]["weights"], found.weights, rtol=0, atol=1e-5)
        torch.testing.assert_close(rank[case]["resumed of one"], found.weights, rtol=0, atol=1e-5)
        torch.testing.assert_close(rank[case]["phi"], phi, rtol=0, atol=1e-4)
        assert torch.equal(rank[case]["phi"], four[0][case]["phi"])
        assert torch.equal(rank[case]["resumed"], rank[case]["weights"])


def test_all_ranks_name_the_sample_whose_gradient_is_not_finite(two, four):
    for rank in (*two, *four):
        simulated, real = rank["refusals"]
        assert simulated.startswith("the loss of simulated sample 23 is finite, but its gradient is not")
        assert real.startswith("the loss of real sample 3 is finite, but its gradient is not")


def test_a_rank_that_dies_ends_the_others_and_leaves_the_checkpoint(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(tmp_path), "5"],
            env={
                **ENVIRONMENT,
                "RANK": str(number),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    _, errors = ranks[0].communicate(timeout=120)
    ranks[1].communicate(timeout=10)
    assert ranks[1].returncode == 9
    assert ranks[0].returncode == 1
    assert "RankError: another rank of this run has ended or does not answer" in errors
    tensors, numbers = torch.load(tmp_path / "last.pt", weights_only=False)
    assert numbers["done"] >= 2
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "sign"])
def test_a_rank_keeps_its_columns_of_the_planes_and_no_others(storage):
    size, row = 8_000_000, torch.randn(8_000_000, generator=torch.Generator().manual_seed(0))
    row = row.sign() * 0.5 if storage == "sign" else row
    bits = {"float32": 32, "bfloat16": 16, "sign": 1}[storage]
    for number in range(4):
        processes = ProcessGroup(number, 4)
        planes = Polyhedron(3, size, max_planes=2, storage=storage, device=torch.device("cpu"), processes=processes)
        assert planes.model_rows.entries.nbytes == 2 * size * bits // 8 // 4
        planes.model_rows.push(row, planes.block)
        assert torch.equal(planes.model_rows.dense()[0], row[processes.block(size)].to(planes.model_rows.dense().dtype))


@pytest.mark.parametrize("groups", [None, torch.arange(37) % 5])
def test_the_planes_of_a_solver_hold_the_columns_of_its_rank(groups):
    simulated, real, _ = data()
    config = ReweightingConfig(derivative="forward", max_planes=3)
    for number, own in ((0, 16), (1, 5)):
        solver = CuttingPlane(Problem(module(), loss, simulated, real, config, groups, _Unconnected(number, 2)))
        planes = solver.polyhedron
        planes.anchor(solver.w, solver.phi)
        assert planes.model_rows.entries.shape == (3, own)
        assert planes.weight_rows.entries.shape == (3, len(solver.w))
        assert {name: len(part) for name, part in planes.state_dict().items() if name.startswith("anchor")} == {
            "anchor_weights": len(solver.w),
            "anchor_phi": own,
        }


def test_what_one_process_alone_can_do_is_refused():
    model, samples = torch.nn.Linear(1, 1), (torch.ones(3, 1),)
    with pytest.raises(ConfigError, match="'double-backward' is for one process"):
        reweight(
            model,
            lambda m, b: m(b[0]).squeeze(1),
            samples,
            samples,
            config=ReweightingConfig(derivative="double-backward"),
            processes=_Unconnected(0, 2),
        )


class _Unconnected(ProcessGroup):
    def broadcast(self, tensor):
        return tensor
