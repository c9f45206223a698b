"""Targets for re-weighting with default settings, on problems that the settings were not tuned on."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
ABOUT = (
    "benchmarks/harness",
    "benchmarks/sim2real",
    "csrc/core",
    "csrc/cpu",
    "simmst/native/cpu",
    "simmst/ops",
    "simmst/sim2real",
)


def figures(folder, *arguments):
    out = folder / "figures.json"
    command = [sys.executable, str(BENCHMARKS), "sim2real.recovery", *map(str, arguments), "--out", str(out)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return json.loads(out.read_text())


@pytest.mark.slow(of=ABOUT)
def test_linear_problems_converge_and_recover(tmp_path):
    found = figures(tmp_path, "--curved-seeds")["linear"]
    assert len(found) == 40
    assert not any(row["diverged"] for row in found)
    for name in ("shipped", "minimiser"):
        assert sorted(row[name] for row in found)[20] >= 0.85
    assert statistics.median(row["auc"] for row in found) >= 0.80


@pytest.mark.slow(of=ABOUT)
def test_curved_problems_are_better_than_the_references(tmp_path):
    solvers = ["unweighted", "real-only", "online", "cutting-plane"]
    rows = figures(tmp_path, "--linear-seeds", "--curved-solvers", *solvers)["curved"]
    assert len(rows) == 5
    wins = {name: sum(row["cutting-plane"] < row[name] for row in rows) for name in solvers[:-1]}
    assert wins["unweighted"] == 5
    assert wins["online"] >= 4
    assert wins["real-only"] >= 4
    assert sorted(row["cutting-plane auc"] for row in rows)[2] >= 0.80


@pytest.mark.slow(of=ABOUT)
def test_the_benchmark_of_steps_runs(tmp_path):
    out = tmp_path / "figures.json"
    command = [sys.executable, str(BENCHMARKS), "sim2real.steps", "--quick", "--rounds", "1", "--threads", "1"]
    finished = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    rows = json.loads(out.read_text())["rows"]
    assert [row["case"] for row in rows].count("loop without refresh") == 3
    assert all(row["ours_ms"] > 0 and row["peer_ms"] > 0 for row in rows)
