"""The specialisations that the launchers of spatial attention can produce, compiled ahead of time.

Sizes are those of the model and similar ones. Strides are left general if maps of 121 or 225 positions make them odd;
code that is compiled for aligned strides needs no more than that.
"""

from __future__ import annotations

from typing import Any

import triton
from specialisations import Specialisation

from simmst.kernels.configurations import Configuration, named
from simmst.kernels.spatial_attention_backward import fused_backward, reduce_partials
from simmst.kernels.spatial_attention_forward import fused_forward
from simmst.kernels.spatial_attention_long import (
    ROW_TILE,
    attend_rows,
    finish_rows,
    key_gradients,
    norm_gradients,
    query_gradients,
)

_FLOAT = {"lse", "grad_query", "sums", "partials", "delta"}
_INTEGERS = {"maps", "positions", "programs", "channels"}
_STRIDES = ("_map", "_row", "_column", "_batch")
_SCALARS = {"factor", "scale", "eps", "unit"}


def _specialisation(
    kernel: Any,
    label: str,
    dtype: str,
    constants: dict[str, Any],
    configurations: tuple[Configuration, ...],
    *,
    masked: bool = False,
    **types: str,
) -> Specialisation:
    constants = dict(constants)
    if not masked:
        constants |= {argument: None for argument in ("mask", "empty") if argument in kernel.arg_names}
    given = {*constants, *configurations[0].constants}
    signature = {}
    for argument in kernel.arg_names:
        if argument in given:
            continue
        if argument in types:
            signature[argument] = types[argument]
        elif argument in _INTEGERS:
            signature[argument] = "i32"
        elif argument.endswith(_STRIDES) or argument == "rows_in_all":
            signature[argument] = "i64"
        elif argument in _SCALARS:
            signature[argument] = "fp32"
        elif argument in ("mask", "empty"):
            signature[argument] = "*u8:16"
        else:
            signature[argument] = "*fp32:16" if argument in _FLOAT else f"*{dtype}:16"
    return Specialisation(kernel, signature, constants, configurations, f"spatial_attention.{label}")


def _named(kernel: str, names: tuple[str, ...]) -> tuple[Configuration, ...]:
    return tuple(one for one in named(f"spatial_attention.{kernel}") if one.name in names)


def _heads(heads: int, width: int, precision: str = "ieee") -> dict[str, Any]:
    return {
        "HEADS": heads,
        "WIDTH": width,
        "PRECISION": precision,
        "BLOCK_D": max(16, triton.next_power_of_2(width)),
    }


def _fused(
    name: str,
    dtype: str,
    heads: int,
    width: int,
    chosen: tuple[str, ...],
    *,
    layout: str = "map",
    precision: str = "ieee",
    resident: bool = False,
    masked: bool = False,
) -> Specialisation:
    kernel = fused_forward if name == "forward" else fused_backward
    channels = max(16, triton.next_power_of_2(heads * width))
    constants = {**_heads(heads, width, precision), "RESIDUAL": True, "BLOCK_C": channels}
    constants["CHUNK"] = 16 if dtype == "fp32" else min(32, channels)
    if name == "forward":
        constants["RESIDENT"] = resident
        if resident:
            constants["stage"] = None
    line = "_row" if layout == "map" else "_column"  # positions or channels are adjacent
    constants |= {argument: 1 for argument in kernel.arg_names if argument.endswith(line)}
    types = {argument: "i32" for argument in kernel.arg_names if argument.endswith(("_row", "_column"))}
    details = [dtype, f"C{heads * width}", layout, *(["tf32"] if precision == "tf32" else [])]
    details += ["resident"] * resident + ["masked"] * masked
    label = " ".join([name, *details])
    return _specialisation(kernel, label, dtype, constants, _named(name, chosen), masked=masked, **types)


def _attending(kernel: Any, name: str, dtype: str, width: int, chosen: tuple[str, ...], masked: bool) -> Specialisation:
    label = f"{name} {dtype} D{width}" + " masked" * masked
    return _specialisation(kernel, label, dtype, _heads(4, width), _named(name, chosen), masked=masked)


def _rows(kernel: Any, name: str, dtype: str, channels: int) -> Specialisation:
    block = triton.next_power_of_2(channels)
    rows = max(1, ROW_TILE // block)
    configuration = Configuration(f"rows{rows}", {"BLOCK_M": rows}, 4, 1)
    constants = {"CHANNELS": channels, "RESIDUAL": True, "BLOCK_C": block}
    return _specialisation(kernel, f"{name} {dtype} C{channels}", dtype, constants, (configuration,), masked=True)


SPECIALISATIONS = [
    _fused("forward", "bf16", 4, 16, ("tile32", "tile64", "tile128"), resident=True),
    _fused("forward", "bf16", 4, 16, ("tile64",)),
    _fused("forward", "fp16", 4, 32, ("tile64", "tile128"), layout="tokens", masked=True),
    _fused("forward", "fp32", 4, 16, ("small", "exact32"), resident=True),
    _fused("forward", "fp32", 4, 16, ("exact32",)),
    _fused("forward", "fp32", 4, 16, ("exact32",), precision="tf32", layout="tokens"),
    _fused("backward", "bf16", 4, 16, ("tile32", "tile32x64", "tile64")),
    _fused("backward", "fp16", 4, 32, ("tile64",), layout="tokens", masked=True),
    _fused("backward", "fp32", 4, 16, ("small", "exact32")),
    _specialisation(reduce_partials, "reduce bf16", "bf16", {}, named("spatial_attention.reduce")),
    _rows(finish_rows, "finish", "bf16", 64),
    _rows(finish_rows, "finish", "fp32", 256),
    _rows(norm_gradients, "norm", "bf16", 64),
    _rows(norm_gradients, "norm", "fp32", 256),
]
for _kernel, _name in ((attend_rows, "attend"), (query_gradients, "queries"), (key_gradients, "keys")):
    SPECIALISATIONS += [
        _attending(_kernel, _name, "bf16", 16, ("tile64", "tile128"), True),
        _attending(_kernel, _name, "fp16", 64, ("tile64", "tile128"), False),
        _attending(_kernel, _name, "fp32", 32, ("small", "exact32"), False),
    ]
