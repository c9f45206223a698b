"""One table of all cases at the end of a run, and the recording of their ratios."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # harness, machine and recorded, for the benchmarks as well
import harness


def pytest_sessionfinish() -> None:
    harness.keep_recording()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    table = harness.lines()
    if table:
        terminalreporter.section("simmst against its peers: ratio = peer's time / ours")
        for line in table:
            terminalreporter.line(line)
