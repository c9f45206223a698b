"""Requirements of the compiled cutting planes: 64-bit offsets, wide loads for aligned rows, and steps in float64."""

from __future__ import annotations

import math
import os
import re
import struct

import pytest

pytest.importorskip("triton", reason="the package triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

import specialisations
import triton
from cutting_plane_specialisations import SPECIALISATIONS
from triton.backends.compiler import GPUTarget


def compiled(label: str, configuration: str = "rows64"):
    one = next(one for one in SPECIALISATIONS if one.label == f"cutting_plane.{label}")
    chosen = next(chosen for chosen in one.configurations if chosen.name == configuration)
    source = specialisations._source(one, chosen)
    options = {"num_warps": chosen.num_warps, "num_stages": chosen.num_stages, **one.options}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


@pytest.mark.parametrize("one", SPECIALISATIONS, ids=lambda one: one.label)
def test_sizes_and_strides_are_64_bit(one) -> None:
    """At launch too, where a small stride would otherwise be an i32, and so would its product with a row number."""
    extents = [name for name in one.signature if name.endswith(("_problem", "_row")) or name in ("rows", "columns")]
    assert extents
    declared = {parameter.name: parameter.annotation_type for parameter in one.kernel.params}
    for name in extents:
        assert one.signature[name].removesuffix(":16") == "i64"
        assert declared[name] == "i64"


@pytest.mark.parametrize("label", ["dense fp32 adam", "signs u8 adam", "tall_dense bf16 adam"])
def test_no_offset_is_computed_in_32_bits(label: str) -> None:
    """Program numbers and positions within a tile are 32-bit; nothing computed from a size or stride may be."""
    ttir = compiled(label).asm["ttir"]
    products = re.findall(r"arith\.muli [^:]*: (\S+)", ttir)
    assert products
    # The stride from tile to tile, workers x COLUMNS, and bytes x 8 within a tile.
    narrow = [kind for kind in products if kind == "i32" or kind.endswith("xi32>")]
    assert len(narrow) <= 3, narrow


@pytest.mark.parametrize(("planes", "bytes_each"), [("fp32", 4), ("bf16", 2)])
def test_aligned_rows_are_copied_16_bytes_at_a_time(planes: str, bytes_each: int) -> None:
    ptx = compiled(f"dense {planes} sgd").asm["ptx"]
    wide = re.findall(r"cp\.async\.cg\.shared\.global [^;]*, 0x10,", ptx)
    tile = 64 * 128 * bytes_each
    assert len(wide) >= 3 * tile // (16 * 256)  # two tiles ahead before the loop, one in it, by 256 threads


def test_the_powers_of_beta_are_taken_in_float64() -> None:
    ptx = compiled("dense fp32 adam").asm["ptx"]
    assert len(re.findall(r"\bsqrt\.rn\.f64|\bdiv\.rn\.f64", ptx)) >= 2
    for beta in (0.9, 0.999):  # all 64 bits of the constants
        assert struct.pack(">d", math.log2(beta)).hex() in ptx.lower()
