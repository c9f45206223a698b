"""Cases of the GPU benchmarks in processes that die, hang or never start: no case costs another its figure."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from gpu import series
from gpu.budget import Command
from gpu.series import Part

# Writes a row for each named case; some names make it fail.
CHILD = """
import json, os, sys, time
path, *cases = sys.argv[1:]
for case in cases:
    if case == "dies":
        print("an illegal memory access was encountered", flush=True)
        os.abort()
    if case == "hangs":
        time.sleep(60)
    if case == "half":
        open(path, "a").write('{"case": "ha')
        os._exit(3)
    if case == "never":
        sys.exit("there is no torch here")
    with open(path, "a") as file:
        file.write(json.dumps({"case": case, "problem": ""}) + "\\n")
"""


def part(path: Path, *cases: str, started: list[list[str]] | None = None) -> Part:
    def command(left: Any) -> Command:
        if started is not None:
            started.append(list(left))
        return Command(path.stem, [sys.executable, "-S", "-c", CHILD, str(path), *left])

    return Part(cases, path, command, lambda case, problem: {"case": case, "problem": problem})


def rows(path: Path) -> dict[str, str]:
    return {row["case"]: row["problem"] for row in map(json.loads, path.read_text().splitlines())}


def test_a_process_that_dies_on_a_case_is_followed_by_one_for_those_after_it(tmp_path: Path) -> None:
    started: list[list[str]] = []
    path, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    parts = [part(path, "a", "dies", "b", "half", "c", started=started), part(other, "d")]
    ended = series.run_in_turn(parts, 30.0)
    found = rows(path)
    assert list(found) == ["a", "dies", "b", "half", "c"]
    assert found["dies"] == "its process ended with -6: an illegal memory access was encountered"
    assert found["half"] == "its process ended with 3: it said nothing"
    assert [found[case] for case in ("a", "b", "c")] == [""] * 3
    assert started == [["a", "dies", "b", "half", "c"], ["b", "half", "c"], ["c"]]
    assert [one.code for one in ended] == [-6, 3, 0, 0]
    assert rows(other) == {"d": ""}


def test_a_case_that_hangs_is_killed_and_the_others_go_on(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    ended = series.run_in_turn([part(path, "a", "hangs", "b")], 30.0, patience=1.0)
    found = rows(path)
    assert found["hangs"] == "its process ended with -9: killed: no row for 1 s"
    assert (found["a"], found["b"]) == ("", "")
    assert [one.code for one in ended] == [-9, 0]


def test_what_no_time_is_left_for_is_said(tmp_path: Path) -> None:
    path, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    begun = time.monotonic()
    ended = series.run_in_turn([part(path, "a", "hangs", "b"), part(other, "c")], 1.5)
    assert time.monotonic() - begun < 10.0
    late = "not reached: no time was left"
    assert rows(path) == {"a": "", "hangs": late, "b": late}
    assert rows(other) == {"c": late}
    assert [one.code for one in ended] == [None, None]


def test_processes_that_never_begin_are_not_started_for_every_case(tmp_path: Path) -> None:
    started: list[list[str]] = []
    path = tmp_path / "one.jsonl"
    series.run_in_turn([part(path, *["never"] * 20, "a", started=started)], 30.0)
    assert len(started) == 2
    assert len(path.read_text().splitlines()) == 21
    assert rows(path)["a"] == "two processes gave no row; its process ended with 1: there is no torch here"


def test_rows_are_told_while_the_process_still_runs(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    seen: list[set[str]] = []
    series.run_in_turn(
        [part(path, "a", "hangs")], 2.0, watch=lambda: seen.append(set(rows(path)) if path.exists() else set())
    )
    assert {"a"} in seen
    assert seen[-1] == {"a", "hangs"}
