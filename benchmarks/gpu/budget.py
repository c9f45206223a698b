"""Stages of a run under one budget of time: each in processes of its own, none able to use up the others' time."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

TAIL = 4000  # characters of a command's output that are kept


class Command(NamedTuple):
    """One process of a stage."""

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str] = {}
    folder: str | None = None


class Stage(NamedTuple):
    """Commands that run beside each other, and what must have succeeded before."""

    name: str
    weight: float  # its share of the time that is left is weight / weights of all stages that are left
    commands: Callable[[], Sequence[Command]]
    needs: tuple[str, ...] = ()
    absent: str = ""  # why it cannot be run on this machine, such as a tool that is not there; this is no failure


class Ended(NamedTuple):
    """How a command ended; `code` is None where its time ran out."""

    name: str
    code: int | None
    seconds: float
    tail: str


class Outcome(NamedTuple):
    """How a stage ended: "passed", "failed", "out of time", "not run" for want of another, or "left out"."""

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
    """Seconds for a stage: its share of what is left, so that what one does not use goes to those after it."""
    return max(0.0, left) * stage.weight / (stage.weight + sum(other.weight for other in later))


def run_all(
    stages: Sequence[Stage],
    budget: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    run: Callable[[Sequence[Command], float], tuple[Ended, ...]] | None = None,
    after: Callable[[list[Outcome]], None] = lambda outcomes: None,
    tell: Callable[[str], None] = print,
) -> list[Outcome]:
    """Run the stages in order within the budget of seconds; a stage that fails stops only those that need it.

    `after` gets all outcomes so far after each stage, to keep them.
    """
    run = run or run_beside
    start, outcomes = clock(), list[Outcome]()
    for index, stage in enumerate(stages):
        states = {outcome.stage: outcome.state for outcome in outcomes}
        lacking = [name for name in stage.needs if states.get(name, "passed") != "passed"]
        seconds = allotment(stage, stages[index + 1 :], budget - (clock() - start))
        if stage.absent:
            outcomes.append(Outcome(stage.name, "left out", 0.0, 0.0, stage.absent))
        elif lacking or seconds < 1.0:
            reason = f"it needs {', '.join(lacking)}" if lacking else "no time is left"
            outcomes.append(Outcome(stage.name, "not run", 0.0, seconds, reason))
        else:
            tell(f"== {stage.name} (up to {seconds:.0f} s)")
            begun = clock()
            outcomes.append(_judged(stage.name, run(stage.commands(), seconds), clock() - begun, seconds))
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
    """One line, and the ends of the outputs of what did not succeed."""
    lines = [f"{outcome.stage}: {outcome.state} in {outcome.seconds:.0f} s{outcome.reason and ', ' + outcome.reason}"]
    for command in outcome.commands:
        if command.code != 0:
            lines += [f"   -- {command.name}:", *(f"   {line}" for line in command.tail.splitlines()[-25:])]
    return "\n".join(lines)


def run_beside(commands: Sequence[Command], seconds: float) -> tuple[Ended, ...]:
    """Run commands beside each other; those that have not ended in time are killed with all they started."""
    begun = time.monotonic()
    running = []
    for command in commands:
        output = tempfile.TemporaryFile()  # noqa: SIM115 closed below
        process = subprocess.Popen(
            command.argv,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=command.folder or Path(__file__).parent,
            env={**os.environ, **command.environment},
            start_new_session=True,
        )
        running.append((command, process, output))
    ends: dict[str, float] = {}
    while len(ends) < len(running) and time.monotonic() - begun < seconds:
        for command, process, _ in running:
            if command.name not in ends and process.poll() is not None:
                ends[command.name] = time.monotonic() - begun
        time.sleep(0.05)
    ended = []
    for command, process, output in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
        else:
            code = process.returncode
        with output:
            output.seek(max(0, output.seek(0, os.SEEK_END) - TAIL))
            tail = output.read().decode(errors="replace")
        ended.append(Ended(command.name, code, ends.get(command.name, time.monotonic() - begun), tail))
    return tuple(ended)
