"""The linker shares no symbol between two instruction sets."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

BUILD = Path(__file__).resolve().parents[3] / "build"
ISAS = ("portable", "avx2", "avx512", "avx512_bf16")


@pytest.mark.parametrize("isa", ISAS)
def test_every_shareable_symbol_of_a_kernel_names_its_instruction_set(isa: str) -> None:
    # The linker keeps one copy of an inline function or template with external linkage. If that copy were compiled for
    # AVX-512, the module would crash on a machine without it.
    objects = sorted(BUILD.glob(f"*/CMakeFiles/simmst_cpu_{isa}.dir/**/*.o"))
    if not objects or shutil.which("nm") is None:
        pytest.skip("needs nm and the objects of a build in this working tree")
    run = subprocess.run(
        ["nm", "--demangle", "--defined-only", *map(str, objects)], capture_output=True, text=True, check=True
    )
    shareable = [line for line in run.stdout.splitlines() if re.match(r"[0-9a-f]{16} [WVu] ", line)]
    # DW.ref and __clang_call_terminate are the compilers' own, and hold no arithmetic.
    own = re.compile(rf"simmst::cpu::{isa}::|DW\.ref\.|__clang_call_terminate$")
    strangers = [line for line in shareable if not own.search(line)]
    assert shareable
    assert not strangers
