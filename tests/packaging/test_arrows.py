"""The rooms import in one direction only; the contracts are in pyproject.toml."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources in the layout of the wheel, with kernels/ as simmst.kernels, marked for the linter."""
    root = tmp_path_factory.mktemp("installed")
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "kernels")
    shutil.copytree(ROOT / "simmst", root / "simmst", ignore=ignored)
    shutil.copytree(ROOT / "kernels", root / "simmst" / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "simmst" / "kernels" / "__init__.py").touch()
    return root


def run_python(installed: Path, code: str, *arguments: str) -> str:
    pytest.importorskip("importlinter", reason="import-linter comes with the test extra")
    command = [sys.executable, "-c", code, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    run = subprocess.run(command, cwd=installed, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_imports_point_one_way(installed: Path):
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    assert "0 broken" in run_python(installed, code, "--no-cache", "--config", str(ROOT / "pyproject.toml"))


def test_the_linter_sees_the_kernels(installed: Path):
    code = (
        "import grimp; graph = grimp.build_graph('simmst', cache_dir=None); "
        "print(graph.find_modules_directly_imported_by('simmst.kernels.prob_sparse_attention'))"
    )
    assert "simmst.core.philox" in run_python(installed, code)


def test_no_module_imports_itself_by_way_of_others(installed: Path):
    """Checked module by module, with imports inside functions but without those for type checkers alone."""
    code = """
import graphlib, grimp
graph = grimp.build_graph('simmst', cache_dir=None, exclude_type_checking_imports=True)
order = graphlib.TopologicalSorter({one: graph.find_modules_directly_imported_by(one) for one in graph.modules})
try:
    order.prepare()
except graphlib.CycleError as error:
    print(' <- '.join(error.args[1]))
"""
    assert run_python(installed, code) == ""
    ground = installed / "simmst" / "errors.py"
    kept = ground.read_text()
    ground.write_text(f"{kept}\ndef late():\n    import simmst.data.dataset\n")
    assert "simmst.errors" in run_python(installed, code)
    ground.write_text(kept)
