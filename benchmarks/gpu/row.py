"""A line of the result: a case on a backend, with its figures or a problem. Does not import simmst."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpu.cases import Case


def row(case: Case, backend: str, *, problem: str = "", **found: Any) -> dict[str, Any]:
    """Return the row of a case that was measured, or of one with a problem."""
    line = {
        "case": case.name,
        "operator": case.operator,
        "dtype": str(case.dtype).removeprefix("torch."),
        "size": case.size,
        "peer": case.peer,
        "backend": backend,
        "floor": case.floors.get(backend),
        "share_floor": case.shares.get(backend),
        "problem": problem,
        **found,
    }
    line["short"] = not problem and _is_short(line)
    return line


def _is_short(line: Mapping[str, Any]) -> bool:
    """Whether a time was measured and falls short of the figure to reach."""
    pairs = (("ratio", "floor"), ("of_copy_bandwidth", "share_floor"))
    return any(
        line.get(name) is not None and line[floor] is not None and line[name] < line[floor] for name, floor in pairs
    )
