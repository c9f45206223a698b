"""The contents of the source distribution."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_source_distribution_holds_what_a_build_needs_and_nothing_made_here(tmp_path):
    pytest.importorskip("scikit_build_core", reason="scikit-build-core comes with the test extra")
    code = "import sys; from scikit_build_core.build import build_sdist; print(build_sdist(sys.argv[1]))"
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    archive = tmp_path / run.stdout.strip().splitlines()[-1]
    with tarfile.open(archive) as file:
        names = {str(Path(*Path(name).parts[1:])) for name in file.getnames()}
    needed = {
        "pyproject.toml",
        "CMakeLists.txt",
        "LICENSE",
        "README.md",
        "constraints.txt",
        "simmst/py.typed",
        "kernels/README.md",
        "kernels/configurations.json",
        "simmst/ops/measured_choice.json",
        "simmst/plotting/assets/page.html",
        "simmst/plotting/assets/page.js",
        "simmst/plotting/assets/page.css",
        "csrc/cpu/cpu.cmake",
        "csrc/cuda/cuda.cmake",
        "csrc/bindings/cpu.cpp",
        "examples/README.md",
        "examples/forecast_csv.py",
        "examples/notebooks/forecast_csv.ipynb",
    }
    assert needed <= names
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.?pp")}
    assert sources <= names
    assert not [
        name for name in names if name.startswith(("build/", "runs/", ".ci/")) or name.endswith((".so", ".npz"))
    ]
