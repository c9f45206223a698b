"""The stages of a run on a GPU share one time budget, and no stage can hide or take the share of another."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpu import budget
from gpu.budget import Command, Ended, Stage


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def staged(*takes: tuple[str, float, float, int | None], seconds: float = 100.0) -> list[tuple[str, str, float]]:
    """(stage, weight, seconds it would take, exit code) -> (stage, state, seconds allotted)."""
    clock = Clock()

    def pretended(name: str, takes: float, code: int | None) -> Callable[[float], tuple[Ended, ...]]:
        def run(limit: float) -> tuple[Ended, ...]:
            clock.now += min(takes, limit)
            return (Ended(name, None if takes > limit else code, min(takes, limit), ""),)

        return run

    stages = [Stage(name, weight, pretended(name, seconds, code)) for name, weight, seconds, code in takes]
    outcomes = budget.run_all(stages, seconds, clock=clock, tell=lambda line: None)
    assert clock.now - 100.0 <= seconds
    return [(outcome.stage, outcome.state, outcome.allotted) for outcome in outcomes]


def test_time_that_a_stage_leaves_goes_to_those_after_it() -> None:
    found = staged(("a", 1, 5, 0), ("b", 1, 10, 0), ("c", 2, 1000, 0))
    assert found == [("a", "passed", 25.0), ("b", "passed", pytest.approx(95 / 3)), ("c", "out of time", 85.0)]


def test_a_stage_that_runs_out_of_time_leaves_the_others_theirs() -> None:
    assert staged(("a", 1, 1000, 0), ("b", 1, 50, 0)) == [("a", "out of time", 50.0), ("b", "passed", 50.0)]
    assert staged(("a", 1, 1, 0), ("b", 1, 1, 0), seconds=1.0)[0][1] == "not run"


def test_a_stage_that_fails_says_why_and_stops_none_after_it() -> None:
    def running(*argv: str) -> Callable[[float], tuple[Ended, ...]]:
        return lambda seconds: budget.run_beside([Command("python", [sys.executable, *argv])], seconds)

    told, kept = [], []
    stages = [Stage("install", 1, running("-c", "print('no nvcc'); exit(7)")), Stage("other", 1, running("-c", ""))]
    stages.append(Stage("absent", 1, running("-c", "exit(1)"), absent="no such tool"))
    outcomes = budget.run_all(stages, 60, tell=told.append, after=lambda so_far: kept.append(len(so_far)))
    assert [(outcome.state, outcome.good) for outcome in outcomes] == [
        ("failed", False),
        ("passed", True),
        ("left out", True),
    ]
    assert outcomes[0].commands[0].code == 7
    assert outcomes[2].reason == "no such tool"
    assert any("no nvcc" in line for line in told)
    assert kept == [1, 2, 3]
    assert json.dumps([outcome.as_dict() for outcome in outcomes])


def test_a_command_out_of_time_is_killed_with_what_it_started(tmp_path: Path) -> None:
    grandchild = "import sys, time; time.sleep(4); open(sys.argv[1], 'w')"
    child = "import subprocess, sys; print('begun', flush=True); "
    child += f"subprocess.run([sys.executable, '-c', {grandchild!r}, {str(tmp_path / 'late')!r}])"
    quick = Command("quick", [sys.executable, "-c", "print('done')"])
    ended = budget.run_beside([Command("slow", [sys.executable, "-c", child]), quick], 2.0)
    assert [(one.name, one.code) for one in ended] == [("slow", None), ("quick", 0)]
    assert "begun" in ended[0].tail
    assert ended[1].tail == "done\n"
    assert ended[0].seconds < 4
    budget.run_beside([Command("wait", [sys.executable, "-c", "import time; time.sleep(3)"])], 10)
    assert not (tmp_path / "late").exists()
