"""A run that is interrupted at any moment resumes to the numbers of an uninterrupted one, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from sim2real.problems import half_square, linear
from simmst.errors import ConfigError
from simmst.sim2real import SOLVERS, ReweightingConfig, reweight

STEPS = 36
BATCHED = {"simulated_batch": 20, "real_batch": 7}
CASES = [
    *((solver, {}) for solver in SOLVERS),
    *((solver, BATCHED) for solver in SOLVERS if solver != "exact"),
    ("cutting-plane", {"storage": "bfloat16", "refresh_every": 3, "inner_steps": 2}),
    ("cutting-plane", {"storage": "sign", "norm": "l1", "start": "current", "warmup_steps": 3}),
    ("paper", {"phase1_steps": 9}),
    ("qp", {"refit_steps": 5, "weight_decay": 0.01, "share_decay": 0.1}),
]


class KilledError(Exception):
    pass


def stop():
    raise KilledError


def run(solver, settings, *, folder=None, resume=False, kill_at=None, dtype=torch.float64):
    small = linear(0, features=6, simulated=50, real=20, dtype=dtype)
    config = ReweightingConfig(steps=STEPS, checkpoint_every=7, validate_every=5, derivative="forward", **settings)

    def save(tensors, numbers):
        torch.save(tensors, folder / "tensors.pt")
        (folder / "numbers.json").write_text(json.dumps(numbers))

    def progress(done, steps, record):
        if done == kill_at:
            stop()

    state = None
    if resume:
        state = torch.load(folder / "tensors.pt"), json.loads((folder / "numbers.json").read_text())
    found = reweight(
        small.module,
        half_square,
        small.simulated,
        small.real,
        validation=tuple(part[:50] for part in small.test),
        solver=solver,
        config=config,
        save=save if folder else None,
        resume=state,
        progress=progress,
    )
    return small.module.weight.detach().clone(), found


@pytest.mark.parametrize(("solver", "settings"), CASES, ids=lambda part: part if isinstance(part, str) else str(part))
def test_resume_is_bit_exact(tmp_path, solver, settings):
    weight, whole = run(solver, settings)
    with pytest.raises(KilledError):
        run(solver, settings, folder=tmp_path, kill_at=24)  # three steps after a checkpoint
    again, resumed = run(solver, settings, folder=tmp_path, resume=True)
    assert torch.equal(weight, again)
    assert torch.equal(whole.raw_weights, resumed.raw_weights)
    assert whole.history == resumed.history
    assert (whole.scores, whole.chosen, whole.chosen_step) == (resumed.scores, resumed.chosen, resumed.chosen_step)
    assert len(whole.history) == STEPS


def test_resume_in_single_precision(tmp_path):
    weight, _ = run("cutting-plane", {}, dtype=torch.float32)
    with pytest.raises(KilledError):
        run("cutting-plane", {}, folder=tmp_path, kill_at=24, dtype=torch.float32)
    assert torch.equal(weight, run("cutting-plane", {}, folder=tmp_path, resume=True, dtype=torch.float32)[0])


def test_what_was_saved_does_not_change_afterwards():
    small, kept = linear(0, features=4, simulated=30, real=10), []

    def save(tensors, numbers):
        kept.append((tensors, numbers, {name: part.clone() for name, part in tensors.items()}, json.dumps(numbers)))

    config = ReweightingConfig(steps=30, checkpoint_every=10)
    reweight(small.module, half_square, small.simulated, small.real, config=config, save=save)
    assert len(kept) == 3
    for tensors, numbers, copies, text in kept:
        assert json.dumps(numbers) == text
        assert all(torch.equal(tensors[name], copies[name]) for name in copies)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"solver": "online"}, "solver is 'qp', wanted 'online'"),
        ({"max_planes": 4}, "max_planes is 8, wanted 4"),
        ({"simulated": 40}, "weights is 30, wanted 40"),
        ({"features": 5}, "parameters is 4, wanted 5"),
    ],
)
def test_another_run_cannot_be_resumed(change, message):
    kept = []
    small = linear(0, features=4, simulated=30, real=10)
    config = ReweightingConfig(steps=10, derivative="forward")
    reweight(
        small.module,
        half_square,
        small.simulated,
        small.real,
        solver="qp",
        config=config,
        save=lambda *s: kept.append(s),
    )
    sizes = {"features": 4, "simulated": 30, "real": 10}
    other = linear(0, **{**sizes, **{key: value for key, value in change.items() if key in sizes}})
    if "max_planes" in change:
        config = ReweightingConfig(steps=10, derivative="forward", max_planes=4)
    with pytest.raises(ConfigError, match=message):
        reweight(
            other.module,
            half_square,
            other.simulated,
            other.real,
            solver=change.get("solver", "qp"),
            config=config,
            resume=kept[-1],
        )


PROGRAM = """
import os, signal
from pathlib import Path
import test_resume
test_resume.stop = lambda: os.kill(os.getpid(), signal.SIGKILL)
test_resume.run("qp", {{}}, folder=Path({out!r}), kill_at=24)
"""


@pytest.mark.slow
def test_a_killed_process_resumes(tmp_path):
    program = PROGRAM.format(out=str(tmp_path))
    finished = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,  # not the sources, which have no compiled kernels
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        check=False,
    )
    assert finished.returncode == -signal.SIGKILL, finished.stderr.decode()
    torch.set_num_threads(1)
    weight, whole = run("qp", {})
    again, resumed = run("qp", {}, folder=tmp_path, resume=True)
    assert torch.equal(weight, again)
    assert whole.history == resumed.history
