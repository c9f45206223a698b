"""Definitions of cutting planes that every backend shares: packed signs and Adam's constants."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # defaults of torch.optim.Adam


class PackedSigns(NamedTuple):
    """Planes whose entries are all +s or -s, stored as one bit per entry and one scale s per row.

    Bit b (value ``1 << b``) of byte i of a row is entry 8 i + b; a set bit means negative, like the sign bit of a
    float. The bits past the last entry are zero.

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
        """Return the unpacked planes (..., L, N) in ``dtype``, or in the dtype of the scale if None."""
        return unpack_signs(self.bits, self.scale, self.size, dtype or self.scale.dtype)


def unpack_signs(bits: Tensor, scale: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Unpack the entries of packed signs to (..., L, N)."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    negative = (bits.unsqueeze(-1) >> shifts).bitwise_and(1).flatten(-2)[..., :size]
    scale = scale.to(dtype).unsqueeze(-1)
    return torch.where(negative.bool(), -scale, scale)


def pack_signs(planes: Tensor, scale: Tensor | None = None) -> PackedSigns:
    """Pack the signs of planes into one bit per entry; the sign of 0 and of -0 is +1.

    The planes of an L1 distance hold only signs, so packing them loses nothing. Compute the offsets from the packed
    planes: pack first, then evaluate.

    Args:
        planes: (..., L, N), floating point; only its signs are used.
        scale: (..., L), the magnitude of each row's entries; ones when None. Give ``N ** -0.5`` for rows of norm one.

    Raises:
        TypeError: planes or scale is not a floating-point tensor.
        ValueError: planes has fewer than two dimensions or holds NaN, or scale does not have one entry per row.

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

__all__ = ["BETA1", "BETA2", "EPS", "PackedSigns", "Planes", "pack_signs", "unpack_signs"]
