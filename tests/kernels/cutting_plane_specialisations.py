"""The specialisations that the launchers of ``kernels/cutting_plane.py`` can produce, compiled ahead of time.

Gradient, coefficients and offsets keep their usual types, because other types only change a conversion on reading.
"""

from __future__ import annotations

from typing import Any

from specialisations import Specialisation

from simmst.kernels.configurations import named
from simmst.kernels.cutting_plane import launch_options
from simmst.kernels.cutting_plane_passes import finish, one_pass, tall_pass

_WIDTH = {"fp32": 4, "bf16": 8, "fp16": 8, "u8": 8}
_SIZES = {"lr": "fp32", "one": "fp32", "rows": "i64", "columns": "i64:16", "blocks": "i32", "workers": "i32"}
# Arguments of each call besides planes and sizes; those left out are None.
_CALLS: dict[str, dict[str, str]] = {
    "values": {"point": "fp32", "partials": "fp32"},
    "combine": {"coefficients": "fp32", "out": "fp32"},
    "lagrangian": {"coefficients": "fp32", "out": "fp32", "point": "fp32", "partials": "fp32"},
    "sgd": {"coefficients": "fp32", "gradient": "fp32", "point": "fp32", "anchor": "fp64", "partials": "fp32"},
}
_CALLS["adam"] = {**_CALLS["sgd"], "exp_avg": "fp32", "exp_avg_sq": "fp32", "step": "fp32"}
_CALLS["adam of bf16"] = {**_CALLS["adam"], "gradient": "bf16", "point": "bf16", "anchor": "bf16"}


def _specialisation(kernel: Any, configurations: str, planes: str, call: str, aligned: bool = True) -> Specialisation:
    given = {"planes": planes, **_CALLS[call]}
    if planes == "u8" and "coefficients" in given:
        given["scale"] = "fp32"
    constants: dict[str, Any] = {
        "WIDTH": _WIDTH[planes],
        "PACKED": planes == "u8",
        "EVICTION": "evict_first" if "gradient" in given and kernel is one_pass else "",
    }
    signature = {}
    for name in kernel.arg_names:
        if name in ("ROWS", "COLUMNS", "STAGES", "PROGRAMS") or name in constants:
            continue
        if name in given:
            # A single number may have any address; so may rows that follow each other without a gap.
            signature[name] = f"*{given[name]}" + ("" if name == "step" else ":16")
        elif name in _SIZES:
            signature[name] = _SIZES[name].removesuffix("" if aligned else ":16")
        elif name.endswith(("_problem", "_row")):
            signature[name] = "i64:16" if aligned or name.removesuffix("_problem") not in given else "i64"
        else:
            constants[name] = None
    options = launch_options(planes == "u8", aligned)
    label = f"{configurations} {planes} {call}" + ("" if aligned else " unaligned")
    return Specialisation(kernel, signature, constants, named(configurations), label, options)


def _finish(call: str, **given: str) -> Specialisation:
    given = {"partials": "fp32", "offsets": "fp64", "values": "fp64", **given}
    signature = {name: f"*{kind}:16" for name, kind in given.items()}
    signature |= {name: _SIZES[name] for name in ("rows", "blocks", "workers")}
    constants = {name: None for name in ("scale", "multipliers", "total", "slopes") if name not in given}
    constants["PENALTY"] = call == "penalty"  # type: ignore[assignment]
    return Specialisation(finish, signature, constants, named("cutting_plane.finish"), f"cutting_plane.finish {call}")


_TOTAL = {"multipliers": "fp32", "total": "fp32"}

SPECIALISATIONS = [
    *(
        _specialisation(one_pass, "cutting_plane.dense", planes, call)
        for planes in ("fp32", "bf16")
        for call in ("values", "combine", "lagrangian", "sgd", "adam")
    ),
    _specialisation(one_pass, "cutting_plane.dense", "fp16", "adam"),
    _specialisation(one_pass, "cutting_plane.dense", "bf16", "adam of bf16"),
    _specialisation(one_pass, "cutting_plane.dense", "fp32", "adam", aligned=False),
    _specialisation(one_pass, "cutting_plane.dense", "bf16", "adam", aligned=False),
    *(
        _specialisation(one_pass, "cutting_plane.signs", "u8", call)
        for call in ("values", "combine", "lagrangian", "sgd", "adam")
    ),
    *(
        _specialisation(tall_pass, "cutting_plane.tall_dense", planes, call)
        for planes in ("fp32", "bf16")
        for call in ("combine", "lagrangian", "adam")
    ),
    *(_specialisation(tall_pass, "cutting_plane.tall_signs", "u8", call) for call in ("combine", "lagrangian", "adam")),
    _finish("values"),
    _finish("values of signs", scale="fp32"),
    _finish("penalty", **_TOTAL, slopes="fp32"),
    _finish("lagrangian", **_TOTAL),
]
