"""The gate of the benchmarks: what it records, what it fails, and what it measures again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
pytest.importorskip("pytest_benchmark", reason="pytest-benchmark comes with the bench extra")

# Each side waits for a time that is read from the environment, so that a second run can be slower.
CASES = """
import os, time
from cpu.gate import Case, compare

def side(name):
    waits = [float(wait) / 1e3 for wait in os.environ[name].split()]
    def wait():
        time.sleep(waits.pop(0) if len(waits) > 1 else waits[0])
    return wait

def test_one(benchmark):
    compare(benchmark, Case("one", side("OURS"), side("PEER"), floor=2.0, bytes=8.0, rounds=2))

def test_two(benchmark):
    compare(benchmark, Case("two", lambda: time.sleep(0.001), lambda: time.sleep(0.01), floor=2.0, rounds=2))
"""


@pytest.fixture
def run(tmp_path: Path) -> Any:
    (tmp_path / "conftest.py").write_text((BENCHMARKS / "conftest.py").read_text())
    (tmp_path / "test_cases.py").write_text(CASES)

    def run(ours: str, peer: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {"OURS": ours, "PEER": peer, "SIMMST_BENCH_RECORDED": str(tmp_path / "recorded.json")}
        cleaned = {
            name: value for name, value in os.environ.items() if not name.startswith(("SIMMST_BENCH", "PYTEST_"))
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-disable-gc"]
        return subprocess.run(
            [*command, "--import-mode=importlib", *options, str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**cleaned, "PYTHONPATH": str(BENCHMARKS), **variables, **environment},
        )

    return run


def recorded(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "recorded.json").read_text())


def test_a_recording_is_merged_and_later_runs_must_reach_seventy_percent_of_it(run: Any, tmp_path: Path) -> None:
    first = run("10", "100", SIMMST_BENCH_RECORD="1")
    assert first.returncode == 0, first.stdout
    content = recorded(tmp_path)
    assert set(content) == {"cpu", "isa", "threads", "torch", "date", "commit", "ratios"}
    assert set(content["ratios"]) == {"one", "two"} or set(content["ratios"]) == {
        f"{name} on {content['threads']} threads" for name in ("one", "two")
    }
    one = next(name for name in content["ratios"] if name.startswith("one"))
    assert 7 < content["ratios"][one] < 13
    assert not list(tmp_path.glob(".recorded*"))

    same = run("10", "100")
    assert same.returncode == 0, same.stdout
    assert "70% of the recorded ratios" in same.stdout

    slower = run("20", "100", "-k", "one")  # 5 times the peer is more than the floor, and less than 70 % of 10
    assert slower.returncode == 1, slower.stdout
    assert "times as fast as the peer" in slower.stdout
    assert "(second try)" in slower.stdout

    again = run("20", "100", "-k", "one", SIMMST_BENCH_RECORD="1")
    assert again.returncode == 0, again.stdout
    merged = recorded(tmp_path)["ratios"]
    assert merged[one] < 7
    assert len(merged) == 2


def test_a_case_that_was_slow_once_is_measured_again(run: Any) -> None:
    # 3 calls to measure once (a warm-up and two rounds), then fast ones
    once = run("40 40 40 1", "20", "-k", "one")
    assert once.returncode == 0, once.stdout
    assert "(second try)" in once.stdout
    assert "limits: 70% of the floors, because there is no recorded.json" in once.stdout
    assert run("40", "20", "-k", "one").returncode == 1


def test_another_machine_is_held_to_the_floors(run: Any, tmp_path: Path) -> None:
    content = {"cpu": "another", "isa": "another", "threads": 1, "ratios": {"one": 1000.0, "one on 2 threads": 1000.0}}
    (tmp_path / "recorded.json").write_text(json.dumps(content))
    elsewhere = run("10", "40", "-k", "one")
    assert elsewhere.returncode == 0, elsewhere.stdout
    assert "limits: 70% of the floors, because recorded.json was recorded on cpu 'another'" in elsewhere.stdout
    assert "isa 'another'" in elsewhere.stdout


def test_every_case_says_what_its_figures_depend_on(run: Any, tmp_path: Path) -> None:
    assert run("10", "100", "-k", "one", f"--benchmark-json={tmp_path / 'out.json'}").returncode == 0
    info = json.loads((tmp_path / "out.json").read_text())["benchmarks"][0]["extra_info"]
    assert set(info) >= {"ratio", "floor", "ours_peak_bytes", "peer_peak_bytes", "threads", "isa", "commit"}
    assert set(info) >= {"bytes", "flops", "percent_of_roofline", "cpu", "torch"}


@pytest.mark.slow(of=("benchmarks/cpu", "benchmarks/harness", "simmst/simulation"))
def test_the_simulators_benchmark_runs(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS), "cpu.simulator", "--quick", "--out", str(tmp_path / "figures.json")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["cities"]["samples"] == 40 * 24
    assert figures["large"]["shape"] == [144, 3, 100, 100]
    assert 0 < figures["large"]["peak_gb"] < 2
    assert [line.split()[0] for line in finished.stdout.splitlines()] == ["cities", "large", "rays"]
