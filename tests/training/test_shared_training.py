"""Two processes that share a training give the same weights as one, and resume after they are killed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from shared_training import SOLVERS, network, train, windows

from simmst.data import StreamedWindows, Windows
from simmst.distributed import ProcessGroup
from simmst.training import RunFolder
from simmst.training.mixing import MixedWindows
from simmst.training.validation import shared_batch

SCRIPT = Path(__file__).with_name("shared_training.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distribution")


def launch(folder, *solvers, dropout=0.0):
    """Run the training in two ranks, and return the result of each."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(SCRIPT), str(folder), str(dropout), "0", *solvers],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "broadcast_buffers" not in done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def launch_to_die(folder, solver, *, dropout, dies):
    """Return the message of rank 0 when rank 1 dies; torchrun would end rank 0 before it can write it."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), str(dropout), str(dies), solver],
            env={
                **ENVIRONMENT,
                "RANK": str(number),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    _, errors = ranks[0].communicate(timeout=200)
    ranks[1].communicate(timeout=10)
    assert [rank.returncode for rank in ranks] == [1, 9], errors
    return errors


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    return folder, launch(folder, *SOLVERS)


def numbers(record):
    """Return the numbers of a line of metrics.jsonl, by name."""
    flat = {}
    for key, value in record.items():
        if key.startswith("weight_q"):
            continue  # depends on the rank's own weights
        parts = value.items() if isinstance(value, dict) else [("", value)]
        flat.update({f"{key} {name}": part for name, part in parts if not isinstance(part, str)})
    return flat


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
def test_two_ranks_give_the_weights_and_the_metrics_of_one(two, tmp_path, solver):
    folder, ranks = two
    alone = train(solver, tmp_path / "alone")
    start = network().state_dict()
    assert max(float((start[name] - tensor).abs().max()) for name, tensor in alone["model"].items()) > 0.01
    for rank in ranks:
        found = rank[solver]
        assert [found[key] for key in ("chosen", "epochs", "stopped")] == [
            alone[key] for key in ("chosen", "epochs", "stopped")
        ]
        assert found["best"] == pytest.approx(alone["best"], abs=1e-5)
        for name, tensor in alone["model"].items():
            # AdamW divides by the root of the squares, so sums in another order show in the fifth decimal.
            torch.testing.assert_close(found["model"][name], tensor, rtol=0, atol=3e-5)
    one, other = (RunFolder(path).metrics() for path in (tmp_path / "alone", folder / solver))
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        assert numbers(first) == pytest.approx(numbers(second), abs=1e-4), first["stage"]


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
def test_both_ranks_hold_the_same_to_the_last_bit(two, solver):
    first, second = (rank[solver] for rank in two[1])
    assert first["best"] == second["best"]
    for name, tensor in first["model"].items():
        assert torch.equal(tensor, second["model"][name])


@pytest.mark.slow
def test_killed_ranks_resume_to_the_numbers_of_an_unbroken_run(tmp_path):
    solver = "pretrain-finetune"
    whole = launch(tmp_path / "whole", solver, dropout=0.2)
    errors = launch_to_die(tmp_path / "broken", solver, dropout=0.2, dies=14)
    assert "RankError: another rank of this run has ended or does not answer" in errors
    run = RunFolder(tmp_path / "broken" / solver)
    assert [path.stem for path in run.checkpoints.iterdir()] == ["pretrain"]
    assert len(run.metrics()) == 2
    alone = train(solver, shutil.copytree(run.path, tmp_path / "alone"), dropout=0.2)
    resumed = launch(tmp_path / "broken", solver, dropout=0.2)
    for rank in (0, 1):
        assert resumed[rank][solver]["best"] == pytest.approx(whole[rank][solver]["best"], abs=1e-7)
        for name, tensor in whole[rank][solver]["model"].items():
            torch.testing.assert_close(resumed[rank][solver]["model"][name], tensor, rtol=0, atol=1e-7)
            torch.testing.assert_close(alone["model"][name], tensor, rtol=0, atol=1e-5)
    lines = [RunFolder(tmp_path / name / solver).metrics() for name in ("whole", "broken")]
    assert [line["stage"] for line in lines[0]] == [line["stage"] for line in lines[1]]
    for first, second in zip(*lines, strict=True):
        assert numbers(first) == pytest.approx(numbers(second), abs=1e-6)


def test_every_sample_of_a_batch_is_gathered_by_one_rank():
    city = windows(0, range(96)).dataset
    streamed = StreamedWindows([city] * 5, windows(0, range(96)).spec, per_city=6, scaler_kind="relative")
    mixed = MixedWindows(windows(0, range(72)), windows(1, range(96)), 0.3)
    for source in (windows(0, range(72)), streamed, mixed):
        for batch in source.order(7, seed=0, epoch=1, limit=30):
            parts = [source.share(batch, rank, 3) for rank in range(3)]
            assert sorted(np.concatenate(parts)) == list(range(len(batch)))
    assert set(streamed.city_of(streamed.share(np.arange(30), 1, 3))) == {1, 4}


def test_a_rank_without_a_part_gathers_what_counts_nothing():
    source: Windows = windows(0, range(72))
    batch, rows = shared_batch(source, np.array([4]), ProcessGroup(1, 2))
    assert (batch.index.tolist(), rows) == ([4], [0])
    assert batch.target.isnan().all()
    assert not source.batch([4]).target.isnan().all()
