"""The stages of a run that need simmst, each in a process of its own: ``python benchmarks gpu`` starts them.

    python benchmarks gpu.child machine | benchmarks | tune | small | suite RESULT [options]

RESULT gets one JSON line for everything found, as soon as it is found: a process that is killed leaves its part.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import harness
import simmst
from gpu import cases, measure, tuning
from simmst.ops import backends


def main(arguments: list[str]) -> int:
    parser = harness.parser("gpu.child", __doc__)
    parser.add_argument("stage", choices=sorted(_STAGES))
    parser.add_argument("result", type=Path)
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--scale", default="full", choices=("full", "tiny"))
    parser.add_argument("--backends", default="triton,cuda")
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--machine", type=Path, help="what the stage machine wrote")
    parser.add_argument("--file", help="of the suite")
    parser.add_argument("--site", type=Path, help="where simmst was installed to be measured")
    options = parser.parse_args(arguments)
    if options.site and not Path(simmst.__file__).is_relative_to(options.site):
        print(
            f"simmst was imported from {Path(simmst.__file__).parent}, not from {options.site}, where it was just "
            "installed: uninstall the other one (an editable one comes first), or measure it with --installed"
        )
        return 1

    def keep(found: dict[str, Any]) -> None:
        with options.result.open("a") as file:
            file.write(json.dumps(found) + "\n")

    return _STAGES[options.stage](options, keep)


Keep = Callable[[dict[str, Any]], None]


def _machine(options: argparse.Namespace, keep: Keep) -> int:
    keep(measure.Ceilings.measure(options.device)._asdict())
    return 0


def _benchmarks(options: argparse.Namespace, keep: Keep) -> int:
    if options.machine and options.machine.exists():
        ceilings = measure.Ceilings(**json.loads(options.machine.read_text().splitlines()[-1]))
    else:
        ceilings = measure.Ceilings.measure(options.device)
    problems = []

    def keep_row(row: dict[str, Any]) -> None:
        keep(row)
        problems.append(row["problem"])
        print(row["case"], row["backend"], row["problem"] or f"{row['ratio']:.2f}", flush=True)

    chosen = cases.chosen(options.only)
    if options.device.type == "cuda":
        measure.rows(chosen, options.backends.split(","), options.device, options.scale, ceilings, keep=keep_row)
    else:
        for case in chosen:
            able = _able(case.operator, options)
            measure.rows([case], able, options.device, options.scale, ceilings, seconds=0.02, keep=keep_row)
    return 1 if any(problems) or not problems else 0


def _able(operator: str, options: argparse.Namespace) -> list[str]:
    """The backends that run an operator here, for a run on the CPU, where few do."""
    return [
        name
        for name in options.backends.split(",")
        if backends.why_not(operator, name, device=options.device, dtype=torch.float32) is None
    ]


def _tune(options: argparse.Namespace, keep: Keep) -> int:
    tuning.tune(cases.chosen(options.only), options.device, options.scale, keep=keep)
    return 0


def _small(options: argparse.Namespace, keep: Keep) -> int:
    """Every case once at small shapes, for a sanitizer to watch."""
    for case in cases.chosen(options.only):
        for backend in options.backends.split(","):
            case.build(options.device, "tiny").results(backend)
            torch.cuda.synchronize(options.device)
            keep({"case": case.name, "backend": backend})
    return 0


class _Counts:
    """A plugin of pytest that counts how tests end, and keeps the names of those that fail at once."""

    def __init__(self, keep: Keep) -> None:
        self.keep = keep
        self.ended = {"passed": 0, "failed": 0, "skipped": 0}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.ended[report.outcome] += 1
        if report.outcome == "failed":
            self.keep({"failed": report.nodeid})


def _suite(options: argparse.Namespace, keep: Keep) -> int:
    """One file of tests/gpu; a run in which nothing passes has not passed."""
    counts = _Counts(keep)
    code = pytest.main(["-q", "--maxfail=10", "-p", "no:cacheprovider", options.file], plugins=[counts])
    keep({"file": Path(options.file).name, "backends": options.backends, **counts.ended})
    return int(code) or (0 if counts.ended["passed"] else 1)


_STAGES = {"machine": _machine, "benchmarks": _benchmarks, "tune": _tune, "small": _small, "suite": _suite}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
