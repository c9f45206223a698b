"""A small city, windows over it, and a network that learns it in a second."""

from __future__ import annotations

import pytest
from training_city import city_windows


@pytest.fixture(scope="session")
def real():
    """Training and validation windows of the real city."""
    return city_windows(seed=0, steps=range(72)), city_windows(seed=0, steps=range(72, 96))


@pytest.fixture(scope="session")
def simulated():
    """Windows of a simulated city."""
    return city_windows(seed=1, steps=range(96))
