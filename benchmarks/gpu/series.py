"""Cases one after another in a process that may die: a dead case gets a row, and another process does the rest."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpu.budget import Command, Ended, Process, wait

# A case that has given no row for this long hangs; the slowest, with cold compilations, take a third.
PATIENCE = 90.0


class Part(NamedTuple):
    """Cases that share a process while it lives, and the file for their rows: JSON lines, in order."""

    cases: Sequence[Any]
    result: Path
    command: Callable[[Sequence[Any]], Command]  # for the remaining cases
    lost: Callable[[Any, str], dict[str, Any]]  # makes a row from a case without a result and its problem


def run_in_turn(
    parts: Sequence[Part],
    seconds: float,
    *,
    patience: float = PATIENCE,
    watch: Callable[[], None] = lambda: None,
) -> tuple[Ended, ...]:
    """Give every case of every part a row within the given seconds; one without a result has a `problem`."""
    end = time.monotonic() + seconds
    ended: list[Ended] = []
    for part in parts:
        ended += _run(part, end, patience, watch)
    return tuple(ended)


def give_up(part: Part, problem: str) -> None:
    """Write a row with the problem for each case of a part."""
    with part.result.open("a") as file:
        file.writelines(json.dumps(part.lost(case, problem)) + "\n" for case in part.cases)


def _run(part: Part, end: float, patience: float, watch: Callable[[], None]) -> list[Ended]:
    left, ended = list(part.cases), list[Ended]()
    without_a_row = 0  # number of processes in succession
    while left and time.monotonic() < end:
        before, row = _rows(part.result), _Newest(part.result)

        def is_over(row: _Newest = row) -> bool:
            return time.monotonic() >= end or row.age() > patience

        (one,) = wait([Process(part.command(left))], is_over, watch)
        done = _mend(part.result) - before
        without_a_row = 0 if done else without_a_row + 1
        left = left[done:]
        if one.code is None and time.monotonic() < end:
            one = one._replace(code=-9, tail=f"{one.tail}\nkilled: no row for {patience:.0f} s")
        ended.append(one)
        if left and one.code is not None:
            give_up(part._replace(cases=left[:1]), _last_words(one))
            left = left[1:]
        if without_a_row == 2:  # so the case is not the cause
            give_up(part._replace(cases=left), f"two processes gave no row; {_last_words(one)}")
            left = []
    if left:
        give_up(part._replace(cases=left), "not reached: no time was left")
        if not ended or ended[-1].code is not None:
            ended.append(Ended(part.result.stem, None, 0.0, "no time was left"))
    watch()
    return ended


class _Newest:
    """The time since a file last grew."""

    def __init__(self, path: Path) -> None:
        self.path, self.size, self.at = path, -1, time.monotonic()

    def age(self) -> float:
        size = self.path.stat().st_size if self.path.exists() else 0
        if size != self.size:
            self.size, self.at = size, time.monotonic()
        return time.monotonic() - self.at


def _rows(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _mend(path: Path) -> int:
    """Remove half a line that a killed process has left; return the number of whole lines."""
    if path.exists():
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            path.write_bytes(content[: content.rfind(b"\n") + 1])
    return _rows(path)


def _last_words(ended: Ended) -> str:
    words = [line.strip() for line in ended.tail.splitlines() if line.strip()]
    return f"its process ended with {ended.code}: {words[-1][:300] if words else 'it said nothing'}"
