"""Cutting planes v = A x + c of the re-weighting problem: values, penalty, Lagrangian and the fused step."""

from simmst.core.cutting_plane import PackedSigns, pack_signs
from simmst.ops.cutting_plane.api import (
    cutting_plane_lagrangian,
    cutting_plane_penalty,
    cutting_plane_step_,
    cutting_plane_values,
)

__all__ = [
    "PackedSigns",
    "cutting_plane_lagrangian",
    "cutting_plane_penalty",
    "cutting_plane_step_",
    "cutting_plane_values",
    "pack_signs",
]
