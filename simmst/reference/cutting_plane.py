"""Cutting planes of the re-weighting problem, in plain PyTorch: values, penalty, Lagrangian and the fused step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # Adam's, as torch.optim.Adam


class PackedSigns(NamedTuple):
    """Planes whose entries are all +s or -s, one bit an entry and one scale s a row.

    Bit b (value ``1 << b``) of byte i of a row is entry 8 i + b; a set bit means negative, as the sign bit of a float.
    The bits past the last entry are zero.

    Attributes:
        bits: uint8 (..., L, ceil(N / 8)).
        scale: (..., L), the magnitude of each row's entries, float32 or float64.
        size: N, the number of entries in a row.

    Example:
        >>> signs = pack_signs(torch.tensor([[1.0, -2.0, 0.0]]), scale=torch.tensor([0.5]))
        >>> signs.bits, signs.unpack()
        (tensor([[2]], dtype=torch.uint8), tensor([[ 0.5000, -0.5000,  0.5000]]))
    """

    bits: Tensor
    scale: Tensor
    size: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (..., L, N) of the planes."""
        return (*self.bits.shape[:-1], self.size)

    def unpack(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the planes (..., L, N) with every entry written out, in ``dtype`` (the scale's if None)."""
        return _unpack(self.bits, self.scale, self.size, dtype or self.scale.dtype)


def _unpack(bits: Tensor, scale: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    negative = (bits.unsqueeze(-1) >> shifts).bitwise_and(1).flatten(-2)[..., :size]
    scale = scale.to(dtype).unsqueeze(-1)
    return torch.where(negative.bool(), -scale, scale)


def pack_signs(planes: Tensor, scale: Tensor | None = None) -> PackedSigns:
    """Keep the signs of planes, one bit an entry; sign(0) is +1, for the negative zero too.

    The planes of an L1 distance hold nothing but signs, so packing them loses nothing. Compute the offsets from what is
    stored: pack first, then evaluate.

    Args:
        planes: (..., L, N), floating point; only its signs are used.
        scale: (..., L), the magnitude of each row's entries; ones when None. Give ``N ** -0.5`` for rows of norm one.

    Raises:
        TypeError: planes or scale is not a floating-point tensor.
        ValueError: planes has fewer than two dimensions or holds NaN, or scale does not have one entry a row.

    Example:
        >>> pack_signs(torch.tensor([[-1.0, 1.0, -0.0, -3.0]])).bits
        tensor([[9]], dtype=torch.uint8)
    """
    if not isinstance(planes, Tensor) or not planes.is_floating_point():
        got = planes.dtype if isinstance(planes, Tensor) else type(planes).__name__
        raise TypeError(f"pack_signs: planes must be a floating-point tensor, got {got}")
    if planes.dim() < 2:
        raise ValueError(f"pack_signs: planes must have shape (..., L, N), got {tuple(planes.shape)}")
    if scale is None:
        dtype = torch.float64 if planes.dtype == torch.float64 else torch.float32
        scale = torch.ones(planes.shape[:-1], dtype=dtype, device=planes.device)
    if not isinstance(scale, Tensor) or scale.dtype not in (torch.float32, torch.float64):
        got = scale.dtype if isinstance(scale, Tensor) else type(scale).__name__
        raise TypeError(f"pack_signs: scale must be a float32 or float64 tensor, got {got}")
    if scale.shape != planes.shape[:-1]:
        raise ValueError(
            f"pack_signs: scale must have shape {tuple(planes.shape[:-1])}, one entry a row of planes "
            f"{tuple(planes.shape)}, got {tuple(scale.shape)}"
        )
    if not torch.compiler.is_compiling() and bool(torch.isnan(planes).any()):
        raise ValueError(f"pack_signs: planes {tuple(planes.shape)} hold NaN, which has no sign; remove it first")
    size = planes.shape[-1]
    negative = torch.nn.functional.pad((planes.detach() < 0).to(torch.uint8), (0, -size % 8))
    weights = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8, device=planes.device)
    bits = (negative.reshape(*planes.shape[:-1], -(-size // 8), 8) * weights).sum(-1, dtype=torch.uint8)
    return PackedSigns(bits, scale.detach(), size)


Planes = Tensor | PackedSigns


def values(planes: Planes, offsets: Tensor, point: Tensor) -> Tensor:
    """Plane values A x + c: the oracle of ``simmst.ops.cutting_plane_values``, which documents it."""
    return _values(planes, offsets, point).to(torch.promote_types(point.dtype, offsets.dtype))


def penalty(planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor) -> Tensor:
    """sum_l mu_l max(0, v_l)^2: the oracle of ``simmst.ops.cutting_plane_penalty``, which documents it."""
    return penalty_and_values(planes, offsets, multipliers, point)[0]


def lagrangian(planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor) -> Tensor:
    """sum_l mu_l v_l: the oracle of ``simmst.ops.cutting_plane_lagrangian``, which documents it."""
    return lagrangian_and_values(planes, offsets, multipliers, point)[0]


def penalty_and_values(planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """Return the penalty and the values it was made of, the latter unrounded, for the gradient."""
    plane_values = _values(planes, offsets, point)
    total = (multipliers * plane_values.relu().square()).sum(-1)
    return total.to(_result_dtype(offsets, multipliers, point)), plane_values


def lagrangian_and_values(planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Lagrangian's plane term and the values it was made of, the latter unrounded, for the gradient."""
    plane_values = _values(planes, offsets, point)
    total = (multipliers * plane_values).sum(-1)
    return total.to(_result_dtype(offsets, multipliers, point)), plane_values


def combine(planes: Planes, coefficients: Tensor, dtype: torch.dtype) -> Tensor:
    """A^T s: the planes added up with coefficients (..., L), rows with coefficient zero skipped. (..., N) in dtype."""
    computing = torch.promote_types(dtype, torch.float32)
    matrix = _matrix(planes, computing)
    # 0 * inf is NaN, so skipping has to be spelled out.
    matrix = matrix.masked_fill((coefficients == 0).unsqueeze(-1), 0.0)
    return torch.matmul(coefficients.to(computing).unsqueeze(-2), matrix).squeeze(-2).to(dtype)


def step_(
    planes: Planes,
    coefficients: Tensor,
    gradient: Tensor,
    point: Tensor,
    anchor: Tensor,
    anchor_values: Tensor,
    *,
    lr: float,
    adam_state: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """One step and the values after it: the oracle of ``simmst.ops.cutting_plane_step_``, which documents it."""
    with torch.no_grad():
        computing = torch.promote_types(point.dtype, torch.float32)
        direction = combine(planes, coefficients, computing) + gradient.to(computing)
        if adam_state is None:
            updated = point.to(computing).add(direction, alpha=-lr)
        else:
            updated = _adam(point.to(computing), direction, lr, *adam_state)
        point.copy_(updated)
        # From the point as it is stored, after rounding.
        moved = (point.to(torch.promote_types(computing, anchor.dtype)) - anchor).to(computing)
        return (_product(planes, moved) + anchor_values).to(anchor_values.dtype)


def _adam(point: Tensor, direction: Tensor, lr: float, exp_avg: Tensor, exp_avg_sq: Tensor, step: Tensor) -> Tensor:
    """Adam's new point; the state is advanced in place. The operations and their order are torch.optim.Adam's."""
    step.add_(1)
    taken = step.to(torch.float64)  # as torch, which takes the powers in Python's floats
    first = exp_avg.to(point.dtype).lerp(direction, 1 - BETA1)
    second = exp_avg_sq.to(point.dtype).mul(BETA2).addcmul(direction, direction, value=1 - BETA2)
    exp_avg.copy_(first)
    exp_avg_sq.copy_(second)
    denominator = second.sqrt().div((1 - BETA2**taken).sqrt()).add(EPS)
    step_size = lr / (1 - BETA1**taken)
    return point + first.mul(-step_size).div(denominator)


def _matrix(planes: Planes, dtype: torch.dtype) -> Tensor:
    """The planes written out in the dtype of the computation; constants to autograd."""
    if isinstance(planes, PackedSigns):
        return _unpack(planes.bits, planes.scale, planes.size, dtype).detach()
    return planes.detach().to(dtype)


def _product(planes: Planes, vector: Tensor) -> Tensor:
    """A x for planes (..., L, N) and a vector (..., N)."""
    return torch.matmul(_matrix(planes, vector.dtype), vector.unsqueeze(-1)).squeeze(-1)


def _values(planes: Planes, offsets: Tensor, point: Tensor) -> Tensor:
    computing = torch.promote_types(point.dtype, torch.float32)
    return _product(planes, point.to(computing)) + offsets.detach()


def _result_dtype(offsets: Tensor, multipliers: Tensor, point: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(point.dtype, offsets.dtype), multipliers.dtype)
