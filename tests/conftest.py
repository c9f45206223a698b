"""Every test draws from the same seed. Without ``SIMMST_DATA``, real data is searched for next to the checkout.

HYPOTHESIS_PROFILE=light draws few examples, for runs under a sanitizer.

``@pytest.mark.slow(of=("csrc/cuda", "simmst/ops"))`` names what a slow test is about: files and folders of the
checkout. With ``--since COMMIT`` such a test is skipped where nothing of it has changed since the commit, nor the
test's own file, nor what everything is installed by. A slow test that names nothing always runs.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
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


CHECKOUT = Path(__file__).resolve().parents[1]
INSTALLED_BY = ("CMakeLists.txt", "constraints.txt", "pyproject.toml")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--since", metavar="COMMIT", help="skip slow tests of what has not changed since this commit")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put files that have slow tests first, so that none of them begins when the other workers have nothing left."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    since = config.getoption("since", default=None)
    if since is not None:
        skip_unchanged(items, since)


def skip_unchanged(items: list[pytest.Item], since: str) -> None:
    """Skip slow tests that name what they are about where nothing of it has changed since a commit."""
    changes: dict[tuple[str, ...], bool] = {}
    for item in items:
        marker = item.get_closest_marker("slow")
        if marker is None or "of" not in marker.kwargs:
            continue
        about = (*INSTALLED_BY, str(item.path.relative_to(CHECKOUT)), *marker.kwargs["of"])
        for name in about:
            if not (CHECKOUT / name).exists():
                raise pytest.UsageError(f"{item.nodeid} is about {name}, which is not in the checkout")
        if about not in changes:
            changes[about] = changed(since, about)
        if not changes[about]:
            item.add_marker(pytest.mark.skip(reason=f"nothing that it is about has changed since {since[:12]}"))


def changed(since: str, paths: tuple[str, ...]) -> bool:
    """Return whether any of these files and folders differs from a commit."""
    command = ["git", "-C", str(CHECKOUT), "diff", "--quiet", since, "--", *paths]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode not in (0, 1):
        raise pytest.UsageError(f"--since {since}: {run.stderr.strip()}; give a commit of this checkout")
    return run.returncode == 1


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
