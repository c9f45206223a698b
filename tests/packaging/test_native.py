"""The compiled modules: what they report, and that they do not link torch's libraries."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import simmst


@pytest.fixture
def cpu():
    return importlib.import_module("simmst._cpu")


def cuda_module():
    return pytest.importorskip("simmst._cuda", reason="this installation was built without a CUDA compiler")


def test_the_cpu_module_tells_its_version_and_compiler(cpu):
    info = cpu.build_info()
    assert info["version"] == simmst.__version__
    assert info["compiler"]
    assert info["cxx_standard"] >= 202002


def test_the_highest_instruction_set_is_used_unless_one_is_named(cpu, monkeypatch):
    monkeypatch.delenv("SIMMST_CPU_ISA", raising=False)
    sets = cpu.instruction_sets()
    assert sets[0] == "portable"
    assert cpu.instruction_set() == sets[-1]
    for name in sets:
        monkeypatch.setenv("SIMMST_CPU_ISA", name)
        assert cpu.instruction_set() == name


def test_an_unknown_instruction_set_names_the_choices(cpu, monkeypatch):
    monkeypatch.setenv("SIMMST_CPU_ISA", "sse9")
    with pytest.raises(ValueError, match=r"SIMMST_CPU_ISA is 'sse9'; this machine can run: portable"):
        cpu.instruction_set()


def test_the_cuda_module_imports_without_a_gpu_and_says_why_none_can_be_used():
    found = cuda_module().devices()
    assert found["devices"] or found["problem"]


def test_the_cuda_module_names_its_architectures():
    info = cuda_module().build_info()
    assert info["architectures"]
    assert info["runtime"] >= 12000


@pytest.mark.skipif(sys.platform != "linux", reason="reads the ELF header")
@pytest.mark.parametrize("name", ["simmst._cpu", "simmst._cuda"])
def test_compiled_modules_link_neither_torch_nor_the_cuda_runtime(name):
    module = pytest.importorskip(name, reason=f"{name} is not in this installation")
    listed = subprocess.run(["ldd", module.__file__], capture_output=True, text=True, check=True).stdout
    needed = " ".join(line.split()[0] for line in listed.splitlines())  # without the addresses, which hold any letters
    assert "libc.so" in needed
    for library in ("torch", "c10", "cudart"):
        assert library not in needed


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_openmp_runtime_in_the_process(tmp_path):
    code = (
        "import torch, simmst._cpu\n"
        "print(len({line.split()[-1] for line in open('/proc/self/maps') if 'libgomp' in line or 'libomp' in line}))"
    )
    # away from the sources, which would be imported in place of the installed package
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "1"


def test_kernels_are_shipped_without_shadowing_other_packages():
    spec = importlib.util.find_spec("simmst.kernels")
    assert spec is not None
    assert spec.origin is None, "simmst.kernels must be a plain folder, without __init__.py"
    assert not (Path(__file__).resolve().parents[2] / "kernels" / "__init__.py").exists()


def test_sources_in_the_way_of_compiled_modules_are_noticed_once(tmp_path, cpu):
    sources, installed = tmp_path / "checkout" / "simmst", tmp_path / "installed" / "simmst"
    for folder in (sources, installed):
        folder.parent.mkdir()
        shutil.copytree(
            Path(simmst.__file__).parent, folder, ignore=shutil.ignore_patterns("*.so", "kernels", "__pycache__")
        )
    shutil.copy(cpu.__file__, installed)
    code = """
import sys, torch
sys.path.insert(1, sys.argv[1])
from simmst import ops
for _ in range(2):
    ops.cutting_plane_values(torch.ones(1, 2), torch.ones(1), torch.ones(2))
"""

    def said(cwd, further):
        command = [sys.executable, "-c", code, str(further)]
        environment = {
            name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")
        }
        run = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=True)
        return run.stderr.count(f"the sources in {sources}"), run.stderr.count(f"the installation in {installed}")

    assert said(sources.parent, installed.parent) == (1, 1)
    assert said(installed.parent, sources.parent) == (0, 0)
