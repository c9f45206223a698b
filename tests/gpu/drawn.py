"""Drawn shapes and options for the GPU suite, from seeds alone, because hypothesis may not be installed.

    @drawn(20, slow=6)
    def test_forward(world: World, draw: Draw) -> None:
        length = draw.integer(1, 300)
        causal = draw.boolean()
        query = draw.normal(2, length, 64, dtype=world.dtypes[0], device=world.device)

Each seed is a test of its own, so that a failure names the seed that repeats it (`-k "seed7"`). Seeds 0, 1 and 2 draw
the edges: 0 the lower end of every range, 1 the upper end, 2 the two ends alternately.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

Item = TypeVar("Item")


class Draw:
    """Integers, choices and tensors of one seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._random = random.Random(f"simmst {seed}")
        self._drawn = 0

    def __repr__(self) -> str:
        return f"Draw({self.seed})"

    def integer(self, low: int, high: int) -> int:
        """Draw one of low, ..., high; small numbers, powers of two and their neighbours are more frequent."""
        self._drawn += 1
        if self.seed < 3:
            return high if self._upper_end() else low
        if self._random.random() < 0.5:
            return self._random.randint(low, high)
        near = 2 ** self._random.randint(0, max(1, high.bit_length() - 1)) + self._random.choice((-1, 0, 1))
        return min(max(near, low), high)

    def choice(self, items: Sequence[Item]) -> Item:
        """Draw one of the items."""
        self._drawn += 1
        if self.seed < 3:
            return items[-1 if self._upper_end() else 0]
        return self._random.choice(items)

    def _upper_end(self) -> bool:
        return self._drawn % 2 == 0 if self.seed == 2 else self.seed == 1

    def boolean(self) -> bool:
        return self.choice((False, True))

    def uniform(self, low: float, high: float) -> float:
        self._drawn += 1
        return self._random.uniform(low, high)

    def generator(self) -> torch.Generator:
        """Return a separate CPU generator, so that one more draw does not change the next tensor's numbers."""
        self._drawn += 1
        return torch.Generator().manual_seed(1000 * self.seed + self._drawn)

    def normal(
        self, *shape: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", strided: bool = False
    ) -> Tensor:
        """Draw normal numbers, the same on every device; `strided` makes them non-contiguous if the shape allows."""
        values = torch.randn(shape, generator=self.generator()).to(dtype).to(device)
        if not strided or not shape:
            return values
        wide = torch.full((*shape[:-1], 2 * shape[-1] + 1), float("nan"), dtype=dtype, device=device)
        view = wide[..., 1::2]  # the last dimension's stride is 2, and the rows are not aligned
        view.copy_(values)
        return view


def drawn(examples: int, *, slow: int | None = None) -> Any:
    """Run a test with `draw` from `examples` seeds; in a slow world (interpreter, emulator) from `slow` of them."""
    emulated = os.environ.get("TRITON_INTERPRET") == "1" or os.environ.get("SIMMST_CUDA_EMULATION") == "1"
    count = slow if slow is not None and emulated else examples
    return pytest.mark.parametrize("draw", range(count), indirect=True, ids=lambda seed: f"seed{seed}")
