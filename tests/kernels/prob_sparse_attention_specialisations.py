"""The specialisations that the launchers of ProbSparse attention can produce, compiled ahead of time."""

from __future__ import annotations

from typing import Any

from specialisations import Specialisation

from simmst.kernels.configurations import named
from simmst.kernels.prob_sparse_attention_backward import _combine_query, _gradients, _sum_chunks
from simmst.kernels.prob_sparse_attention_forward import _attend, _combine
from simmst.kernels.prob_sparse_attention_select import _measure, _measure_and_top, _top

_KINDS = (("bf16", "half", "ieee"), ("fp32", "single", "ieee"), ("fp32", "single", "tf32"))


def _signature(*kinds: tuple[str, str]) -> dict[str, str]:
    """Return the signature of a specialisation from types and the arguments that have them.

    Example:
        >>> _signature(("*bf16:16", "query key"), ("i32", "u"))
        {'query': '*bf16:16', 'key': '*bf16:16', 'u': 'i32'}
    """
    return {name: kind for kind, names in kinds for name in names.split()}


_SELECTING = (  # samples, dtype, family of configurations, precision of products
    ("measure", "bf16", "half", "ieee"),
    ("measure", "fp32", "single", "ieee"),
    ("measure", "fp32", "single", "tf32"),
    ("gather", "bf16", "half", "ieee"),
    ("gather", "fp32", "single", "ieee"),
)
_SELECT_SIZES = (
    ("*i64:16", "sample"),
    ("*fp32:16", "measure"),
    ("i32", "heads queries keys samples"),
    ("i32:16", "width query_batch query_head query_row key_batch key_head key_row"),
    ("fp32", "divisor"),
)


def _select(
    kernel: Any, kind: tuple[str, str, str, str], width: int, types: tuple[tuple[str, str], ...] = (), **constants: int
) -> Specialisation:
    samples, dtype, family, precision = kind
    return Specialisation(
        kernel=kernel,
        signature=_signature((f"*{dtype}:16", "query key"), *_SELECT_SIZES, *types),
        constants={"PER_QUERY": samples == "gather", "PRECISION": precision, "BLOCK_D": width, **constants},
        configurations=named(f"prob_sparse_attention.{samples}_{family}"),
        label=f"prob_sparse_attention.{kernel.__name__[1:]} {samples} {dtype} {precision} D{width}",
    )


_SELECT = [
    *(_select(_measure, kind, width) for kind in _SELECTING for width in (64, 128)),
    *(_select(_measure_and_top, kind, 64, (("*i64:16", "top"), ("i32", "u")), BLOCK=1024) for kind in _SELECTING),
    *(
        Specialisation(
            kernel=_top,
            signature=_signature(("*fp32:16", "measure"), ("*i64:16", "top"), ("i32", "queries u")),
            constants={"IN_REGISTERS": in_registers},
            configurations=named("prob_sparse_attention.top"),
            label=f"prob_sparse_attention.top {'in registers' if in_registers else 'in blocks'}",
        )
        for in_registers in (True, False)
    ),
]


_ATTEND_SIZES = (
    ("*i64:16", "top"),
    ("*fp32:16", "lse"),
    ("i32", "heads queries keys u chunk splits"),
    ("i32:16", "value_width value_batch value_head value_row out_batch out_head out_row"),
    ("fp32", "dropout_factor"),
)
_PARTS = (("*fp32:16", "parts statistics"),)


def _attend_tile(dtype: str, width: int) -> int:
    """Return how many selected rows a program holds: the fewest for the narrowest rows, otherwise the most."""
    return 16 if width == 16 else 32 if dtype == "fp32" and width > 64 else 64


def _attend_one(kind: tuple[str, str, str], width: int, whole: bool, mode: str) -> Specialisation:
    """Specialisations of `_attend`; mode is `mean`, like most calls, or `causal`, with all that options can add."""
    dtype, family, precision = kind
    causal = mode == "causal"
    wide = "_wide" if width > 64 else ""
    absent = {**({} if causal else {"seed": None}), **({"parts": None, "statistics": None} if whole else {})}
    return Specialisation(
        kernel=_attend,
        signature=_signature(
            (f"*{dtype}:16", "query key value out"),
            *_ATTEND_SIZES,
            ("i32", "keep"),
            ("i32:16", "width query_batch query_head query_row key_batch key_head key_row"),
            ("fp32", "scale"),
            *((("*i64:16", "seed"),) if causal else ()),
            *(() if whole else _PARTS),
        ),
        constants={
            **absent,
            "WHOLE": whole, "CAUSAL": causal, "FILL": "cummean" if causal else "mean", "DROPOUT": causal,
            "PRECISION": precision, "BLOCK_U": _attend_tile(dtype, width),
            "BLOCK_D": width, "BLOCK_V": width,
        },
        configurations=named(f"prob_sparse_attention.attend_{family}{wide}"),
        label=f"prob_sparse_attention.attend {dtype} {precision} D{width} {mode}{' whole' if whole else ''}",
    )  # fmt: skip


