"""Commands that are killed by SIGKILL at random moments and started again end like one that was never killed.

SIMMST_KILLS=50 kills every command 50 times instead of once, including a training in two ranks.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import killable
import pytest
from jobs import JOBS, Job, content, epochs, finished, write_data

for package in ("pandas", "pyarrow", "matplotlib", "rich", "safetensors", "jsonargparse", "scipy"):
    pytest.importorskip(package)

KILLS = int(os.environ.get("SIMMST_KILLS", "1"))
SHORT = "SIMMST_KILLS" not in os.environ
SEED = os.environ.get("SIMMST_KILLS_SEED", "0")
HINT = "another rank of this run has ended"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = write_data(tmp_path_factory.mktemp("data"))
    killable.finish(["--version"], folder / "log")  # the server takes seconds to start
    return folder


@dataclass
class Loop:
    """The kills of one job."""

    job: Job
    data: Path
    folder: Path
    seconds: float = 60.0
    kills: int = 0
    survivors: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(f"{self.job.name} {SEED}")
        self.log = self.folder / "log"

    def whole(self) -> dict[str, str]:
        """The result of an uninterrupted run, and the time that it takes."""
        out = self.folder / "whole"
        started = time.monotonic()
        for process in self.start(out):
            process.join(600)
            assert process.exitcode == 0, self.said()
        self.seconds = time.monotonic() - started
        return content(out)

    def start(self, out: Path):
        arguments = self.job.arguments(self.data, out)
        for path in self.folder.glob("log*"):
            path.unlink()
        if self.job.ranks > 1:
            return killable.start_ranks(arguments, self.log, self.job.ranks)
        return [killable.start(arguments, self.log)]

    def killed(self, out: Path) -> bool:
        """Start the command, kill it at a random moment, and check what is left; return False if it ended before."""
        processes = self.start(out)
        before = time.monotonic()
        processes[0].join(self.random.uniform(0, self.seconds))
        alone = len(processes) > 1 and self.random.random() < 0.5 and _met(out, before)
        victims = [self.random.choice(processes)] if alone else processes
        living = [process for process in victims if process.is_alive()]
        for process in living:
            process.kill()
        for process in processes:
            process.join(60)
            assert not process.is_alive(), f"still there a minute after another rank was killed: {self.said()}"
        if not living:
            assert [process.exitcode for process in processes] == [0] * len(processes), self.said()
            return False
        self.kills += 1
        if alone:
            self.survivors += 1
            other = next(process for process in processes if process not in victims)
            assert other.exitcode == 0 or (other.exitcode == 2 and HINT in self.said()), self.said()
        return True

    def said(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("log*")))


def _met(out: Path, since: float) -> bool:
    """Return whether the ranks have connected: the first rank writes its environment after that."""
    path = out / "environment.json"
    return path.exists() and time.time() - path.stat().st_mtime < time.monotonic() - since


@pytest.mark.slow
@pytest.mark.parametrize("job", [job for job in JOBS if not SHORT or job.ranks == 1], ids=lambda job: job.name)
def test_killed_at_random_moments(job, data, tmp_path, capsys):
    loop = Loop(job, data, tmp_path)
    wanted = loop.whole()
    assert len(wanted) > 0
    runs = 0
    while loop.kills < KILLS:
        out = tmp_path / "broken"
        kept, reached = {}, {}
        while loop.kills < KILLS and loop.killed(out):
            assert content(out).keys() <= _possible(wanted, out), "a file that an uninterrupted run does not have"
            here, there = finished(out), epochs(out)
            if out.joinpath("milan.npz").exists():  # its days are no longer needed
                kept = {}
            assert kept.items() <= here.items(), "finished work was discarded or repeated"
            gone = 10**9 if finished(out) else -1  # a finished cell of a table needs no checkpoint
            assert all(there.get(stage, gone) >= epoch for stage, epoch in reached.items()), "epochs were lost"
            kept, reached = here, there
        for process in loop.start(out):  # a command that ended before it was killed finds nothing to do
            process.join(600)
            assert process.exitcode == 0, loop.said()
        assert content(out) == wanted
        assert not [path for path in out.rglob("*") if ".half-written-" in path.name]
        shutil.rmtree(out)
        runs += 1
    with capsys.disabled():
        alone = f", {loop.survivors} of them of one rank of {job.ranks}" if job.ranks > 1 else ""
        print(f"\n{job.name}: {loop.kills} kills{alone} in {runs} runs of {loop.seconds:.1f} s, ended as unbroken ones")


def _possible(wanted: dict[str, str], out: Path) -> set[str]:
    """Names that may exist: those of the result, of finished work that the result replaces, and of a table's runs."""
    return wanted.keys() | finished(out).keys() | {name for name in content(out) if name.startswith("running/")}
