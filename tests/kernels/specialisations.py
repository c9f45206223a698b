"""Ahead-of-time compilation of the Triton kernels, for GPUs that need not be present.

Every hot path has a file `<stem>_specialisations.py` next to this one with a list `SPECIALISATIONS` of what its
launchers can produce. `test_compiled.py` compiles each with each of its configurations for sm_80, sm_90 and sm_100, and
bounds the resources that they use:

    SPECIALISATIONS = [
        Specialisation(
            kernel=_step,
            signature={"planes": "*bf16:16", "point": "*fp32:16", "columns": "i64", "lr": "fp32"},
            constants={"ADAM": False, "ROWS": 64},
            configurations=named("cutting_plane.step"),
            label="cutting_plane.step bf16 sgd",
        ),
    ]
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from simmst.kernels.assembler import assembler
from simmst.kernels.configurations import Configuration

CAPABILITIES = (80, 90, 100)
# Bytes of shared memory available to one block, by compute capability.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}

_VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])


@dataclass(frozen=True)
class Specialisation:
    """A kernel with the types of its arguments and the constants that a launcher can give it.

    Attributes:
        kernel: the function under `@triton.jit`.
        signature: run-time argument -> type as Triton spells it: `"*fp32"`, `"*bf16"`, `"*i64"`, `"*u8"`, `"i32"`,
            `"i64"`, `"fp32"`. A suffix `":16"` says that it is divisible by 16, as Triton assumes for aligned pointers
            and for sizes and strides that are; leave it out to compile the general case. An argument that a
            launcher gives as None, or that is always 1, belongs to `constants`.
        constants: values of the other arguments, except those that the configuration gives.
        configurations: configurations that it is compiled with, usually `named("<stem>.<kernel>")`.
        label: name in the record and the messages, unique among all kernels.
    """

    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    configurations: tuple[Configuration, ...]
    label: str
    options: Mapping[str, Any] = field(default_factory=dict)  # further options of the compiler, such as maxnreg
    capabilities: tuple[int, ...] = CAPABILITIES


def with_ones(specialisations: Iterable[Specialisation]) -> list[Specialisation]:
    """Of each kernel with sizes, and with strides, that are 1: Triton makes constants of them, of Python's type.

    Code that takes one for a tensor compiles in the general case and in the interpreter, and not in these. One
    configuration and one capability show it. Arguments that a kernel says are never specialised stay as they are.
    """
    fullest: dict[int, Specialisation] = {}
    for one in specialisations:
        held = fullest.setdefault(id(one.kernel), one)
        if len(one.signature) > len(held.signature):
            fullest[id(one.kernel)] = one
    found = []
    for one in fullest.values():
        whole = [
            name
            for name, kind in one.signature.items()
            if kind.startswith("i") and name not in (one.kernel.do_not_specialize or ())
        ]
        strides = [name for name in whole if re.search(r"_(problem|batch|head|map|row|column)$", name)]
        groups = {"sizes": [name for name in whole if name not in strides], "strides": strides}
        found += [_of_one(one, names, f"{one.label}, {what} 1") for what, names in groups.items() if names]
    return found


def _of_one(one: Specialisation, names: Sequence[str], label: str) -> Specialisation:
    signature = {name: kind for name, kind in one.signature.items() if name not in names}
    constants = {**one.constants, **dict.fromkeys(names, 1)}
    return replace(
        one,
        signature=signature,
        constants=constants,
        configurations=one.configurations[:1],
        label=label,
        capabilities=(90,),
    )


class Resources(NamedTuple):
    """Resources of a compiled kernel: registers and stack bytes per thread, spilled bytes, shared bytes per block."""

    registers: int
    spills: int
    stack: int
    shared: int
    num_warps: int


def compile_ahead(specialisation: Specialisation, configuration: Configuration, capability: int) -> Resources:
    """Compile one specialisation with one configuration, and return the resources that it takes.

    Args:
        specialisation: kernel, types and constants.
        configuration: one of `specialisation.configurations`.
        capability: 80, 90 or 100. No GPU is needed.

    Raises:
        ValueError: the arguments of the kernel are not exactly those of signature, constants and configuration, or this
            process runs Triton's interpreter, which cannot compile.
        triton.CompilationError: the kernel does not compile.
    """
    if not hasattr(specialisation.kernel, "cache_key"):
        raise ValueError("Triton's interpreter compiles nothing; start without TRITON_INTERPRET")
    source = _source(specialisation, configuration)
    options = {
        "num_warps": configuration.num_warps,
        "num_stages": configuration.num_stages,
        **specialisation.options,
    }
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, spills, stack = _assembled(compiled.asm["ptx"], capability)
    return Resources(registers, spills, stack, int(compiled.metadata.shared), int(compiled.metadata.num_warps))


def _source(specialisation: Specialisation, configuration: Configuration) -> ASTSource:
    kernel = specialisation.kernel
    constants = {**specialisation.constants, **configuration.constants}
    given = [*specialisation.signature, *constants]
    if sorted(given) != sorted(kernel.arg_names):
        raise ValueError(
            f"{specialisation.label}, configuration {configuration.name}: the kernel takes {kernel.arg_names}, "
            f"signature, constants and configuration give {given}"
        )
    types, aligned = {}, {}
    for position, name in enumerate(kernel.arg_names):
        kind, _, divisor = specialisation.signature.get(name, "constexpr").partition(":")
        types[name] = kind
        if divisor == "16":
            aligned[(position,)] = [["tt.divisibility", 16]]
        elif divisor:
            raise ValueError(f"{specialisation.label}: {name} is {kind}:{divisor}; the only suffix is :16")
    return ASTSource(kernel, types, constants, aligned)


def _assembled(ptx: str, capability: int) -> tuple[int, int, int]:
    """Return registers, spilled bytes and stack bytes, from the report of the assembler that Triton brings."""
    target = re.search(r"^\.target\s+(sm_\w+)", ptx, re.MULTILINE)
    if target is None:
        raise RuntimeError("the PTX that Triton made names no target")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.ptx")
        file.write_text(ptx)
        # As Triton itself calls it, so that the figures are those of the code that runs.
        like_triton = ["-lineinfo", "-v", *(["--regAllocOptLevel=2"] if _VERSION >= (3, 7) else [])]
        command = [assembler(capability).path, *like_triton, f"--gpu-name={target[1]}", str(file), "-o", f"{file}.o"]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    report = run.stderr + run.stdout
    registers = re.search(r"Used (\d+) registers", report)
    frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    if run.returncode or registers is None or frame is None:
        raise RuntimeError(f"{' '.join(command)} ended with {run.returncode} and said: {report[-2000:]}")
    return int(registers[1]), int(frame[2]) + int(frame[3]), int(frame[1])