def _combine_one(dtype: str, width: int, fill: str) -> Specialisation:
    return Specialisation(
        kernel=_combine,
        signature=_signature((f"*{dtype}:16", "value out"), *_ATTEND_SIZES, *_PARTS),
        constants={"FILL": fill, "BLOCK_U": 64, "BLOCK_V": width},
        configurations=named("prob_sparse_attention.combine"),
        label=f"prob_sparse_attention.combine {dtype} D{width} {fill}",
    )


_ATTEND = [
    *(_attend_one(kind, 64, whole, "causal") for kind in _KINDS for whole in (True, False)),
    *(_attend_one(kind, 64, whole, "mean") for kind in _KINDS[:2] for whole in (True, False)),
    *(_attend_one(kind, 128, False, "causal") for kind in _KINDS),
    *(_attend_one(kind, 16, True, "causal") for kind in _KINDS),
    *(_combine_one(*each) for each in (("bf16", 64, "mean"), ("bf16", 64, "cummean"), ("fp32", 128, "cummean"))),
]


_STRIDES = " ".join(
    f"{tensor}_{name}"
    for tensor in ("query", "key", "value", "out", "grad_out", "grad_query", "grad_key", "grad_value")
    for name in ("batch", "head", "row")
)


def _gradients_tile(dtype: str, width: int, division: str) -> int:
    """Return how many selected rows a program holds: the fewest for the narrowest rows, otherwise the most."""
    return 16 if width == 16 else 32 if dtype == "fp32" and (width > 64 or division == "several") else 64


def _gradients_one(kind: tuple[str, str, str], width: int, division: str, mode: str) -> Specialisation:
    """Specialisations of `_gradients`; mode is `mean`, like most calls, or `causal`, with all that options can add."""
    dtype, family, precision = kind
    causal = mode == "causal"
    whole = division == "whole"
    wide = "_wide" if width > 64 else ""
    return Specialisation(
        kernel=_gradients,
        signature=_signature(
            (f"*{dtype}:16", "grad_out query key value out grad_query grad_key grad_value"),
            ("*i64:16", "top seed" if causal else "top"),
            ("*fp32:16", "lse" if whole else "lse sums parts"),
            ("i32", "heads queries keys u keep chunk splits chunks"),
            ("i32:16", f"width value_width {_STRIDES}"),
            ("fp32", "scale dropout_factor"),
        ),
        constants={
            **({} if causal else {"seed": None}), **({"sums": None, "parts": None} if whole else {}),
            "WHOLE": whole, "ONE_TILE": division != "several", "CAUSAL": causal, "DROPOUT": causal,
            "FILL": "cummean" if causal else "mean", "PRECISION": precision,
            "BLOCK_U": _gradients_tile(dtype, width, division), "BLOCK_D": width, "BLOCK_V": width,
        },
        configurations=named(f"prob_sparse_attention.gradients_{family}{wide}"),
        label=f"prob_sparse_attention.gradients {dtype} {precision} D{width} {mode} {division}",
    )  # fmt: skip


def _row_kernels(dtype: str, width: int) -> list[Specialisation]:
    """Specialisations of the two kernels that go through rows."""
    return [
        Specialisation(
            kernel=_sum_chunks,
            signature=_signature(
                (f"*{dtype}:16", "grad_out"), ("*i64:16", "top"), ("*fp32:16", "sums"),
                ("i32", "heads queries keys u chunk"), ("i32:16", "value_width out_batch out_head out_row"),
            ),
            constants={"FILL": "cummean", "BLOCK_V": width},
            configurations=named("prob_sparse_attention.sum_chunks"),
            label=f"prob_sparse_attention.sum_chunks {dtype} D{width}",
        ),
        Specialisation(
            kernel=_combine_query,
            signature=_signature(
                ("*i64:16", "top"), ("*fp32:16", "parts"), (f"*{dtype}:16", "grad_query"),
                ("i32", "heads queries u splits"), ("i32:16", "width grad_query_batch grad_query_head grad_query_row"),
            ),
            constants={"BLOCK_D": width},
            configurations=named("prob_sparse_attention.combine_query"),
            label=f"prob_sparse_attention.combine_query {dtype} D{width}",
        ),
    ]  # fmt: skip


_GRADIENTS = [
    *(_gradients_one(kind, 64, division, "causal") for kind in _KINDS for division in ("whole", "split", "several")),
    *(_gradients_one(kind, 64, division, "mean") for kind in _KINDS[:2] for division in ("whole", "split")),
    *(_gradients_one(kind, 128, "split", "causal") for kind in _KINDS),
    *(_gradients_one(kind, 16, "whole", "causal") for kind in _KINDS),
    *_row_kernels("bf16", 64),
    *_row_kernels("fp32", 128),
]


SPECIALISATIONS = [*_SELECT, *_ATTEND, *_GRADIENTS]
