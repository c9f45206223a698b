"""Seeds: one number from the user, and an independent stream for every purpose."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """Derive a seed for one purpose, independent of the seeds for others.

    Args:
        seed: seed that the user gave, at least 0.
        names: purpose of the stream, such as ``"finetune"``.

    Returns:
        An integer in [0, 2^63).

    Example:
        >>> derive_seed(0, "pretrain") == derive_seed(0, "pretrain")
        True
        >>> derive_seed(0, "pretrain") == derive_seed(0, "finetune")
        False
    """
    words = [zlib.crc32(str(name).encode()) for name in names]
    low, high = np.random.SeedSequence([seed, *words]).generate_state(2, np.uint32)
    return (int(high) << 32 | int(low)) & (2**63 - 1)


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed torch's global generators inside the block, and restore the caller's state after it.

    Args:
        seed: seed inside the block.
        device: device of the work, whose generator is restored too.

    Example:
        >>> with seeded(3):
        ...     first = torch.rand(2)
        >>> with seeded(3):
        ...     bool((torch.rand(2) == first).all())
        True
    """
    device = torch.device(device)
    devices = []
    if device.type == "cuda":
        devices.append(torch.cuda.current_device() if device.index is None else device.index)
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        for index in devices:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


def generator_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the states of torch's global generators as uint8 tensors, by generator.

    Example:
        >>> sorted(generator_state(torch.device("cpu")))
        ['cpu']
    """
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_generator_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Restore states from `generator_state`.

    Example:
        >>> with seeded(0):
        ...     kept = generator_state(torch.device("cpu"))
        ...     first = torch.rand(1)
        ...     set_generator_state(kept, torch.device("cpu"))
        ...     bool(torch.rand(1) == first)
        True
    """
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
