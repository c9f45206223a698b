"""A probe of Sionna RT in another process, because with a wrong LLVM it ends the interpreter."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from simmst.errors import MissingExtraError, RayTracingError

_LIBRARY = "DRJIT_LIBLLVM_PATH"
# The version known to work first, then those that may; Dr.Jit refuses 14, and 15 and 16 can abort the process.
_LLVM = ("libLLVM.so.19.1", "libLLVM-19.so", "libLLVM.so.20.1", "libLLVM-18.so", "libLLVM.so.18.1", "libLLVM-17.so")
_FOLDERS = ("/usr/lib/*-linux-gnu", "/usr/lib64", "/usr/lib/llvm-*/lib", "/usr/local/lib")
_PROBE = """
import drjit, mitsuba, sionna.rt
total = drjit.sum(drjit.arange(mitsuba.Float, 5))
assert total[0] == 10.0, total
"""
_ADVICE = (
    "install LLVM 19 (Debian and Ubuntu: apt-get install libllvm19) and, if it is in an unusual folder, set "
    f"{_LIBRARY} to its file; or use the statistical radio"
)


@functools.cache
def require_ray_tracing() -> None:
    """Check, once per process, that ``import sionna.rt`` is safe, and set ``DRJIT_LIBLLVM_PATH`` if it is not set.

    Raises:
        MissingExtraError: the extra ``raytracing`` is not installed.
        RayTracingError: Sionna RT is installed but does not run; the message holds its error and the remedy.
    """
    if importlib.util.find_spec("sionna") is None or importlib.util.find_spec("mitsuba") is None:
        raise MissingExtraError(
            "ray tracing needs sionna-rt, which is not installed; install it with: pip install 'simmst[raytracing]'"
        )
    library = os.environ.get(_LIBRARY) or find_llvm()
    problem = probe(library)
    if problem:
        raise RayTracingError(
            f"Sionna RT does not run with {library or 'the LLVM that it finds'}: {problem}; {_ADVICE}"
        )
    if library:
        os.environ[_LIBRARY] = library


def find_llvm() -> str | None:
    """Return the first shared library of an LLVM version that Sionna RT works with; None if there is none."""
    for name in _LLVM:
        for pattern in _FOLDERS:
            for folder in sorted(Path("/").glob(pattern.lstrip("/"))):
                if (folder / name).exists():
                    return str(folder / name)
    return None


def probe(library: str | None) -> str:
    """Load Sionna RT and run one line with it in another process.

    Args:
        library: the LLVM to load; None leaves the search to Sionna RT.

    Returns:
        Description of the problem; empty if there is none.
    """
    environment = {**os.environ, **({_LIBRARY: library} if library else {})}
    try:
        result = subprocess.run(  # noqa: S603 our own interpreter and text
            [sys.executable, "-c", _PROBE], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return "it did not answer within two minutes"
    if result.returncode == 0:
        return ""
    if result.returncode < 0:
        return f"the process was ended by signal {-result.returncode}"
    said = [line for line in result.stderr.splitlines() if line.strip()]
    return said[-1].strip() if said else f"it ended with status {result.returncode}"
