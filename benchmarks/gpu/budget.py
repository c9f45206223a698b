"""The stages of a run under one time budget: each in its own processes, and none can use up the others' time."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

TAIL = 4000  # characters that are kept of a command's output
_POLL = 0.05


class Command(NamedTuple):
    """One process of a stage."""

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str] = {}
    folder: str | None = None


class Ended(NamedTuple):
    """The end of a command; `code` is None if its time ran out."""

    name: str
    code: int | None
    seconds: float
    tail: str


class Stage(NamedTuple):
    """Work within a share of the time; it runs even if earlier stages failed."""

    name: str
    weight: float  # its share of the remaining time is weight / weights of all remaining stages
    run: Callable[[float], Sequence[Ended]]  # gets the seconds it may take
    absent: str = ""  # why this machine cannot run it, such as a missing tool; this is no failure


class Outcome(NamedTuple):
    """The end of a stage: "passed", "failed", "out of time", "not run" for lack of time, or "left out"."""

    stage: str
    state: str
    seconds: float
    allotted: float
    reason: str
    commands: tuple[Ended, ...] = ()

    @property
    def good(self) -> bool:
        return self.state in ("passed", "left out")

    def as_dict(self) -> dict[str, Any]:
        return {**self._asdict(), "commands": [command._asdict() for command in self.commands]}


def allotment(stage: Stage, later: Sequence[Stage], left: float) -> float:
    """Return the seconds for a stage: its share of the remaining time. Later stages get what it does not use."""
    return max(0.0, left) * stage.weight / (stage.weight + sum(other.weight for other in later))


def run_all(
    stages: Sequence[Stage],
    budget: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    after: Callable[[list[Outcome]], None] = lambda outcomes: None,
    tell: Callable[[str], None] = print,
) -> list[Outcome]:
    """Run the stages in order within the budget, in seconds; a failed stage does not stop the others.

    `after` gets all outcomes so far after each stage, so that they can be kept.
    """
    start, outcomes = clock(), list[Outcome]()
    for index, stage in enumerate(stages):
        seconds = allotment(stage, stages[index + 1 :], budget - (clock() - start))
        if stage.absent:
            outcomes.append(Outcome(stage.name, "left out", 0.0, 0.0, stage.absent))
        elif seconds < 1.0:
            outcomes.append(Outcome(stage.name, "not run", 0.0, seconds, "no time is left"))
        else:
            tell(f"== {stage.name} (up to {seconds:.0f} s)")
            begun = clock()
            outcomes.append(_judged(stage.name, tuple(stage.run(seconds)), clock() - begun, seconds))
        tell(describe(outcomes[-1]))
        after(outcomes)
    return outcomes


def _judged(name: str, ended: tuple[Ended, ...], seconds: float, allotted: float) -> Outcome:
    late = [command.name for command in ended if command.code is None]
    bad = [f"{command.name} ({command.code})" for command in ended if command.code]
    if bad:
        state, reason = "failed", f"failed: {', '.join(bad)}" + (f"; out of time: {', '.join(late)}" if late else "")
    elif late:
        state, reason = "out of time", f"out of time after {allotted:.0f} s: {', '.join(late)}"
    else:
        state, reason = ("passed", "") if ended else ("failed", "nothing was run")
    return Outcome(name, state, seconds, allotted, reason, ended)


def describe(outcome: Outcome) -> str:
    """Return one line, and the end of the output of every command that did not succeed."""
    lines = [f"{outcome.stage}: {outcome.state} in {outcome.seconds:.0f} s{outcome.reason and ', ' + outcome.reason}"]
    for command in outcome.commands:
        if command.code != 0:
            lines += [f"   -- {command.name}:", *(f"   {line}" for line in command.tail.splitlines()[-25:])]
    return "\n".join(lines)


_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def _in_a_group() -> None:
    """Start a process group but stay in our session, so that whoever ends the session ends this process too.

    On Linux, it is also killed when its parent dies.
    """
    os.setpgrp()
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Process:
    """A running command in its own process group, so that it is killed with everything it started."""

    def __init__(self, command: Command) -> None:
        self.name, self.begun = command.name, time.monotonic()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 closed by end()
        self._process = subprocess.Popen(
            command.argv,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=command.folder or Path(__file__).parent,
            env={**os.environ, **command.environment},
            preexec_fn=_in_a_group,
        )
        self.seconds: float | None = None

    def has_ended(self) -> bool:
        if self.seconds is None and self._process.poll() is not None:
            self.seconds = time.monotonic() - self.begun
        return self.seconds is not None

    def end(self) -> Ended:
        """Kill the process if it has not ended, and return how it ended."""
        code = self._process.returncode if self.has_ended() else None
        if code is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        with self._output:
            self._output.seek(max(0, self._output.seek(0, os.SEEK_END) - TAIL))
            tail = self._output.read().decode(errors="replace")
        return Ended(self.name, code, self.seconds or time.monotonic() - self.begun, tail)


def wait(
    processes: Iterable[Process], until: Callable[[], bool], watch: Callable[[], None] = lambda: None
) -> tuple[Ended, ...]:
    """Wait until all processes have ended or `until` is true, then kill the rest. `watch` is called meanwhile."""
    processes = list(processes)
    try:
        while [process for process in processes if not process.has_ended()] and not until():  # polls each
            watch()
            time.sleep(_POLL)
    finally:  # also when this process is told to end
        ended = tuple(process.end() for process in processes)
    watch()
    return ended


def run_beside(
    commands: Sequence[Command], seconds: float, watch: Callable[[], None] = lambda: None
) -> tuple[Ended, ...]:
    """Run commands in parallel; those that have not ended in time are killed with everything they started."""
    end = time.monotonic() + seconds
    return wait([Process(command) for command in commands], lambda: time.monotonic() >= end, watch)
