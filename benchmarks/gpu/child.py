"""The stages of a run that need simmst, each in its own process: ``python benchmarks gpu`` starts them.

    python benchmarks gpu.child machine | benchmarks | host | compile | tune | small | suite RESULT [options]

RESULT gets one JSON line per result, as soon as it is found: a process that is killed leaves the lines so far.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import harness
import simmst
from gpu import cases, host, measure, tuning

LOST = 4  # exit code for a GPU that this process can no longer use: another process must take over


def main(arguments: list[str]) -> int:
    parser = harness.parser("gpu.child", __doc__)
    parser.add_argument("stage", choices=sorted(_STAGES))
    parser.add_argument("result", type=Path)
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--scale", default="full", choices=("full", "tiny"))
    parser.add_argument("--backends", default="cuda,triton", type=lambda names: names.split(","))
    parser.add_argument("--cases", help="places in the list of cases, with commas; default: all")
    parser.add_argument("--machine", type=Path, help="result of the stage machine")
    parser.add_argument("--configurations", default="chosen", choices=("chosen", "all"), help="those to compile")
    parser.add_argument("--file", help="file of the suite")
    parser.add_argument("--site", type=Path, help="folder where simmst was installed for this run")
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


def _chosen(options: argparse.Namespace, among: Sequence[Any] = cases.CASES) -> list[Any]:
    places = range(len(among)) if options.cases is None else map(int, options.cases.split(","))
    return [among[place] for place in places]


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

    seconds = 1.0 if options.device.type == "cuda" else 0.02
    try:
        measure.rows(
            _chosen(options), options.backends, options.device, options.scale, ceilings, seconds=seconds, keep=keep_row
        )
    except measure.DeviceLostError as error:
        print(error)
        return LOST
    return 1 if any(problems) or not problems else 0


def _host(options: argparse.Namespace, keep: Keep) -> int:
    problems = []
    for measured in _chosen(options, host.SMALL):
        for backend in options.backends:
            found = host.measure(measured, backend, options.device)
            keep(found)
            problems.append(found["problem"])
    return 1 if any(problems) or not problems else 0


def _compile(options: argparse.Namespace, keep: Keep) -> int:
    """Compile everything that a case needs, so that it is in the compiler's cache when the case is timed."""
    for case in _chosen(options):
        work = case.build(options.device, options.scale)
        for backend in options.backends:
            tuning.compile_all(work, backend, whatever=options.configurations == "all")
            keep({"case": case.name, "backend": backend})
    return 0


def _tune(options: argparse.Namespace, keep: Keep) -> int:
    tuning.tune(_chosen(options), options.device, options.scale, keep=keep)
    return 0


def _small(options: argparse.Namespace, keep: Keep) -> int:
    """Run every case once at small shapes, for a sanitizer to watch."""
    for case in _chosen(options):
        for backend in options.backends:
            case.build(options.device, "tiny").results(backend)
            torch.cuda.synchronize(options.device)
            keep({"case": case.name, "backend": backend})
    return 0


class _Counts:
    """A pytest plugin that counts outcomes, and keeps failures with their messages at once."""

    def __init__(self, keep: Keep) -> None:
        self.keep = keep
        self.ended = {"passed": 0, "failed": 0, "skipped": 0}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.ended[report.outcome] += 1
        if report.outcome == "failed":
            crash = getattr(report.longrepr, "reprcrash", None)
            self.keep({"failed": report.nodeid, "words": str(crash.message if crash else report.longrepr)[:600]})


def _suite(options: argparse.Namespace, keep: Keep) -> int:
    """Run one file of tests/gpu; a run in which no test passes counts as failed."""
    import pytest

    counts = _Counts(keep)
    code = pytest.main(["-q", "--maxfail=10", "-p", "no:cacheprovider", options.file], plugins=[counts])
    keep({"file": Path(options.file).name, "backends": ",".join(options.backends), **counts.ended})
    return int(code) or (0 if counts.ended["passed"] else 1)


_STAGES = {
    "machine": _machine,
    "benchmarks": _benchmarks,
    "host": _host,
    "compile": _compile,
    "tune": _tune,
    "small": _small,
    "suite": _suite,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
