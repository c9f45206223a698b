"""One suite for the GPU kernels, in four worlds.

On a GPU, every backend runs on it (`SIMMST_GPU_BACKENDS=triton` or `cuda` selects one). Without a GPU,
`TRITON_INTERPRET=1` runs the Triton kernels in Triton's interpreter and `SIMMST_CUDA_EMULATION=1` the CUDA kernels in
our emulator, both on CPU tensors and each in a process of its own. In any other process, only `test_processes.py` is
collected from this folder; it starts those processes.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from drawn import Draw
from worlds import World

# Decided by the environment before simmst is imported.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
EMULATED = os.environ.get("SIMMST_CUDA_EMULATION") == "1"
ON_GPU = torch.cuda.is_available() and not (INTERPRETED or EMULATED)

_SUITE = [path.name for path in Path(__file__).parent.glob("test_*.py") if path.name != "test_processes.py"]
collect_ignore = [] if INTERPRETED or EMULATED or ON_GPU else _SUITE


def _worlds() -> list[World]:
    both = (torch.float32, torch.float16)
    if INTERPRETED:
        return [World("triton", torch.device("cpu"), both, True)]
    if EMULATED:
        return [World("cuda", torch.device("cpu"), (*both, torch.bfloat16), True)]
    if ON_GPU:
        names = os.environ.get("SIMMST_GPU_BACKENDS", "triton,cuda").split(",")
        return [World(name, torch.device("cuda"), (*both, torch.bfloat16), False) for name in names]
    return []


@pytest.fixture(params=_worlds(), ids=lambda world: world.backend)
def world(request: pytest.FixtureRequest) -> World:
    return request.param


@pytest.fixture
def draw(request: pytest.FixtureRequest) -> Draw:
    """Give a test with `@drawn(examples)` a source of shapes and options, with a seed of its own."""
    return Draw(request.param)
