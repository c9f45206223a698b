"""Two processes give the weights of one, and one that dies takes no checkpoint with it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks_problem import CASES, solve

from simmst.errors import ConfigError
from simmst.sim2real import ReweightingConfig, reweight
from simmst.sim2real.ranks import Ranks

SCRIPT = Path(__file__).with_name("ranks_problem.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distribution")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two ranks found, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(SCRIPT), str(folder)], env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{number}.pt", weights_only=False) for number in (0, 1)]


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_give_the_weights_and_the_model_of_one(two, case):
    found, phi = solve(case)
    assert found.weights.std() > 1e-4 or case == "joint", "otherwise this compares nothing"
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


def test_ownership_covers_every_sample_once():
    for total in (1, 2, 7, 12):
        ranks = [Ranks(number, 3) for number in range(3)]
        index = torch.arange(total)
        assert sorted(torch.cat([rank.own(index) for rank in ranks]).tolist()) == index.tolist()
        for rank in ranks:
            own = rank.own(index)
            assert rank.owned(total) == len(own)
            assert rank.place(own).tolist() == list(range(len(own)))
            assert torch.equal(rank.share(index), own)


def test_what_one_process_alone_can_do_is_refused():
    model, samples = torch.nn.Linear(1, 1), (torch.ones(3, 1),)
    with pytest.raises(ConfigError, match="'double-backward' is for one process"):
        reweight(
            model,
            lambda m, b: m(b[0]).squeeze(1),
            samples,
            samples,
            config=ReweightingConfig(derivative="double-backward"),
            ranks=_Unconnected(0, 2),
        )


class _Unconnected(Ranks):
    def first(self, tensor):
        return tensor
