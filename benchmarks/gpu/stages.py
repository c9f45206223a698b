"""The stages of a run, the most reliable figures first, and the results so far."""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from gpu import budget, cases, host, report, series
from gpu.budget import Command, Ended, Outcome, Stage
from gpu.install import Installation, wheels_at
from gpu.row import row
from gpu.series import Part

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = (sys.executable, str(ROOT / "benchmarks"))
SURE = cases.PLANES  # the operator that is measured first, on every backend
# The order of the stages. A stage named after a backend times that backend on the operators that "planes" leaves out.
STAGES = ("install", "machine", "planes", "cuda", "compile", "tune", "triton", "cpu", "reference", "host", "suite")
STAGES += ("sanitizers",)
ASKED_FOR = ("tune", "sanitizers")  # run only if they are named
# The weights divide the remaining time: see budget.allotment. A stage that is not listed has 80.
_WEIGHTS = {"install": 300, "machine": 15, "planes": 40, "compile": 60, "host": 25, "suite": 90, "tune": 200}
_WATCHED = (("memcheck", "triton"), ("memcheck", "cuda"), ("racecheck", "cuda"), ("initcheck", "cuda"))
_THREADS = 2  # host threads per process, because many run in parallel


class Run:
    """The stages of one run, and their results in its folder."""

    def __init__(self, options: argparse.Namespace, folder: Path, about: dict[str, Any]) -> None:
        self.options, self.folder, self.about = options, folder, about
        self.device = "cpu" if options.dry_run else "cuda"
        # This folder does not exist if simmst is installed already.
        self.site = folder / "site"
        self.environment = {
            "PYTHONPATH": os.pathsep.join([str(self.site), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": str(min(_THREADS, int(os.environ.get("OMP_NUM_THREADS") or _THREADS))),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            "TRITON_CACHE_DIR": str(folder / "triton"),
        }
        self.installs = "install" in options.stages
        self.outcomes: list[Outcome] = []
        self._read: dict[str, int] = {}  # bytes of each file of lines that were printed

    # What runs

    def stages(self) -> list[Stage]:
        runs: dict[str, Callable[[float], Sequence[Ended]]] = {
            "install": self._install,
            "machine": self._beside(lambda: [self._child("machine")]),
            "compile": self._beside(self.compile_commands),
            "tune": self._beside(self.tune_commands),
            "suite": self._beside(self.suite_commands),
            "sanitizers": self._beside(self.sanitizer_commands),
        }
        measuring = {"planes": self.planes, "host": self.host}
        measuring |= {backend: functools.partial(self.others, backend) for backend in self.options.backends}
        runs |= {name: functools.partial(self._in_turn, parts) for name, parts in measuring.items() if parts()}
        if "triton" not in runs:
            del runs["compile"]
        absent = {} if shutil.which("compute-sanitizer") else {"sanitizers": "there is no compute-sanitizer on PATH"}
        return [
            Stage(name, _WEIGHTS.get(name, 80), runs[name], absent.get(name, ""))
            for name in STAGES
            if name in self.options.stages and name in runs
        ]

    def _beside(self, commands: Callable[[], list[Command]]) -> Callable[[float], Sequence[Ended]]:
        return lambda seconds: budget.run_beside(commands(), seconds, self.watch)

    def _in_turn(self, parts: Callable[[], list[Part]], seconds: float) -> Sequence[Ended]:
        """Produce the rows of all parts; if cuda was not built, its rows say why."""
        found: list[Ended] = []
        wanted, problem = parts(), self._without_cuda()
        if problem:
            for part in (part for part in wanted if part.result.stem.endswith("-cuda")):
                series.give_up(part, problem)
                found.append(Ended(part.result.stem, 1, 0.0, problem))
            wanted = [part for part in wanted if not part.result.stem.endswith("-cuda")]
        return [*found, *series.run_in_turn(wanted, seconds, watch=self.watch)]

    def _without_cuda(self) -> str:
        lines = self._lines("install")
        return str(lines[-1]["problem"]) if lines else ""

    def _child(self, stage: str, *arguments: str, name: str = "", **environment: str) -> Command:
        name = name or stage
        result = str(self.folder / f"{name}.jsonl")
        site = ["--site", str(self.site)] if self.installs else []
        argv = [*PROGRAMS, "gpu.child", stage, result, "--device", self.device, *site, *arguments]
        return Command(name, argv, {**self.environment, **environment}, str(self.folder))

    def installation(self) -> Installation:
        architecture = "" if self.options.dry_run else "".join(map(str, torch.cuda.get_device_capability()))
        wheels = wheels_at(self.options.wheel)
        return Installation(ROOT, self.site, self.options.out.parent, architecture, wheels, self.watch)

    def _install(self, seconds: float) -> Sequence[Ended]:
        def keep(found: dict[str, Any]) -> None:
            self._append("install", found)
            self.watch()

        return self.installation().run(seconds, keep, limit=self.options.build_seconds)

    def _part(self, stage: str, chosen: list[Any], among: Sequence[Any], name: str, backend: str, lost: Any) -> Part:
        machine = ["--machine", str(self.folder / "machine.jsonl")] if self._lines("machine") else []
        scale = ["--scale", "tiny"] if self.options.dry_run else []

        def command(left: Sequence[Any]) -> Command:
            places = ",".join(str(among.index(case)) for case in left)
            return self._child(stage, "--backends", backend, "--cases", places, *machine, *scale, name=name)

        return Part(chosen, self.folder / f"{name}.jsonl", command, lost)

    def _rows(self, operator: str, backend: str) -> Iterator[Part]:
        chosen = [case for case in cases.chosen(self.options.only) if case.operator == operator]
        if chosen:
            name = f"rows-{operator}-{backend}"
            yield self._part(
                "benchmarks",
                chosen,
                cases.CASES,
                name,
                backend,
                lambda case, problem: row(case, backend, problem=problem),
            )

    def planes(self) -> list[Part]:
        late = {"triton"} if "tune" in self.options.stages else set()
        return [part for backend in self.options.backends if backend not in late for part in self._rows(SURE, backend)]

    def others(self, backend: str) -> list[Part]:
        others = (cases.SPARSE, cases.SPATIAL)
        operators = (SURE, *others) if backend == "triton" and "tune" in self.options.stages else others
        return [part for operator in operators for part in self._rows(operator, backend)]

    def host(self) -> list[Part]:
        chosen = [each for each in host.SMALL if self.options.only.lower() in each.small.name.lower()]

        def part(backend: str) -> Part:
            lost = lambda measure, problem: host.line(measure, backend, problem=problem)  # noqa: E731
            return self._part("host", chosen, host.SMALL, f"host-{backend}", backend, lost)

        return [part(backend) for backend in self.options.backends] if chosen else []

    def compile_commands(self) -> list[Command]:
        """Return commands that compile Triton's kernels before they are timed: one process per case, in parallel."""
        tuned = "tune" in self.options.stages
        return [
            self._child(
                *("compile", "--backends", "triton", "--cases", str(place)),
                *(
                    "--configurations",
                    "all" if tuned else "chosen",
                    *(["--scale", "tiny"] if self.device == "cpu" else []),
                ),
                name=f"compile-{place}",
            )
            for place, case in enumerate(cases.CASES)
            if case in cases.chosen(self.options.only) and (tuned or case.operator != SURE)
        ]

    def tune_commands(self) -> list[Command]:
        places = [str(cases.CASES.index(case)) for case in cases.chosen(self.options.only)]
        return [self._child("tune", "--cases", ",".join(places))]

    def suite_commands(self) -> list[Command]:
        """Return one command per file and backend, to run in parallel."""
        files = [path for path in sorted((ROOT / "tests/gpu").glob("test_*.py")) if path.name != "test_processes.py"]
        # Tests of the CUDA kernels' primitives, one by one. They show whether the emulator, in which the kernels were
        # tested, is right.
        words = ROOT / "tests/native/cuda/test_device.py"
        pairs = [*itertools.product(files, self.options.backends)]
        pairs += [(words, "cuda")] if "cuda" in self.options.backends else []
        # cuBLAS gives the same bits only with this variable, and without it torch refuses when asked for the same bits.
        same_bits = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        return [
            self._child(
                "suite",
                "--file",
                str(path),
                "--backends",
                backend,
                name=f"suite-{path.stem.removeprefix('test_')}-{backend}",
                SIMMST_GPU_BACKENDS=backend,
                **same_bits,
            )
            for path, backend in pairs
        ]

    def sanitizer_commands(self) -> list[Command]:
        found = []
        for tool, backend in _WATCHED:
            if backend not in self.options.backends:
                continue
            # Turn off torch's pool, because a read beyond one tensor of the pool ends in another tensor.
            alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            child = self._child("small", "--backends", backend, name=f"{tool}-{backend}", **alone)
            # Look for races and uninitialised reads only in our own kernels.
            ours = [] if tool == "memcheck" else ["--kernel-name", "kernel_substring=simmst"]
            argv = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *ours, *child.argv]
            found.append(child._replace(argv=argv))
        return found

    # Results

    def watch(self) -> None:
        """Print and keep every new line, so that the file has all results so far, however this run ends."""
        new: list[str] = []
        for path in sorted(self.folder.glob("*.jsonl")):
            read = self._read.get(path.name, 0)
            if path.stat().st_size <= read:
                continue
            with path.open("rb") as file:
                file.seek(read)
                whole = file.read().rpartition(b"\n")[0]
            if not whole:
                continue
            self._read[path.name] = read + len(whole) + 1
            new += (report.told(path.stem, json.loads(line)) for line in whole.splitlines())
        if new:
            self.keep(self.outcomes)
            print("\n".join(new), flush=True)

    def keep(self, outcomes: list[Outcome]) -> None:
        self.outcomes = outcomes
        result = self.result()
        report.write(self.options.out, result)
        if outcomes and outcomes[-1].stage == "tune" and result["tuned"] and self.site.exists():
            self.write_tables(self.site)  # so that the later benchmarks use the configurations found

    def result(self) -> dict[str, Any]:
        machine, install = self._lines("machine"), self._lines("install")
        return {
            **self.about,
            "machine": machine[-1] if machine else None,
            "installed": install[-1] if install else None,
            "stages": [outcome.as_dict() for outcome in self.outcomes],
            "suite": self._all("suite"),
            "rows": self._all("rows"),
            "host": host.together(self._all("host")),
            "tuned": self._lines("tune"),
        }

    def _all(self, start: str) -> list[dict[str, Any]]:
        paths = sorted(self.folder.glob(f"{start}-*.jsonl"), key=lambda path: path.stat().st_ctime_ns)
        return [line for path in paths for line in self._lines(path.stem)]

    def _append(self, name: str, found: dict[str, Any]) -> None:
        with (self.folder / f"{name}.jsonl").open("a") as file:
            file.write(json.dumps(found) + "\n")

    def _lines(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / f"{name}.jsonl"
        # A process that was killed may have left half a line at the end.
        whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
        return [json.loads(line) for line in whole.splitlines()]

    def write_tables(self, root: Path) -> None:
        command = [*PROGRAMS, "gpu", "--apply", str(self.options.out), "--root", str(root)]
        subprocess.run(command, env={**os.environ, **self.environment}, cwd=self.folder, check=True)
