"""The ratios that were measured on a quiet machine, in recorded.json: the gate that later runs must pass.

    SIMMST_BENCH_RECORD=1 pytest benchmarks

writes them. Cases that did not run keep their ratio, unless the file is from another processor or instruction set.
``SIMMST_BENCH_RECORDED`` names another file.
"""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

from harness.machine import commit, instruction_set, processor
from simmst.foundation.files import write_json

# A case fails below this part of its recorded ratio, or of its floor if no ratio is recorded.
ROOM_FOR_NOISE = 0.7


def path() -> Path:
    return Path(os.environ.get("SIMMST_BENCH_RECORDED") or Path(__file__).with_name("recorded.json"))


def recording() -> bool:
    return os.environ.get("SIMMST_BENCH_RECORD", "") not in ("", "0")


def read() -> dict[str, Any]:
    """Return the file's content; empty if there is no file."""
    return dict(json.loads(path().read_text(encoding="utf-8"))) if path().exists() else {}


def _here() -> dict[str, str]:
    return {"cpu": processor(), "isa": instruction_set()}


def foreign(found: dict[str, Any]) -> str:
    """Return why the recorded ratios do not apply to this machine; empty if they do."""
    if not found:
        return f"there is no {path().name}"
    different = [
        f"{name} {found.get(name)!r}, here {here!r}" for name, here in _here().items() if found.get(name) != here
    ]
    return f"{path().name} was recorded on {' and '.join(different)}" if different else ""


class Limit(NamedTuple):
    """The ratio that a case must reach, and its source: ``"recorded"``, ``"floor"`` or ``"none"``."""

    ratio: float
    source: str


def limit(case: str, floor: float) -> Limit:
    """Return the limit of a case on this machine. A run that records has none."""
    if recording():
        return Limit(0.0, "none")
    found = read()
    ratios = {} if foreign(found) else found["ratios"]
    if case in ratios:
        return Limit(ROOM_FOR_NOISE * ratios[case], "recorded")
    return Limit(ROOM_FOR_NOISE * floor, "floor")


def write(ratios: dict[str, float], threads: int) -> Path:
    """Merge these ratios into the file; `threads` is the largest team among them."""
    found = read()
    kept = {} if foreign(found) else found["ratios"]
    content = {
        **_here(),
        "threads": threads,
        "torch": torch.__version__,
        "date": datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat(),
        "commit": commit(),
        "ratios": {**kept, **{case: round(ratio, 3) for case, ratio in ratios.items()}},
    }
    return write_json(path(), content)
