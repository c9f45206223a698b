"""Every test draws from the same seed. Without ``SIMMST_DATA``, real data is searched for next to the checkout.

HYPOTHESIS_PROFILE=light draws few examples, for runs under a sanitizer.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

# tests/gpu runs without hypothesis, on machines that have little more than torch.
if importlib.util.find_spec("hypothesis") is not None:
    from hypothesis import settings

    settings.register_profile("light", max_examples=12, deadline=None)
    if "HYPOTHESIS_PROFILE" in os.environ:
        settings.load_profile(os.environ["HYPOTHESIS_PROFILE"])

# Processes that a test starts import the installed package with its compiled modules, in any working folder.
os.environ.setdefault("PYTHONSAFEPATH", "1")

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
if DATA.is_dir():
    os.environ.setdefault("SIMMST_DATA", str(DATA))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files that have slow tests first, so that none of them begins when the other workers have nothing left."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Seed the draws of every test, so that a test without a generator draws the same numbers in every run."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_file() -> Callable[[str], Path]:
    """Return the path of a file of the data folder by its name, and skip the test if the file is missing."""
    from simmst.data import data_directory
    from simmst.errors import DataError

    def find(name: str) -> Path:
        try:
            path = data_directory() / name
        except DataError as error:
            pytest.skip(str(error))
        if not path.is_file():
            pytest.skip(f"the data folder has no {name}")
        return path

    return find
