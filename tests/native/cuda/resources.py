"""The CUDA kernels compiled by nvcc for each architecture, and the record of what they use.

    SIMMST_RECORD=1 pytest tests/native/cuda/test_resources.py              # all architectures, recorded again
    SIMMST_CUDA_ARCHITECTURES=80,90,100 pytest tests/native/cuda/test_resources.py

Without the variable the test compiles only for sm_90, to be quick.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

SOURCES = Path(__file__).resolve().parents[3] / "csrc"
RECORD = Path(__file__).with_name("resources.json")
ARCHITECTURES = ("80", "90", "100")
RECORDING = os.environ.get("SIMMST_RECORD") == "1"
HOW_TO_RECORD = "after a deliberate change: SIMMST_RECORD=1 pytest tests/native/cuda/test_resources.py"
# Every edit changes the count by a few registers; the hardware allocates them in groups of eight.
ROOM = 8
# Every warning of nvcc, ptxas and the host compiler is an error.
FLAGS = ["-std=c++20", "-O3", "-Xptxas", "-v", "-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra,-Werror"]


class Resources(NamedTuple):
    """Resources of one kernel; spills are the bytes stored, stack is in bytes."""

    registers: int
    spills: int
    stack: int


class Job(NamedTuple):
    """One compilation."""

    source: Path
    architecture: str

    def __str__(self) -> str:
        return f"{self.source.stem}-sm_{self.architecture}"

    def run(self) -> dict[str, Resources]:
        """Compile it and return its kernels, by key.

        Raises:
            RuntimeError: nvcc refuses it, or it holds no kernel.
        """
        command = [nvcc(), *FLAGS, "-I", str(SOURCES), f"-arch=sm_{self.architecture}", "-cubin", "-o", os.devnull]
        run = subprocess.run([*command, str(self.source)], capture_output=True, text=True, check=False)
        if run.returncode != 0:
            raise RuntimeError(f"{self}: nvcc ended with {run.returncode}:\n{(run.stdout + run.stderr)[-4000:]}")
        found = parse(run.stdout + run.stderr)
        if not found:
            raise RuntimeError(f"{self}: nvcc said nothing of any kernel:\n{(run.stdout + run.stderr)[-4000:]}")
        return {f"{self.source.stem}: {name}, sm_{self.architecture}": each for name, each in found.items()}


def nvcc() -> str:
    """Return the compiler: that of the variable CUDACXX, else the one on the path; empty if there is none."""
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or ""


def nvcc_version() -> str:
    text = subprocess.run([nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"V(\d+\.\d+\.\d+)", text)
    if found is None:
        raise RuntimeError(f"{nvcc()} --version names no version:\n{text}")
    return found[1]


def sources() -> list[Path]:
    """Return the files that hold kernels: all .cu files, because files with only host code are .cpp."""
    return sorted((SOURCES / "cuda").glob("*.cu"))


def architectures() -> tuple[str, ...]:
    given = os.environ.get("SIMMST_CUDA_ARCHITECTURES", ",".join(ARCHITECTURES) if RECORDING else "90")
    chosen = tuple(given.split(","))
    unknown = set(chosen) - set(ARCHITECTURES)
    if unknown:
        raise ValueError(f"SIMMST_CUDA_ARCHITECTURES names {sorted(unknown)}; it can name {', '.join(ARCHITECTURES)}")
    return chosen


_KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_\w+'\n"
    r"(?:.*\n)*?"
    r"\s*(?P<stack>\d+) bytes stack frame, (?P<spills>\d+) bytes spill stores.*\n"
    r"(?:.*\n)*?.*Used (?P<registers>\d+) registers"
)


def parse(log: str) -> dict[str, Resources]:
    """Return the report of ptxas -v, by the readable name of the kernel."""
    found = list(_KERNEL.finditer(log))
    names = _readable([each["name"] for each in found])
    result = {
        name: Resources(int(each["registers"]), int(each["spills"]), int(each["stack"]))
        for name, each in zip(names, found, strict=True)
    }
    if len(result) != len(found):
        raise RuntimeError(f"two kernels share a name: {sorted(names)}")
    return result


def _readable(mangled: list[str]) -> list[str]:
    """Return a name such as `pass_over_planes<Dense<float>, 8>`, without namespaces and parameters."""
    if not mangled:
        return []
    run = subprocess.run(["c++filt", *mangled], capture_output=True, text=True, check=True)
    names = []
    for line in run.stdout.splitlines():
        name = re.sub(r"\(anonymous namespace\)::|_GLOBAL__N__\w+::", "", line.removeprefix("void "))
        name = re.sub(r"\b(?:\w+::)+(?=\w)", "", name)
        names.append(re.sub(r"\((?!\w+\)\d).*$", "", name).strip())
    return names


class Record(NamedTuple):
    """The recorded resources, and the version of nvcc that they were recorded with."""

    nvcc: str
    kernels: dict[str, Resources]

    @classmethod
    def read(cls) -> Record:
        if not RECORD.exists():
            return cls("", {})
        content = json.loads(RECORD.read_text())
        return cls(content["nvcc"], {key: Resources(*line) for key, line in content["kernels"].items()})

    def write(self) -> None:
        """Write one line for each kernel and architecture, so that a change is easy to read."""
        lines = ",\n".join(
            f"  {json.dumps(key)}: {json.dumps(list(self.kernels[key]))}" for key in sorted(self.kernels)
        )
        head = f' "nvcc": {json.dumps(self.nvcc)},\n "columns": {json.dumps(list(Resources._fields))},\n'
        RECORD.write_text(f'{{\n{head} "kernels": {{\n{lines}\n }}\n}}\n')


def excess(found: Resources, recorded: Resources | None) -> str:
    """Return in words what a kernel uses beyond the record; empty if nothing."""
    if recorded is None:
        return "it is not in the record"
    allowed = recorded._replace(registers=recorded.registers + ROOM)
    more = [
        f"{name} {getattr(found, name)}, at most {getattr(allowed, name)}"
        for name in Resources._fields
        if getattr(found, name) > getattr(allowed, name)
    ]
    return "; ".join(more)
