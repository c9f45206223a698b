"""Instructions of the measure for 16 gathered rows, counted in the compiled code. Needs nvcc, no GPU.

The inner loop is the shortest loop in the disassembly with products on tensor cores. A multiprocessor starts four
instructions per clock and reads 128 bytes of shared memory: 16 rows of 128 bytes take 16 clocks to read, which hide up
to 64 instructions.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import resources

from simmst.native.cuda.launch import emulated

if emulated():
    pytest.skip("the emulator runs what a plain pytest compiles", allow_module_level=True)

WIDTHS = {"bfloat16": {16: 31, 32: 37, 64: 51, 128: 76}, "float16": {16: 31, 32: 37, 64: 51, 128: 76}}


class Loop(NamedTuple):
    """A loop of a kernel: the number of its instructions, and that of its products of 16 x 8 x 16."""

    instructions: int
    products: int


def nvdisasm() -> str:
    """Return the disassembler: the one on the path, or the one that triton brings."""
    spec = importlib.util.find_spec("triton")
    brought = Path(spec.origin).parent / "backends/nvidia/bin/nvdisasm" if spec and spec.origin else None
    return shutil.which("nvdisasm") or (str(brought) if brought and brought.exists() else "")


def loops(assembly: str) -> dict[str, list[Loop]]:
    """Return loops with products, by kernel: from the target of a backward branch to the branch."""
    found: dict[str, list[Loop]] = {}
    for part in re.split(r"^\.text\.(?=\S+:$)", assembly, flags=re.MULTILINE)[1:]:
        name, _, body = part.partition(":\n")
        labels: dict[str, int] = {}
        lines: list[str] = []
        for line in body.splitlines():
            if label := re.match(r"(\.L_x_\d+):", line):
                labels[label[1]] = len(lines)
            elif instruction := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*)", line):
                lines.append(instruction[1])
                branch = re.search(r"BRA.*`\((\.L_x_\d+)\)", instruction[1])
                if branch and branch[1] in labels:
                    inside = lines[labels[branch[1]] :]
                    products = sum("HMMA.16816" in each for each in inside)
                    if products:
                        found.setdefault(name, []).append(Loop(len(inside), products))
    return found


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Loop]]:
    if not resources.nvcc() or not nvdisasm():
        pytest.skip("there is no nvcc or no nvdisasm: put them on PATH")
    cubin = tmp_path_factory.mktemp("gather") / "select.cubin"
    source = resources.SOURCES / "cuda/prob_sparse_attention_select.cu"
    command = [resources.nvcc(), "-std=c++20", "-O3", "-I", str(resources.SOURCES), "-arch=sm_90", "-cubin"]
    subprocess.run([*command, "-o", str(cubin), str(source)], check=True, capture_output=True)
    done = subprocess.run([nvdisasm(), "-c", str(cubin)], check=True, capture_output=True, text=True)
    return loops(done.stdout)


@pytest.mark.parametrize(("entry", "width"), [(entry, width) for entry, widths in WIDTHS.items() for width in widths])
def test_sixteen_gathered_rows_take_few_instructions(measured: dict[str, list[Loop]], entry: str, width: int) -> None:
    (name,) = [one for one in measured if re.search(rf"measure_gatheredILb1ENS_\d+{entry}ELi{width}E", one)]
    inner = min(measured[name])
    turns, rest = divmod(inner.products, width // 16)  # products for a pass over 16 rows
    assert rest == 0
    assert inner.instructions / turns <= WIDTHS[entry][width], inner


def test_a_loop_is_found_between_its_label_and_its_branch() -> None:
    body = ["        /*0000*/ MOV R1, R2 ;", ".L_x_1:", "        /*0010*/ HMMA.16816.F32 R0, R1, R2, RZ ;"]
    body += ["        /*0020*/ @!P0 BRA `(.L_x_1) ;", "        /*0030*/ BRA `(.L_x_2) ;", ".L_x_2:"]
    assert loops("\n".join([".text.kernel:", *body])) == {"kernel": [Loop(2, 1)]}
