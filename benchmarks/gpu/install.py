"""Install simmst into its own folder: from a given wheel, else built for this machine, else only its Python part.

The wheel's build tag is a hash of the compiled sources, so that a wheel built from other sources is not mistaken for
one built from these. The Python files always come from this tree.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from gpu.budget import Command, Ended, run_beside

NO_NVCC = "there is no nvcc on PATH, in $CUDA_HOME/bin or in /usr/local/cuda/bin, so the backend cuda was not built"
_UNPACKING = 15.0  # seconds that are kept for the steps after the build


class Installation(NamedTuple):
    """The target, the sources and the wheels of an installation, and the folder for the wheel that is built.

    `architecture` is a GPU's, such as "90"; without a GPU it is empty, and nothing is built for CUDA.
    """

    root: Path
    site: Path
    kept: Path
    architecture: str
    wheels: tuple[Path, ...] = ()
    watch: Callable[[], None] = lambda: None

    def run(
        self, seconds: float, keep: Callable[[dict[str, Any]], None], *, limit: float = float("inf")
    ) -> list[Ended]:
        """Install within the given seconds, of which the build takes at most `limit`.

        `keep` gets {how, problem, wheel}; without a problem the installation is complete.
        """
        end = time.monotonic() + seconds
        problems: list[str] = []
        for wheel in self.wheels:
            problem, ended = self._from_wheel(wheel, end)
            if not problem:
                keep({"how": "from a wheel", "problem": "", "wheel": wheel.name})
                return ended
            problems.append(f"{wheel.name}: {problem}")
            print(f"{wheel.name} is not used: {problem}", flush=True)
        nvcc = find_nvcc()
        if self.architecture and not nvcc:
            return self._python_alone(NO_NVCC, [], problems, keep)
        ended = run_beside([self.build(nvcc)], min(limit, end - time.monotonic() - _UNPACKING), self.watch)
        built = sorted(self.kept.glob(f"simmst-*-{self.tag()}-*.whl"), key=lambda path: path.stat().st_mtime)
        if ended[0].code != 0 or not built:
            problem = "it was not built in time" if ended[0].code is None else "it could not be built"
            return self._python_alone(problem, list(ended), problems, keep)
        problem, more = self._from_wheel(built[-1], end)
        if problem:
            return self._python_alone(problem, [*ended, *more], problems, keep)
        keep({"how": "built", "problem": "", "wheel": built[-1].name})
        return [*ended, *more]

    def tag(self) -> str:
        """Return the build tag of a wheel built from these sources for this GPU."""
        digest = hashlib.sha256()
        for path in sorted([self.root / "CMakeLists.txt", *_files(self.root / "csrc")]):
            digest.update(path.relative_to(self.root).as_posix().encode() + b"\0" + path.read_bytes())
        machine = f"sm{self.architecture}" if self.architecture else "cpu"
        return f"0{machine}_{digest.hexdigest()[:12]}"

    def build(self, nvcc: str | None) -> Command:
        """Return the build command: for this GPU only, and with the C++ kernels for only one instruction set."""
        argv = [sys.executable, "-m", "pip", "wheel", "--no-index", "--no-deps", "--no-build-isolation"]
        argv += ["-w", str(self.kept), "-C", f"build-dir={self.site.parent / 'build'}"]
        argv += ["-C", f"wheel.build-tag={self.tag()}"]
        argv += ["-C", "cmake.define.SIMMST_ISAS=portable", "-C", "cmake.define.SIMMST_CUDA_CHECKS=ON", str(self.root)]
        environment = {"CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 2), "SIMMST_CUDA": "OFF"}
        if self.architecture and nvcc:
            environment |= {"SIMMST_CUDA": "ON", "CUDACXX": nvcc, "CUDAARCHS": f"{self.architecture}-real"}
        return Command("pip wheel", argv, environment, str(self.site.parent))

    def _from_wheel(self, wheel: Path, end: float) -> tuple[str, list[Ended]]:
        """Try a wheel; return why it cannot be used, empty if it can, and the commands that were run."""
        if f"-{self.tag()}-" not in wheel.name:
            return f"other sources or another GPU: its build tag is not {self.tag()}", []
        shutil.rmtree(self.site, ignore_errors=True)
        argv = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-compile"]
        pip = Command("pip install", [*argv, "--target", str(self.site), str(wheel)], {}, str(self.site.parent))
        ended = list(run_beside([pip], end - time.monotonic(), self.watch))
        if ended[-1].code == 0:
            self._copy_python()
            modules = ["simmst._cpu", *(["simmst._cuda", "simmst._cuda_checks"] if self.architecture else [])]
            code = f"import torch, {', '.join(modules)}; print({modules[-1]}.__file__)"
            argv, environment = [sys.executable, "-c", code], {"PYTHONPATH": str(self.site)}
            check = Command("import", argv, environment, str(self.site.parent))
            ended += run_beside([check], end - time.monotonic(), self.watch)
        bad = next((one for one in ended if one.code != 0), None)
        words = bad.tail.strip().splitlines() if bad else []
        return (f"{bad.name}: {words[-1] if words else 'it took too long'}" if bad else ""), ended

    def _copy_python(self) -> None:
        """Replace the wheel's Python files, which may be older, by the tree's own."""
        package = self.site / "simmst"
        shutil.copytree(self.root / "simmst", package, dirs_exist_ok=True, ignore=_not_compiled)
        shutil.copytree(self.root / "kernels", package / "kernels", dirs_exist_ok=True, ignore=_not_compiled)

    def _python_alone(
        self, problem: str, ended: list[Ended], problems: list[str], keep: Callable[[dict[str, Any]], None]
    ) -> list[Ended]:
        shutil.rmtree(self.site, ignore_errors=True)
        self._copy_python()
        problem = "; ".join([problem, *problems])
        keep({"how": "its Python part alone", "problem": problem, "wheel": ""})
        return [*ended, Ended("the backend cuda" if self.architecture else "the kernels", 1, 0.0, problem)]


def _not_compiled(folder: str, names: list[str]) -> set[str]:
    """Return the names not to copy: compiled modules, and the link to the kernels that a checkout may have."""
    unwanted = {name for name in names if name.endswith((".so", ".pyc")) or name == "__pycache__"}
    return unwanted | {name for name in names if name == "kernels" and Path(folder, name).is_symlink()}


def _files(folder: Path) -> Iterable[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def find_nvcc() -> str | None:
    """Return the path of CUDA's compiler."""
    home = os.environ.get("CUDA_HOME")
    places = [None, *([f"{home}/bin"] if home else []), "/usr/local/cuda/bin"]  # None: PATH
    return next((found for place in places if (found := shutil.which("nvcc", path=place))), None)


def wheels_at(path: Path | None) -> tuple[Path, ...]:
    """Return the file itself, or the wheels in a folder, newest first."""
    if path is None:
        return ()
    if path.is_file():
        return (path,)
    return tuple(sorted(path.glob("simmst-*.whl"), key=lambda one: -one.stat().st_mtime))
