"""CMake's decision about CUDA, on a machine whose GPUs are listed by a stand-in for nvidia-smi."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Stands in for pybind11, which is installed only for a build.
PYBIND11 = """function(pybind11_add_module name)
  list(REMOVE_ITEM ARGN NO_EXTRAS)
  add_library(${name} MODULE ${ARGN})
endfunction()
"""

if shutil.which("cmake") is None:
    pytest.skip("there is no cmake", allow_module_level=True)

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")


def configure(folder: Path, *, gpus: str, cuda: str = "AUTO", **environment: str) -> str:
    """Return CMake's line on simmst._cuda, on a machine whose GPUs have these compute capabilities, one per line."""
    (folder / "bin").mkdir()
    program = folder / "bin" / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{gpus}\nEND\n")
    program.chmod(0o755)
    (folder / "pybind11Config.cmake").write_text(PYBIND11)
    settings = {
        "SIMMST_CUDA": cuda,
        "SKBUILD_PROJECT_VERSION": "0",
        "pybind11_DIR": folder,
        "Python_EXECUTABLE": sys.executable,
    }
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    run = subprocess.run(
        ["cmake", "-S", ROOT, "-B", folder / "build", *(f"-D{name}={value}" for name, value in settings.items())],
        env={**{k: v for k, v in os.environ.items() if k != "CUDAARCHS"}, "PATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in (run.stdout + run.stderr).splitlines() if "simmst._cuda" in line or "SIMMST_CUDA" in line]
    assert len(lines) == 1, run.stdout + run.stderr
    return lines[0]


@pytest.mark.parametrize("gpus", ["No devices were found", "7.5"])
def test_without_a_gpu_cuda_is_left_out_and_one_line_says_how_to_ask_for_it(tmp_path: Path, gpus: str) -> None:
    said = configure(tmp_path, gpus=gpus)
    assert said.startswith("-- simmst._cuda is left out: nvidia-smi lists no GPU of compute capability 8.0 or newer")
    assert "SIMMST_CUDA=ON" in said
    assert "CUDAARCHS" in said


@needs_nvcc
@pytest.mark.parametrize(
    ("gpus", "environment", "architectures"),
    [("9.0\n9.0\n7.5\n8.6", {}, "90-real,86-real"), ("9.0", {"CUDAARCHS": "80-real;90-real"}, "80-real,90-real")],
)
def test_cuda_is_built_for_the_gpus_of_the_machine(tmp_path: Path, gpus, environment, architectures) -> None:
    assert configure(tmp_path, gpus=gpus, **environment) == f"-- simmst._cuda is built for: {architectures}"


@needs_nvcc
def test_a_gpu_that_nvcc_does_not_know_is_left_out(tmp_path: Path) -> None:
    assert "does not know this machine's GPU, sm_9990" in configure(tmp_path, gpus="999.0")


@needs_nvcc
def test_asked_for_cuda_is_built_for_all_architectures(tmp_path: Path) -> None:
    assert "80-real,90-real" in configure(tmp_path, gpus="", cuda="ON")


def test_anything_else_is_refused(tmp_path: Path) -> None:
    assert "SIMMST_CUDA is 'YES'; it must be AUTO, ON or OFF" in configure(tmp_path, gpus="", cuda="YES")
