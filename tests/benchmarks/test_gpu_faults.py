"""`python benchmarks gpu` with many faults: every other figure is produced in time, whenever the run is cut off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gpu import cases

ROOT = Path(__file__).resolve().parents[2]
ONLY = "spatial forward,"
ABOUT = (
    "benchmarks/gpu",
    "benchmarks/harness",
    "csrc",
    "kernels",
    "simmst/core",
    "simmst/native",
    "simmst/ops",
    "simmst/reference",
)

# Read by every process of the run: pip never ends, the backend cpu raises, and with 225
# positions it ends its process.
FAULTS = """
import importlib.abc, importlib.util, os, sys, time

if "pip" in sys.orig_argv:
    time.sleep(600)

class Spoil(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "gpu.spatial_attention":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (load(module), spoil(module))
        return spec

def spoil(module):
    layer = module.layer
    def spoilt(device, scale, positions, **options):
        if positions == 225 and "cpu" == sys.argv[sys.argv.index("--backends") + 1]:
            os.abort()
        work = layer(device, scale, positions, **options)
        def complaint(backend):
            if backend == "cpu":
                raise MemoryError("planted")
            return work.complaint(backend)
        return work._replace(complaint=complaint)
    module.layer = spoilt

sys.meta_path.insert(0, Spoil())
"""


def start(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    worlds = ("TRITON_INTERPRET", "SIMMST_CUDA_EMULATION", "SIMMST_BACKEND", "OUT", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in worlds}
    command = [sys.executable, str(ROOT / "benchmarks"), "gpu", "--dry-run", "--only", ONLY, *arguments]
    return subprocess.Popen(
        [*command, "--out", str(tmp_path / "gpu.json")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**environment, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


def result(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "gpu.json").read_text())


@pytest.mark.slow(of=ABOUT)  # five processes import torch
def test_a_slow_install_a_backend_that_raises_and_a_case_that_dies_leave_every_other_figure(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(FAULTS)
    begun = time.monotonic()
    stages = ("--stages", "install", "cpu", "reference", "--backends", "cpu", "reference")
    process = start(tmp_path, *stages, "--build-seconds", "2", "--budget", "240")
    said, _ = process.communicate(timeout=300)
    assert time.monotonic() - begun < 250
    assert process.returncode == 1, said
    found = result(tmp_path)
    assert found["installed"]["how"] == "its Python part alone", said
    assert found["installed"]["problem"] == "it was not built in time"
    names = {case.size: case.name for case in cases.chosen(ONLY)}
    problems = {(row["case"], row["backend"]): row["problem"] for row in found["rows"]}
    died = problems.pop((names[225], "cpu"))
    assert died.startswith("its process ended with -6:")
    assert problems == {
        (names[121], "cpu"): "MemoryError: planted",
        (names[400], "cpu"): "MemoryError: planted",
        **{(name, "reference"): "" for name in names.values()},
    }
    assert all(row["ratio"] > 0 for row in found["rows"] if not row["problem"])
    assert [stage["state"] for stage in found["stages"]] == ["failed", "failed", "passed"]


@pytest.mark.slow(of=ABOUT)  # three processes import torch
def test_a_run_that_is_killed_has_left_what_it_told(tmp_path: Path) -> None:
    process = start(tmp_path, "--stages", "reference", "--backends", "reference")
    assert process.stdout is not None
    told = next(line for line in process.stdout if line.startswith("spatial forward"))
    process.send_signal(signal.SIGKILL)
    process.wait()
    rows = result(tmp_path)["rows"]
    assert rows
    assert told.startswith(rows[0]["case"])
    assert rows[0]["ratio"] > 0
