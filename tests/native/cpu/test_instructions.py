"""Instructions per call of three kernels: a gate on speed that does not depend on the noise of the machine.

A kernel that takes more than its record fails. If it takes fewer, record the new number in counts.json by hand.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RECORD = json.loads(Path(__file__).with_name("counts.json").read_text(encoding="utf-8"))
PROGRAM = Path(__file__).with_name("counted.py")
TOLERANCE = 0.02
TURNS = 100

_cpu = importlib.import_module("simmst._cpu")

pytestmark = [
    pytest.mark.slow(of=("csrc/bindings", "csrc/core", "csrc/cpu", "tests/native/cpu")),
    pytest.mark.skipif(shutil.which("valgrind") is None, reason="there is no valgrind"),
    pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="a sanitizer is loaded"),
    pytest.mark.skipif(RECORD["instruction_set"] not in _cpu.instruction_sets(), reason="not of this processor"),
    pytest.mark.skipif(
        _cpu.build_info()["compiler"] != RECORD["compiler"], reason="another compiler makes other instructions"
    ),
]


def counted(kernel: str, turns: int) -> int:
    """Return the instructions of a whole process that calls a kernel `turns` times."""
    fixed = {"SIMMST_CPU_ISA": RECORD["instruction_set"], "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    run = subprocess.run(
        [
            *("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"),
            *(sys.executable, "-PS", str(PROGRAM), _cpu.__file__, kernel, str(turns)),
        ],
        env={**os.environ, **fixed},
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Collected : (\d+)", run.stderr)
    assert run.returncode == 0, run.stderr
    assert found is not None, run.stderr
    return int(found.group(1))


@pytest.mark.parametrize("kernel", sorted(RECORD["instructions"]))
def test_a_kernel_takes_no_more_instructions_than_it_did(kernel):
    recorded = RECORD["instructions"][kernel]
    found = (counted(kernel, 1 + TURNS) - counted(kernel, 1)) // TURNS
    assert found <= recorded * (1 + TOLERANCE), f"{found} instructions per call, recorded are {recorded}"
    assert found >= recorded * 0.8, f"{found} instructions per call, recorded are {recorded}: record the better number"
