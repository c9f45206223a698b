"""Draws from the bytes of a fuzzer, so that a small change of the bytes is a small change of the draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")


class Draw:
    """Reads bytes from the front; past their end all are zero."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def below(self, most: int) -> int:
        """Draw a number from 0 to most - 1, from one byte."""
        byte = self.data[self.at] if self.at < len(self.data) else 0
        self.at += 1
        return byte % most

    def choice(self, items: Sequence[Item]) -> Item:
        """Draw one of some items."""
        return items[self.below(len(items))]

    def flag(self) -> bool:
        """Draw True or False."""
        return self.below(2) == 1

    def rest(self) -> bytes:
        """Return the remaining bytes."""
        return self.data[self.at :]

    def tensor(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Draw a tensor with exactly its memory, or a view with steps or another order of the axes."""
        seed = self.below(256)
        layout = self.below(4)
        order = list(range(len(shape)))
        if layout == 1 and len(shape) > 2:
            order[0], order[1] = 1, 0
        drawn = torch.randn([shape[axis] for axis in order], generator=torch.Generator().manual_seed(seed))
        if layout == 2:
            drawn = drawn.flip(0) * 1e4
        return drawn.to(dtype).permute(order)
