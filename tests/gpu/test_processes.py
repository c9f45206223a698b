"""Without a GPU, the suite of this folder runs in Triton's interpreter and in the CUDA emulator, in separate processes.

    TRITON_INTERPRET=1 pytest tests/gpu
    SIMMST_CUDA_EMULATION=1 pytest tests/gpu tests/native/cuda

are the commands that it starts; run them by hand to see more, or to select with `-k`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from simmst.ops.backends import GPU_OPERATORS

FOLDER = Path(__file__).parent
# Tests of the CUDA kernels alone.
ALONE = {"SIMMST_CUDA_EMULATION": [str(FOLDER.parent / "native" / "cuda")]}
WORLDS = ("TRITON_INTERPRET", "SIMMST_CUDA_EMULATION")
NEEDS = {"TRITON_INTERPRET": "triton", "SIMMST_CUDA_EMULATION": "simmst._cuda_emulated"}
MISSING = {
    "TRITON_INTERPRET": "the package triton is not installed; install it with: pip install triton",
    "SIMMST_CUDA_EMULATION": "this build has no simmst._cuda_emulated; build one with: "
    "pip install -C cmake.define.SIMMST_CUDA_EMULATION=ON .",
}
ABOUT = (
    "csrc",
    "kernels",
    "simmst/core",
    "simmst/native",
    "simmst/nn",
    "simmst/ops",
    "simmst/reference",
    "tests/gpu",
    "tests/native/cuda",
)
# Each operator has at least these many tests in its file; a run in which fewer pass has lost some.
AT_LEAST = 10
MINUTES = 15


def _operators(world: str) -> list[str]:
    """Return what must be tested: every operator for which that world has kernels."""
    if world == "TRITON_INTERPRET":
        return list(GPU_OPERATORS)
    return list(importlib.import_module(NEEDS[world]).operators())


def _run(world: str, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in (*WORLDS, "SIMMST_BACKEND")}
    folders = [str(FOLDER), *ALONE.get(world, [])]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, *folders]
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


def passed(report: Path) -> Counter[str]:
    """Return how many tests passed, by the stem of their file, from pytest's report in XML."""
    cases = ElementTree.parse(report).iter("testcase")
    return Counter(case.attrib["classname"].rpartition(".")[2] for case in cases if len(case) == 0)


@pytest.mark.slow(of=ABOUT)
@pytest.mark.skipif(any(os.environ.get(world) == "1" for world in WORLDS), reason="this is already such a process")
@pytest.mark.parametrize("world", WORLDS)
def test_the_suite_passes_without_a_gpu(world: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(NEEDS[world]) is None:
        pytest.skip(MISSING[world])
    report = tmp_path / "report.xml"
    run = _run(world, f"--ignore={__file__}", f"--junitxml={report}")
    tail = "\n".join(run.stdout.splitlines()[-60:])
    assert run.returncode == 0, f"{world}=1 pytest tests/gpu ended with {run.returncode}:\n{tail}"
    found, operators = passed(report), _operators(world)
    assert operators, f"{NEEDS[world]} has no kernel"
    short = {operator: found[f"test_{operator}"] for operator in operators if found[f"test_{operator}"] < AT_LEAST}
    assert not short, f"{world}: at least {AT_LEAST} tests of an operator must pass, but {short}:\n{tail}"


def test_a_plain_process_collects_nothing_else_here() -> None:
    if torch.cuda.is_available():
        pytest.skip("on a GPU the suite itself runs")
    run = _run("SIMMST_NO_WORLD", "--collect-only")
    collected = {line.partition("::")[0] for line in run.stdout.splitlines() if "::" in line}
    assert {Path(name).name for name in collected} == {Path(__file__).name}, run.stdout[-2000:]


def test_tests_that_pass_are_counted_by_file(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\ndef test_one(): pass\ndef test_two(): pytest.skip('no')\ndef test_three(): assert False\n"
    )
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", str(tmp_path)]
    assert subprocess.run(command, capture_output=True, check=False, cwd=tmp_path).returncode == 1
    assert passed(report) == {"test_some": 1}
