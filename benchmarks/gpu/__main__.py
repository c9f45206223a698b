"""Install, check, tune and time the GPU kernels on a machine with a GPU, in one go and without a network.

    python benchmarks gpu                  everything except tuning and sanitizers, within ten minutes
    python benchmarks gpu --wheel FOLDER   installs a wheel that an earlier run has built, if it is of these sources
    python benchmarks gpu --stages install cuda --only spatial      a part of it
    python benchmarks gpu --tune           also tries the launch configurations and writes the measured tables
    python benchmarks gpu --dry-run        the same program on the CPU with tiny shapes; its figures mean nothing
    python benchmarks gpu --apply FILE     writes the tables of a run on another machine into this tree

Needs torch, triton, numpy, pytest, pytest-benchmark, pybind11, scikit-build-core (with CMake), and nvcc for the backend
"cuda" if no wheel has it. Stages run in this order: install, machine, planes (every backend), cuda, compile (Triton,
ahead of its timing), tune, triton, host, suite, sanitizers. Each figure is printed and written as soon as it is
measured, to --out, else to $OUT/gpu.json, else to runs/gpu.json, with the built wheel beside it, so that a run may be
cut off at any moment. A ratio below the one to reach is marked SHORT, but is not a failure.
Exit code: 0; 1 if a stage failed or a case could not be timed; 2 for wrong arguments; 3 without a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import harness
from gpu import budget, cases, report
from gpu.install import find_nvcc
from gpu.stages import ASKED_FOR, ROOT, STAGES, Run
from harness.machine import commit, said

NO_GPU = 3


def main(arguments: list[str]) -> int:
    options = _arguments(arguments)
    if options.apply:
        return _apply(options.apply, options.root)
    if not options.dry_run and not torch.cuda.is_available():
        print(
            f"no GPU here: torch {torch.__version__} sees no CUDA device. Run this on a machine with one "
            "(compute capability 8.0 or newer), or try the program itself with --dry-run.",
            file=sys.stderr,
        )
        return NO_GPU
    _take_newer_assembler()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that its processes end with it
    with tempfile.TemporaryDirectory(prefix="simmst-gpu-") as folder:
        run = Run(options, Path(folder), _about(options))
        outcomes = budget.run_all(run.stages(), options.budget, after=run.keep, tell=_tell)
        result = run.result()
        if result["tuned"]:
            run.write_tables(ROOT)
    lines = [*report.table(result["rows"]), *report.host_table(result["host"]), *report.summary(result)]
    _tell("\n".join([*lines, f"written: {options.out}"]))
    return 0 if all(outcome.good for outcome in outcomes) else 1


def _tell(text: str) -> None:
    print(text, flush=True)


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = harness.parser("gpu", __doc__)
    parser.add_argument("--out", type=Path, help="the JSON file")
    parser.add_argument("--budget", type=float, default=560.0, metavar="SECONDS", help="for all stages together (560)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, help="only these; tune and sanitizers must be named")
    parser.add_argument("--skip", nargs="+", default=[], choices=STAGES, help="stages to leave out")
    parser.add_argument("--backends", nargs="+", choices=("cuda", "triton", "cpu", "reference"), help="only these")
    parser.add_argument("--only", default="", metavar="TEXT", help="time only cases with this in their name")
    parser.add_argument("--tune", action="store_true", help="try the configurations and write the measured tables")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU, nothing installed")
    parser.add_argument("--installed", action="store_true", help="use the installed simmst")
    parser.add_argument("--wheel", type=Path, help="a wheel, or a folder of wheels, to install if it fits")
    parser.add_argument("--build-seconds", type=float, default=float("inf"), metavar="SECONDS", help="for the build")
    parser.add_argument("--commit", help="name of the tree's commit, where git cannot tell it")
    parser.add_argument("--apply", type=Path, metavar="FILE", help="write the tables of that result and stop")
    parser.add_argument("--root", type=Path, default=ROOT, help="with --apply: the tree, or where simmst is installed")
    options = parser.parse_args(arguments)
    if options.budget <= 0:
        parser.error(f"--budget must be positive, got {options.budget:g}")
    if options.apply and not options.apply.is_file():
        parser.error(f"--apply: there is no file {options.apply}")
    if options.tune and options.dry_run:
        parser.error("--tune measures, --dry-run does not: use one of them")
    try:
        cases.chosen(options.only)
    except ValueError as error:
        parser.error(f"--only: {error}")
    options.stages = _stages(options)
    on_device = ("cpu", "reference") if options.dry_run else ("cuda", "triton")
    options.backends = [name for name in STAGES if name in (options.backends or on_device)]
    out = Path(os.environ.get("OUT") or ROOT / "runs") / "gpu.json"
    options.out = (options.out or out).resolve()
    options.wheel = options.wheel and options.wheel.resolve()  # other processes read it from their own folders
    return options


def _stages(options: argparse.Namespace) -> set[str]:
    """Return the names of the stages to run."""
    if options.stages:
        found = set(options.stages)
    else:
        found = set(STAGES) - set(ASKED_FOR)
        if options.dry_run:
            found -= {"install", "compile", "suite"}
        if options.installed:
            found -= {"install"}
    return (found | ({"tune"} if options.tune else set())) - set(options.skip)


def _apply(path: Path, root: Path) -> int:
    from gpu import tuning  # it needs simmst

    try:
        written = tuning.apply(json.loads(path.read_text()), [root])
    except ValueError as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 1
    print("\n".join(f"written: {each}" for each in written))
    return 0


def _take_newer_assembler() -> None:
    """Let Triton assemble with CUDA's ptxas if that comes from CUDA 13 or newer; see simmst/kernels/assembler.py."""
    nvcc = find_nvcc()
    ptxas = Path(nvcc).with_name("ptxas") if nvcc else None
    if ptxas and ptxas.is_file() and "release 12" not in said([str(ptxas), "--version"]):
        os.environ.setdefault("TRITON_PTXAS_PATH", str(ptxas))


def _about(options: argparse.Namespace) -> dict[str, Any]:
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {package: _version(package) for package in ("triton", "numpy")}
    for tool, path in (("nvcc", find_nvcc()), ("ptxas of Triton", os.environ.get("TRITON_PTXAS_PATH"))):
        if path:
            versions[tool] = said([path, "--version"]).rpartition("release ")[2].partition(",")[0]
    gpu = not options.dry_run
    driver = said(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]) if gpu else "none"
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "commit": options.commit or commit(),
        "device": torch.cuda.get_device_name() if gpu else f"CPU {platform.machine()}",
        "driver": driver or "unknown",
        "versions": versions,
        "dry_run": options.dry_run,
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
