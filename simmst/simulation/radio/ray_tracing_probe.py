"""Whether Sionna RT works here, found out in another process: with a wrong LLVM it ends the interpreter."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from simmst.errors import MissingExtraError, RayTracingError

_LIBRARY = "DRJIT_LIBLLVM_PATH"
# From the version known to work to those that may; 14 is refused by Dr.Jit, 15 and 16 can abort the process.
_LLVM = ("libLLVM.so.19.1", "libLLVM-19.so", "libLLVM.so.20.1", "libLLVM-18.so", "libLLVM.so.18.1", "libLLVM-17.so")
_FOLDERS = ("/usr/lib/*-linux-gnu", "/usr/lib64", "/usr/lib/llvm-*/lib", "/usr/local/lib")
_PROBE = """
import drjit, mitsuba, sionna.rt
total = drjit.sum(drjit.arange(mitsuba.Float, 5))
assert total[0] == 10.0, total
"""
_ADVICE = (
    "install LLVM 19 (Debian and Ubuntu: apt-get install libllvm19) and, where it lies in an unusual folder, set "
    f"{_LIBRARY} to its file; or take the statistical radio"
)


@functools.cache
def require_ray_tracing() -> None:
    """Make sure that ``import sionna.rt`` is safe, once a process; sets ``DRJIT_LIBLLVM_PATH`` where it is not set.

    Raises:
        MissingExtraError: the extra ``raytracing`` is not installed.
        RayTracingError: it is, but does not run; the message holds what it said and what to do.
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
    """The first shared library of a version of LLVM that Sionna RT works with; None where there is none."""
    for name in _LLVM:
        for pattern in _FOLDERS:
            for folder in sorted(Path("/").glob(pattern.lstrip("/"))):
                if (folder / name).exists():
                    return str(folder / name)
    return None


def probe(library: str | None) -> str:
    """Load Sionna RT and run one line with it in another process.

    Args:
        library: the LLVM to load; None leaves the search to it.

    Returns:
        What went wrong in words; empty where it works.
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
