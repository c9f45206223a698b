"""Descriptions of the worlds that tests of the GPU suite run in."""

from __future__ import annotations

from typing import NamedTuple

import torch


class World(NamedTuple):
    """A backend, the device of its tensors, the dtypes that are reliable there, and whether shapes must be small."""

    backend: str
    device: torch.device
    dtypes: tuple[torch.dtype, ...]
    slow: bool
