"""The sizes and layouts that the launchers of spatial attention derive from their arguments."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from simmst.core.dtypes import tf32_is_allowed
from simmst.kernels.assembler import why_not_trusted
from simmst.kernels.configurations import Configuration, configuration

# The fused kernels take maps up to these sizes. Beyond them, one map has work for many programs, or its tiles exceed
# the registers of one program. Maps of up to FEW_POSITIONS are fused even if there are few maps.
MOST_POSITIONS = 512
MOST_CHANNELS = 128
MOST_WIDTH = 64
FEW_POSITIONS = 128
_INT32 = 2**31


class Matrices(NamedTuple):
    """A batch of matrices (B, N, C) with any strides."""

    tensor: Tensor  # (B, N, C)
    batch: int
    row: int
    column: int

    @property
    def is_addressed_by_32_bits(self) -> bool:
        """Tell whether every offset within one matrix fits a 32-bit integer."""
        _, positions, channels = self.tensor.shape
        return (positions - 1) * abs(self.row) + (channels - 1) * abs(self.column) < _INT32


def matrices(x: Tensor) -> Matrices:
    """Return (B, C, H, W) maps or (B, N, C) tokens as (B, N, C), copied only if strides or offsets require it."""
    tokens = x.flatten(2).transpose(1, 2) if x.dim() == 4 else x
    found = Matrices(tokens, *tokens.stride())
    return found if found.is_addressed_by_32_bits else matrices(x.contiguous())


class Sizes(NamedTuple):
    """Sizes of a call."""

    maps: int
    positions: int
    heads: int
    width: int  # D
    dtype: torch.dtype

    @property
    def channels(self) -> int:
        """The number of channels of all heads, C."""
        return self.heads * self.width

    @property
    def block_c(self) -> int:
        """The channels of a tile; a matrix product takes at least 16."""
        return max(16, int(triton.next_power_of_2(self.channels)))

    @property
    def block_d(self) -> int:
        """The channels of one head in a tile."""
        return max(16, int(triton.next_power_of_2(self.width)))

    @property
    def chunk(self) -> int:
        """The channels that a projection reads at a time; float32 products hold their operands in registers."""
        return 16 if self.dtype == torch.float32 else min(32, self.block_c)

    @property
    def precision(self) -> str:
        """The rounding of the operands of float32 products."""
        return "tf32" if self.dtype == torch.float32 and tf32_is_allowed() and _tf32_is_right() else "ieee"

    def configuration(self, kernel: str) -> Configuration:
        """Return the launch configuration of a kernel of spatial attention for these sizes."""
        positions, channels = triton.next_power_of_2(max(16, self.positions)), max(32, self.block_c)
        bits = 8 * self.dtype.itemsize
        return configuration(f"spatial_attention.{kernel}", f"N{positions}-C{channels}-{bits}bit")


def sizes(x: Tensor, heads: int) -> Sizes:
    """Return the sizes of a call with x (B, C, H, W) or (B, N, C)."""
    channels = x.shape[1] if x.dim() == 4 else x.shape[2]
    positions = x.shape[2] * x.shape[3] if x.dim() == 4 else x.shape[1]
    return Sizes(x.shape[0], positions, heads, channels // heads, x.dtype)


def is_fused(size: Sizes, device: torch.device) -> bool:
    """Tell whether one program computes a whole map."""
    if size.positions > MOST_POSITIONS or size.channels > MOST_CHANNELS or size.width > MOST_WIDTH:
        return False
    return size.positions <= FEW_POSITIONS or size.maps >= multiprocessors(device)


def programs(maps: int, num_warps: int, device: torch.device) -> int:
    """Return how many programs share the maps: 8 warps per multiprocessor, so a thread can have 255 registers."""
    return min(maps, multiprocessors(device) * max(1, 8 // num_warps))


@functools.cache
def _tf32_is_right() -> bool:
    """Tell whether the assembler can be trusted with TF32 products on the current GPU."""
    if not torch.cuda.is_available():
        return True
    major, minor = torch.cuda.get_device_capability()
    return why_not_trusted("spatial_attention", 10 * major + minor) is None


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Return the multiprocessors of a GPU, or 1 for Triton's interpreter, so that a program there gets several maps."""
    return 1 if device.type == "cpu" else torch.cuda.get_device_properties(device).multi_processor_count


def empty_maps(mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return the mask (B, N) and which maps have every position ignored (B,), both as bytes."""
    if mask is None:
        return None, None
    return mask.contiguous().view(torch.uint8), mask.all(dim=-1).view(torch.uint8)


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """Return a weight in the layout that the kernels address, row after row."""
    return None if tensor is None else tensor.contiguous()
