"""One table of all cases at the end of a run, and the recording of their ratios."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import simmst
from cpu import gate


def pytest_configure() -> None:
    """Refuse to time the reference instead of the kernels, as ``python -m pytest`` would in a checkout."""
    package = Path(simmst.__file__).parent
    if package == Path(__file__).parents[1] / "simmst" and find_spec("simmst._cpu") is None:
        raise pytest.UsageError(
            f"simmst was imported from its sources in {package}, which hold no compiled modules: install it and start "
            "'pytest benchmarks', not 'python -m pytest benchmarks'"
        )


def pytest_sessionfinish() -> None:
    gate.keep_recording()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    table = gate.lines()
    if table:
        terminalreporter.section("simmst against its peers: ratio = peer's time / ours")
        for line in table:
            terminalreporter.line(line)
