"""The benchmarks find each other from any folder, and time the installed simmst, not the sources in the folder."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import simmst
from simmst import TrafficDataset

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = runpy.run_path(str(ROOT / "benchmarks" / "__main__.py"))["PROGRAMS"]


def run(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    # As a user starts it: with the folder on the path if Python puts it there.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose sources must not be imported."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "simmst").mkdir()
    (folder / "simmst" / "__init__.py").write_text("raise ImportError('these are the sources')\n")
    return folder


def test_programs_run_in_a_checkout_with_the_installed_package(checkout: Path) -> None:
    assert len(PROGRAMS) == 11
    for program in PROGRAMS:
        found = run("benchmarks", program, "--help", folder=checkout)
        assert found.returncode == 0, found.stderr
        assert f"usage: python benchmarks {program}" in found.stdout
    listed = run("benchmarks", folder=checkout)
    assert all(f"    {program} " in listed.stdout for program in PROGRAMS if program != "gpu.child")
    unknown = run("benchmarks", "nothing", folder=checkout)
    assert unknown.returncode == 1
    assert "there is no program 'nothing'; the programs are: gpu, sim2real.recovery" in unknown.stderr


def test_the_gate_runs_in_a_checkout_with_the_installed_package(checkout: Path, tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark", reason="pytest-benchmark comes with the bench extra")
    command = tmp_path / "pytest"  # as pip installs it: Python puts the command's folder on its path
    command.write_text("import sys, pytest\nsys.exit(pytest.main())\n")
    found = run(str(command), "benchmarks", "-q", "--collect-only", folder=checkout)
    assert found.returncode == 0, found.stdout + found.stderr
    for stem in ("prob_sparse_attention", "spatial_attention", "cutting_plane"):
        assert f"benchmarks/cpu/test_{stem}.py::" in found.stdout


def test_sources_without_compiled_modules_are_not_timed(checkout: Path) -> None:
    """`python -m pytest` puts the checkout on the path; without compiled modules there, every case would be skipped."""
    shutil.rmtree(checkout / "simmst")
    package = Path(simmst.__file__).parent
    shutil.copytree(package, checkout / "simmst", ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.pyd"))
    found = run("-m", "pytest", "benchmarks", "-q", "--collect-only", folder=checkout)
    assert found.returncode == pytest.ExitCode.USAGE_ERROR
    assert "which hold no compiled modules" in found.stderr
    assert "not 'python -m pytest benchmarks'" in found.stderr


def test_the_gate_of_every_change_is_started_so() -> None:
    assert re.search(r"^\.venv/bin/pytest benchmarks -q", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


def test_no_file_changes_the_path_of_modules() -> None:
    changing = re.compile(r"^sys\.path\b", re.MULTILINE)
    files = [path for room in ("benchmarks", "tests") for path in (ROOT / room).rglob("*.py")]
    assert [path.name for path in files if changing.search(path.read_text())] == ["test_native.py"]  # in a program


def test_whole_models_are_timed_where_a_library_is_installed(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    command = ("cpu.whole_models", "--quick", "--bound", "--rounds", "1", "--out", str(out))
    found = run(str(ROOT / "benchmarks"), *command, folder=tmp_path)
    assert found.returncode == 0, found.stderr
    rows = json.loads(out.read_text())["rows"]
    assert bool(rows) != ("neither transformers nor neuralforecast is installed" in found.stdout)
    assert all(min(row["ours_ms"], row["peer_ms"], row["without_attention"]) > 0 for row in rows)


def test_cross_checks_compare_where_the_library_is_installed(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    hours = np.arange(21 * 24)
    activity = 50 * (1.5 + np.sin(hours / 24 * 2 * np.pi))[:, None, None, None] * random.gamma(50, 0.02, (1, 1, 3, 3))
    path = tmp_path / "city.npz"
    TrafficDataset.from_arrays(activity, hours * 3600, timezone="UTC", country=None).save(path)
    out = tmp_path / "figures.json"
    command = ("baselines.cross_checks", "--data", str(path), "--models", "lstm", "--horizons", "1", "--seeds", "1")
    found = run(str(ROOT / "benchmarks"), *command, "--epochs", "1", "--out", str(out), folder=tmp_path)
    assert found.returncode == 0, found.stderr
    if importlib.util.find_spec("neuralforecast") is None:
        assert "neuralforecast is not installed" in found.stdout
        return
    rows = json.loads(out.read_text())["rows"]
    assert [row["form"] for row in rows] == [
        "ours",
        "ours, told no more",
        "theirs in our loop",
        "theirs by its own fit",
    ]
    assert all(row["mae"][0] > 0 for row in rows)
