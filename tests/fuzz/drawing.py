"""Numbers drawn from the bytes of a fuzzer, so that a change of the bytes is a small change of what is drawn."""

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
        """A number from 0 to most - 1, of one byte."""
        byte = self.data[self.at] if self.at < len(self.data) else 0
        self.at += 1
        return byte % most

    def choice(self, items: Sequence[Item]) -> Item:
        """One of some items."""
        return items[self.below(len(items))]

    def flag(self) -> bool:
        """Yes or no."""
        return self.below(2) == 1

    def rest(self) -> bytes:
        """What is left."""
        return self.data[self.at :]

    def tensor(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """A tensor of exactly its memory: a view with steps or another order of its axes where the bytes say so."""
        seed = self.below(256)
        layout = self.below(4)
        order = list(range(len(shape)))
        if layout == 1 and len(shape) > 2:
            order[0], order[1] = 1, 0
        drawn = torch.randn([shape[axis] for axis in order], generator=torch.Generator().manual_seed(seed))
        if layout == 2:
            drawn = drawn.flip(0) * 1e4
        return drawn.to(dtype).permute(order)
