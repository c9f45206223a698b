"""Without a GPU: the suite of this folder in Triton's interpreter and in the CUDA emulator, each in its own process.

    TRITON_INTERPRET=1 pytest tests/gpu
    SIMMST_CUDA_EMULATION=1 pytest tests/gpu

are what it starts; run them by hand to see more, or to choose with `-k`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent
WORLDS = ("TRITON_INTERPRET", "SIMMST_CUDA_EMULATION")
NEEDS = {"TRITON_INTERPRET": "triton", "SIMMST_CUDA_EMULATION": "simmst._cuda_emulated"}
MISSING = {
    "TRITON_INTERPRET": "the package triton is not installed; install it with: pip install triton",
    "SIMMST_CUDA_EMULATION": "this build has no simmst._cuda_emulated; build one with: "
    "pip install -C cmake.define.SIMMST_CUDA_EMULATION=ON .",
}
# Each file holds at least these many tests; a run with fewer has lost some.
AT_LEAST_EACH = 10
MINUTES = 15


def _files() -> list[str]:
    return sorted(path.name for path in FOLDER.glob("test_*.py") if path.name != Path(__file__).name)


def _run(world: str, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in (*WORLDS, "SIMMST_BACKEND")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, str(FOLDER)]
    return subprocess.run(
        command,
        cwd=FOLDER,  # from the root, the sources would be imported in place of the installed package
        env={**environment, world: "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60 * MINUTES,
    )


def counts(output: str) -> dict[str, int]:
    """Read pytest's last line: {"passed": 12, "skipped": 3}.

    Example:
        >>> counts("2 failed, 31 passed, 4 skipped in 5.10s")
        {'failed': 2, 'passed': 31, 'skipped': 4}
    """
    lines = [line for line in output.splitlines() if re.search(r" in \d+[\d.:]*s", line)]
    found = re.findall(r"(\d+) ([a-z]+)", lines[-1].partition(" in ")[0]) if lines else []
    return {word: int(count) for count, word in found}


@pytest.mark.slow
@pytest.mark.skipif(any(os.environ.get(world) == "1" for world in WORLDS), reason="this is such a process")
@pytest.mark.parametrize("world", WORLDS)
def test_the_suite_passes_without_a_gpu(world: str) -> None:
    if importlib.util.find_spec(NEEDS[world]) is None:
        pytest.skip(MISSING[world])
    run = _run(world, f"--ignore={__file__}")
    tail = "\n".join(run.stdout.splitlines()[-60:])
    assert run.returncode == 0, f"{world}=1 pytest tests/gpu ended with {run.returncode}:\n{tail}"
    found = counts(run.stdout)
    wanted = AT_LEAST_EACH * len(_files())
    assert found.get("passed", 0) >= wanted > 0, f"{world}: {found}; at least {wanted} tests must pass:\n{tail}"


def test_a_plain_process_collects_nothing_else_here() -> None:
    if torch.cuda.is_available():
        pytest.skip("on a GPU the suite itself runs")
    run = _run("SIMMST_NO_WORLD", "--collect-only")
    collected = {line.partition("::")[0] for line in run.stdout.splitlines() if "::" in line}
    assert {Path(name).name for name in collected} == {Path(__file__).name}, run.stdout[-2000:]


def test_the_last_line_is_read() -> None:
    assert counts("...F\n=== 1 failed, 2 passed, 3 skipped, 1 warning in 12.3s (0:00:12) ===") == {
        "failed": 1,
        "passed": 2,
        "skipped": 3,
        "warning": 1,
    }
    assert counts("Traceback") == {}
