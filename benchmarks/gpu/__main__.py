"""Install, check, tune and time the GPU kernels on a machine with a GPU, in one go and without a network.

    python benchmarks gpu                  everything, inside eight minutes
    python benchmarks gpu --tune           also tries the launch configurations and writes the measured tables
    python benchmarks gpu --dry-run        the same program on the CPU with tiny shapes; its figures mean nothing
    python benchmarks gpu --apply FILE     write the tables of a tuned run on another machine into this tree

Needs torch, triton, numpy, pytest, pytest-benchmark, pybind11, scikit-build-core (with CMake), and nvcc for the backend
"cuda". Prints one table and writes JSON to --out, else to $OUT/gpu.json, else to runs/gpu.json; what a stage found
before it failed or ran out of time is kept. A ratio under the one to reach is marked SHORT and is no failure.
Exit code: 0, or 1 where a stage failed or a case could not be timed, 2 for wrong arguments, 3 without a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import harness
from gpu import budget, report
from gpu.budget import Command, Outcome, Stage
from harness.machine import commit, said

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = (sys.executable, str(ROOT / "benchmarks"))
BACKENDS = ("triton", "cuda")
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
    with tempfile.TemporaryDirectory(prefix="simmst-gpu-") as folder:
        run = Run(options, Path(folder))
        outcomes = budget.run_all(run.stages(), options.budget, after=run.keep)
        result = run.result(outcomes)
        if result["tuned"]:
            run.write_tables(ROOT)
    for line in [*report.table(result["rows"]), *report.summary(result), f"written: {options.out}"]:
        print(line)
    return 0 if all(outcome.good for outcome in outcomes) else 1


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = harness.parser("gpu", __doc__)
    parser.add_argument("--out", type=Path, help="the JSON file")
    parser.add_argument("--budget", type=float, default=470.0, metavar="SECONDS", help="for all stages together (470)")
    parser.add_argument("--only", default="", metavar="TEXT", help="time the cases with this in their name")
    parser.add_argument("--tune", action="store_true", help="try the configurations and write the measured tables")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU, nothing installed")
    parser.add_argument("--installed", action="store_true", help="use the simmst that is installed")
    parser.add_argument("--skip", nargs="+", default=[], choices=STAGES, help="stages to leave out")
    parser.add_argument("--commit", help="what to call the tree where git cannot be asked")
    parser.add_argument("--apply", type=Path, metavar="FILE", help="write the tables of that result and stop")
    parser.add_argument("--root", type=Path, default=ROOT, help="with --apply: the tree, or where simmst is installed")
    options = parser.parse_args(arguments)
    if options.budget <= 0:
        parser.error(f"--budget must be positive, got {options.budget:g}")
    if options.apply and not options.apply.is_file():
        parser.error(f"--apply: there is no file {options.apply}")
    if options.tune and options.dry_run:
        parser.error("--tune measures, --dry-run does not: use one of them")
    out = Path(os.environ.get("OUT") or ROOT / "runs") / "gpu.json"
    options.out = (options.out or out).resolve()
    return options


# In this order. The weights share the time that is left: see budget.allotment.
STAGES = ("install", "machine", "suite", "sanitizers", "tune", "benchmarks")
_WATCHED = (("memcheck", "triton"), ("memcheck", "cuda"), ("racecheck", "cuda"), ("initcheck", "cuda"))
_WEIGHTS = {"machine": 20, "install": 120, "suite": 120, "sanitizers": 60, "tune": 120, "benchmarks": 150}


class Run:
    """The stages of one run, and what they have left in its folder."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.device = "cpu" if options.dry_run else "cuda"
        # A path that is not there where simmst is installed already.
        self.site = folder / "site"
        self.environment = {"PYTHONPATH": os.pathsep.join([str(self.site), os.environ.get("PYTHONPATH", "")])}
        self.about = _about(options)

    def stages(self) -> list[Stage]:
        commands: dict[str, Callable[[], list[Command]]] = {
            "machine": lambda: [self._child("machine")],
            "install": lambda: [self._pip()],
            "suite": self._suite,
            "sanitizers": self._sanitizers,
            "tune": lambda: [self._child("tune", *self._only())],
            "benchmarks": lambda: [self._child("benchmarks", *self._only(), *self._scale())],
        }
        skipped = set(self.options.skip)
        if self.options.installed or self.options.dry_run:
            skipped.add("install")
        if not self.options.tune:
            skipped.add("tune")
        if self.options.dry_run:
            skipped |= {"suite", "sanitizers"}
        needs = {"install": (), "benchmarks": ("install", "machine")}
        absent = {} if shutil.which("compute-sanitizer") else {"sanitizers": "there is no compute-sanitizer on PATH"}
        return [
            Stage(name, _WEIGHTS[name], commands[name], needs.get(name, ("install",)), absent.get(name, ""))
            for name in STAGES
            if name not in skipped
        ]

    def _child(self, stage: str, *arguments: str, name: str = "", **environment: str) -> Command:
        name = name or stage
        result = str(self.folder / f"{name}.jsonl")
        site = [] if self.options.installed or self.options.dry_run else ["--site", str(self.site)]
        argv = [*PROGRAMS, "gpu.child", stage, result, "--device", self.device, *site, *arguments]
        return Command(name, argv, {**self.environment, **environment}, str(self.folder))

    def _only(self) -> list[str]:
        return ["--only", self.options.only, "--machine", str(self.folder / "machine.jsonl")]

    def _scale(self) -> list[str]:
        return ["--scale", "tiny", "--backends", "reference,cpu,triton,cuda"] if self.options.dry_run else []

    def _pip(self) -> Command:
        """Compiled for this GPU alone; the C++ kernels, which are not timed here, for one instruction set."""
        major, minor = torch.cuda.get_device_capability()
        argv = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation"]
        argv += ["--target", str(self.site), "-C", f"build-dir={self.folder / 'build'}"]
        argv += ["-C", "cmake.define.SIMMST_ISAS=portable", "-C", "cmake.define.SIMMST_CUDA_CHECKS=ON", str(ROOT)]
        nvcc = _nvcc()
        environment = {"CUDAARCHS": f"{major}{minor}-real", "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 2)}
        environment |= {"SIMMST_CUDA": "ON", "CUDACXX": nvcc} if nvcc else {"SIMMST_CUDA": "OFF"}
        return Command("pip install", argv, environment, str(self.folder))

    def _suite(self) -> list[Command]:
        """Each file and backend in a process of its own, beside each other."""
        files = [path for path in sorted((ROOT / "tests/gpu").glob("test_*.py")) if path.name != "test_processes.py"]
        # What CUDA kernels are written in, word by word: whether the emulator that they were tested in is right.
        words = ROOT / "tests/native/cuda/test_device.py"
        return [
            self._child(
                "suite",
                "--file",
                str(path),
                "--backends",
                backend,
                name=f"suite-{path.stem.removeprefix('test_')}-{backend}",
                SIMMST_GPU_BACKENDS=backend,
            )
            for path, backend in (*itertools.product(files, BACKENDS), (words, "cuda"))
        ]

    def _sanitizers(self) -> list[Command]:
        found = []
        for tool, backend in _WATCHED:
            # Without torch's pool, in which a read beyond one tensor ends in another.
            alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            child = self._child("small", "--backends", backend, name=f"{tool}-{backend}", **alone)
            # Races and uninitialised reads of our own kernels alone.
            ours = [] if tool == "memcheck" else ["--kernel-name", "kernel_substring=simmst"]
            argv = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *ours, *child.argv]
            found.append(child._replace(argv=argv))
        return found

    def keep(self, outcomes: list[Outcome]) -> None:
        result = self.result(outcomes)
        report.write(self.options.out, result)
        if outcomes[-1].stage == "tune" and result["tuned"] and self.site.exists():
            self.write_tables(self.site)  # the benchmarks that follow run what was found

    def result(self, outcomes: list[Outcome]) -> dict[str, Any]:
        machine = self._lines("machine")
        return {
            **self.about,
            "machine": machine[-1] if machine else None,
            "stages": [outcome.as_dict() for outcome in outcomes],
            "suite": [line for path in sorted(self.folder.glob("suite-*.jsonl")) for line in self._lines(path.stem)],
            "rows": self._lines("benchmarks"),
            "tuned": self._lines("tune"),
        }

    def _lines(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / f"{name}.jsonl"
        # A process that was killed may have left half a line at the end.
        whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
        return [json.loads(line) for line in whole.splitlines()]

    def write_tables(self, root: Path) -> None:
        command = [*PROGRAMS, "gpu", "--apply", str(self.options.out), "--root", str(root)]
        subprocess.run(command, env={**os.environ, **self.environment}, cwd=self.folder, check=True)


def _apply(path: Path, root: Path) -> int:
    from gpu import tuning  # it needs simmst

    try:
        written = tuning.apply(json.loads(path.read_text()), [root])
    except ValueError as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 1
    print("\n".join(f"written: {each}" for each in written))
    return 0


def _about(options: argparse.Namespace) -> dict[str, Any]:
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {package: _version(package) for package in ("triton", "numpy")}
    if nvcc := _nvcc():
        versions["nvcc"] = said([nvcc, "--version"]).rpartition("release ")[2].partition(",")[0]
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


def _nvcc() -> str | None:
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
