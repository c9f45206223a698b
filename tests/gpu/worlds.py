"""What a test of the GPU suite is told of where it runs."""

from __future__ import annotations

from typing import NamedTuple

import torch


class World(NamedTuple):
    """A backend, where its tensors lie, the dtypes it can be trusted with there, and whether shapes must be small."""

    backend: str
    device: torch.device
    dtypes: tuple[torch.dtype, ...]
    slow: bool
