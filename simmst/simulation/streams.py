"""Independent random streams: each stage of each city draws from its own, so any city can be simulated again alone."""

from __future__ import annotations

import zlib

import numpy as np


def stream(seed: int, index: int, stage: str) -> np.random.Generator:
    """Open the random stream of one stage of one city.

    The stream depends on ``(seed, index, stage)`` alone: not on the process, the order in which cities are drawn, or
    what other stages have drawn. Stages are keyed by the CRC-32 of their name, so adding a stage leaves the others
    unchanged.

    Args:
        seed: seed of the whole family of cities, not negative.
        index: number of the city within the family, not negative.
        stage: name of the stage, such as ``"radio"``.

    Example:
        >>> float(stream(1, 2, "radio").random()) == float(stream(1, 2, "radio").random())
        True
        >>> float(stream(1, 2, "radio").random()) == float(stream(1, 3, "radio").random())
        False
    """
    return np.random.default_rng(np.random.SeedSequence((seed, index, zlib.crc32(stage.encode()))))
