"""A run that is killed at any moment resumes to the numbers of an uninterrupted run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from simmst.training import RunFolder, load_checkpoint

SCRIPT = Path(__file__).with_name("training_city.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def start(folder, solver, model):
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder), solver, model],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(folder, solver, model):
    process = start(folder, solver, model)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()


def stamp(run):
    """Return when the environment was last written; every process writes it again when it resumes the run."""
    return run.environment_path.stat().st_mtime_ns if run.environment_path.exists() else 0


def wait_for_start(process, run, before):
    """Wait for the start, because killing an interpreter that still imports torch would test nothing."""
    while process.poll() is None and stamp(run) == before:
        time.sleep(0.002)


def compare(one, other, stages):
    assert one.metrics_path.read_bytes() == other.metrics_path.read_bytes()
    assert one.summary() == other.summary()
    for stage in stages:
        first, second = (load_checkpoint(run.checkpoint_path(stage)) for run in (one, other))
        assert first.state == second.state
        assert first.tensors.keys() == second.tensors.keys()
        for name, tensor in first.tensors.items():
            assert torch.equal(tensor, second.tensors[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny", "sim-mstnet"])
def test_killed_at_random_moments(tmp_path, model):
    solver, stages = "pretrain-finetune", ("pretrain", "finetune")
    whole = RunFolder(tmp_path / "whole")
    finish(whole.path, solver, model)
    seconds = whole.metrics_path.stat().st_mtime - whole.environment_path.stat().st_mtime
    random = np.random.default_rng(0)
    broken = RunFolder(tmp_path / "broken")
    kills = 0
    for _ in range(6):
        before = stamp(broken)
        process = start(broken.path, solver, model)
        wait_for_start(process, broken, before)
        try:
            process.wait(timeout=random.uniform(0.0, 0.5) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
        if broken.finished:
            break
    assert kills >= 2
    finish(broken.path, solver, model)
    compare(whole, broken, stages)


@pytest.mark.parametrize("solver", ["real-only", "joint", "pretrain-finetune"])
def test_killed_between_any_two_writes(tmp_path, real, simulated, monkeypatch, solver):
    """The process dies at the n-th write of a file, for every n; the next process resumes."""
    from training_city import CONFIG, tiny_net

    import simmst.foundation.files as files
    import simmst.training.run_folder as run_folder
    from simmst.training import solve

    class Killed(BaseException):
        pass

    def train(folder):
        run = RunFolder.create(folder, {"solver": solver})
        result = solve(
            solver, tiny_net(), real_train=real[0], real_validation=real[1], simulated=simulated, config=CONFIG, run=run
        )
        run.finish({"chosen": result.chosen})
        return run

    whole = train(tmp_path / "whole")
    left = [0]
    original = files.os.fsync

    def fsync(handle):
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        original(handle)

    assert files.os is run_folder.os
    monkeypatch.setattr(files.os, "fsync", fsync)
    run = None
    for number in range(1, 60):
        left[0] = number
        try:
            run = train(tmp_path / "broken")
            break
        except Killed:
            continue
    left[0] = -1
    assert number > 4
    assert run is not None
    compare(whole, run, [path.stem for path in whole.checkpoints.iterdir()])
