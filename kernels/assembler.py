"""The assembler that Triton calls, ptxas, and the kernels that an old one gets wrong.

Triton 3.6 and 3.7 bring ptxas 12.8 for compute capability 9.0. On an H100, the kernels of spatial attention that it
assembled for 16-bit numbers gave wrong results or addressed memory out of range in 60 of 281 drawn cases. With ptxas
13.0 the same kernels were right in all of 98 cases. With 12.8, too, the cases that the benchmarks time and every test
of the other operators were right.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

RIGHT_SINCE = (13, 0)


def why_not_trusted(operator: str, capability: int) -> str | None:
    """Say why an operator's kernels of 16-bit or TF32 products must not be assembled here; None if they may.

    Args:
        operator: name of the operator.
        capability: compute capability of the GPU, such as 90.

    Example:
        >>> why_not_trusted("spatial_attention", 80) is None
        True
    """
    if operator != "spatial_attention" or capability // 10 != 9:
        return None
    try:
        major, minor = assembler(90).version
    except RuntimeError as error:
        return f"Triton finds no assembler ({error}); set TRITON_PTXAS_PATH to the ptxas of CUDA 13.0 or newer"
    if (major, minor) >= RIGHT_SINCE:
        return None
    return (
        f"Triton assembles with ptxas {major}.{minor}, which computes it wrongly on compute capability 9.0; set "
        "TRITON_PTXAS_PATH to the ptxas of CUDA 13.0 or newer before Python starts"
    )


class Assembler(NamedTuple):
    """Where ptxas is, and its version."""

    path: str
    version: tuple[int, int]


@functools.cache
def assembler(capability: int) -> Assembler:
    """Return the assembler that Triton calls for a compute capability such as 90.

    Raises:
        RuntimeError: Triton finds none.

    Example:
        >>> assembler(90).version > (11, 0)
        True
    """
    from triton.backends.nvidia import compiler  # internal to Triton, so asked for only when needed

    # Up to version 3.3 with the tool's version beside the path; before that, under another name.
    found = compiler.get_ptxas(capability) if hasattr(compiler, "get_ptxas") else compiler._path_to_binary("ptxas")
    path, version = found if isinstance(found, tuple) else (found.path, found.version)
    major, minor = re.findall(r"\d+", str(version))[:2]
    return Assembler(str(path), (int(major), int(minor)))
