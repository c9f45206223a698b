"""The contents of a wheel, what it needs from a system, and that the source distribution builds the same wheel.

The wheel is the installation, or the file that SIMMST_WHEEL names (``.ci/wheel`` builds and audits one).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import simmst

ROOT = Path(__file__).resolve().parents[2]
MOST_BYTES = 15_000_000  # without simmst._cuda
# Libraries of every Linux, and the OpenMP runtime that torch brings.
LIBRARIES = re.compile(r"lib(c|m|pthread|dl|rt|gcc_s|stdc\+\+|gomp)\.so\.\d+|ld-linux[\w-]*\.so\.\d+")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> dict[str, Path]:
    """The files of the wheel, by their names in it."""
    if "SIMMST_WHEEL" in os.environ:
        folder = tmp_path_factory.mktemp("wheel")
        with zipfile.ZipFile(os.environ["SIMMST_WHEEL"]) as archive:
            archive.extractall(folder)
        return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    listed = importlib.metadata.files("simmst") or []
    found = {str(file): Path(str(file.locate())) for file in listed if "__pycache__" not in str(file)}
    if found.get("simmst/__init__.py", Path()).resolve() != Path(simmst.__file__).resolve():
        pytest.skip("simmst is not installed from a wheel here")
    return found


def modules(wheel: dict[str, Path]) -> dict[str, Path]:
    return {name: path for name, path in wheel.items() if name.endswith(".so")}


def test_nothing_but_the_package_is_in_it(wheel):
    strange = [name for name in wheel if not re.match(r"(simmst/|simmst-[\w.+]+\.dist-info/|.*bin/simmst$)", name)]
    assert not strange
    assert {Path(name).suffix for name in wheel if name.startswith("simmst/")} <= {
        *(".py", ".so", ".json", ".safetensors", ".html", ".js", ".css", ".typed", ".md"),
    }
    stems = {Path(name).name.split(".")[0] for name in modules(wheel)}
    assert {"_cpu"} <= stems <= {"_cpu", "_cuda", "_cuda_emulated"}


@pytest.mark.skipif(shutil.which("readelf") is None, reason="there is no readelf")
def test_compiled_modules_need_the_system_and_libgomp_alone(wheel):
    for name, path in modules(wheel).items():
        text = subprocess.run(["readelf", "-dW", path], capture_output=True, text=True, check=True).stdout
        needed = re.findall(r"\(NEEDED\)\s+Shared library: \[([^\]]+)\]", text)
        assert "libc.so.6" in needed
        assert not [library for library in needed if not LIBRARIES.fullmatch(library)], name
        assert "(TEXTREL)" not in text
    assert not [name for name in wheel if ".libs/" in name], "a library was copied into the wheel"


def test_it_is_small(wheel):
    ours = [path for name, path in wheel.items() if not Path(name).name.startswith("_cuda")]
    if "SIMMST_WHEEL" in os.environ:
        assert Path(os.environ["SIMMST_WHEEL"]).stat().st_size < MOST_BYTES or any("_cuda" in name for name in wheel)
    assert sum(path.stat().st_size for path in ours) < 2 * MOST_BYTES, "unpacked"


def test_metadata_names_what_is_supported(wheel):
    text = next(path for name, path in wheel.items() if name.endswith(".dist-info/METADATA")).read_text()
    head = text.partition("\n\n")[0]
    assert re.search(r"^Requires-Python: >=3\.10$", head, re.MULTILINE)
    assert "Operating System :: POSIX :: Linux" in head
    assert "Windows" not in head
    assert "MacOS" not in head
    assert re.search(r"^License-File: .*LICENSE$", head, re.MULTILINE)


def test_the_source_distribution_gives_the_same_wheel(wheel, tmp_path):
    """Every file of the package is in both, equal to the last byte, and the compiled modules have the same sources."""
    pytest.importorskip("scikit_build_core", reason="scikit-build-core comes with the test extra")
    code = "import sys; from scikit_build_core.build import build_sdist; print(build_sdist(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path)]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    with tarfile.open(tmp_path / made.stdout.strip().splitlines()[-1]) as archive:
        sources = {
            Path(*Path(member.name).parts[1:]).as_posix(): archive.extractfile(member).read()  # type: ignore[union-attr]
            for member in archive.getmembers()
            if member.isfile()
        }
    shipped = {
        re.sub(r"^kernels/", "simmst/kernels/", name): hashlib.sha256(content).hexdigest()
        for name, content in sources.items()
        if name.startswith(("simmst/", "kernels/"))
    }
    installed = {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in wheel.items()
        if name.startswith("simmst/") and not name.endswith(".so")
    }
    assert installed == shipped
    for path in [*(ROOT / "csrc").rglob("*"), ROOT / "CMakeLists.txt", ROOT / "pyproject.toml"]:
        if path.is_file():
            assert sources[path.relative_to(ROOT).as_posix()] == path.read_bytes()
