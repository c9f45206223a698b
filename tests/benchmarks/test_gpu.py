"""`python benchmarks gpu` without a GPU: its arguments, stages and cases, what it times, and a dry run."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gpu import budget, cases
from gpu.stages import Run
from harness import checks
from simmst.ops.backends import GPU_OPERATORS

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
ABOUT = (
    "benchmarks/gpu",
    "benchmarks/harness",
    "csrc",
    "kernels",
    "simmst/core",
    "simmst/native",
    "simmst/ops",
    "simmst/reference",
)
CPU = torch.device("cpu")
RESULT_PARTS = {"date", "commit", "device", "driver", "versions", "dry_run"}
RESULT_PARTS |= {"machine", "installed", "stages", "rows", "host", "suite", "tuned"}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    worlds = ("TRITON_INTERPRET", "SIMMST_CUDA_EMULATION", "SIMMST_BACKEND", "OUT")
    clean = {name: value for name, value in os.environ.items() if name not in worlds}
    return subprocess.run(
        [sys.executable, str(BENCHMARKS), "gpu", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**clean, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **environment},
    )


# The program


def test_without_a_gpu_it_says_so_and_what_to_do() -> None:
    found = run()
    assert found.returncode == 3
    assert "no GPU here: torch" in found.stderr
    assert "--dry-run" in found.stderr
    assert found.stdout == ""


def test_help_says_how_to_run_it() -> None:
    found = run("--help")
    assert found.returncode == 0
    for word in ("--tune", "--budget", "--dry-run", "--apply", "--wheel", "within ten minutes"):
        assert word in found.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "0"], "--budget must be positive, got 0"),
        (["--tune", "--dry-run"], "use one of them"),
        (["--apply", "nowhere.json"], "there is no file nowhere.json"),
        (["--skip", "sleep"], "invalid choice: 'sleep'"),
        (["--only", "no such case"], "the cases are: ProbSparse forward"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], message: str) -> None:
    found = run(*arguments)
    assert found.returncode == 2
    assert message in found.stderr


@pytest.mark.slow(of=ABOUT)
def test_a_dry_run_goes_through_every_case_and_keeps_what_it_found(tmp_path: Path) -> None:
    found = run("--dry-run", "--commit", "abc", OUT=str(tmp_path))
    assert found.returncode == 0, found.stdout + found.stderr
    assert "DRY RUN on the CPU" in found.stdout
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert set(result) == RESULT_PARTS
    assert (result["commit"], result["dry_run"]) == ("abc", True)
    assert [(stage["stage"], stage["state"]) for stage in result["stages"]] == [
        (name, "passed") for name in ("machine", "planes", "cpu", "reference", "host")
    ]
    assert {row["case"] for row in result["rows"]} == {case.name for case in cases.CASES}
    assert {"reference", "cpu"} <= {row["backend"] for row in result["rows"]}
    assert not any(row["problem"] for row in result["rows"])
    refused = run("--apply", str(tmp_path / "gpu.json"))
    assert refused.returncode == 1
    assert "holds no measured tables: it was a dry run" in refused.stderr


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Run]:
    """A run on a pretended GPU."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr("shutil.which", lambda name, path=None: f"/bin/{name}")
    from gpu import __main__ as gpu

    return lambda *arguments: gpu.Run(gpu._arguments([*arguments]), tmp_path, {})


def test_the_stages_go_from_what_is_sure_to_what_is_not(on_a_gpu: Callable[..., Run]) -> None:
    def names(*arguments: str) -> list[str]:
        return [stage.name for stage in on_a_gpu(*arguments).stages()]

    everything = ["install", "machine", "planes", "cuda", "compile", "triton", "host", "suite"]
    assert names() == everything
    assert names("--tune") == [*everything[:5], "tune", *everything[5:]]
    assert names("--installed", "--skip", "suite") == everything[1:-1]
    assert names("--stages", "install", "sanitizers") == ["install", "sanitizers"]
    assert names("--backends", "cuda", "--only", "spatial") == ["install", "machine", "cuda", "host", "suite"]


def test_planes_come_first_and_every_operator_and_backend_has_a_process(on_a_gpu: Callable[..., Run]) -> None:
    def order(*arguments: str) -> list[str]:
        run = on_a_gpu(*arguments)
        parts = [*run.planes(), *run.others("cuda"), *run.others("triton")]
        return [part.result.stem for part in parts]

    operators = ("prob_sparse_attention", "spatial_attention")
    others = [f"rows-{operator}-{backend}" for backend in ("cuda", "triton") for operator in operators]
    planes = ["rows-cutting_plane-cuda", "rows-cutting_plane-triton"]
    assert order() == [*planes, *others]
    # What is tuned is timed after it.
    assert order("--tune") == [planes[0], *others[:2], planes[1], *others[2:]]
    (part,) = on_a_gpu("--only", "signs", "--backends", "cuda").planes()
    command = part.command(part.cases)
    assert cases.CASES[int(command.argv[command.argv.index("--cases") + 1])].name == "plane step, L=64, N=1e7, signs"
    assert command.environment["OMP_NUM_THREADS"] in ("1", "2")


def test_the_suite_and_the_sanitizers_run_every_file_on_every_backend(on_a_gpu: Callable[..., Run]) -> None:
    run = on_a_gpu()
    suite = run.suite_commands()
    assert {command.name for command in suite} == {
        "suite-device-cuda",
        *(f"suite-{operator}-{backend}" for operator in GPU_OPERATORS for backend in ("triton", "cuda")),
    }
    assert all(Path(command.argv[command.argv.index("--file") + 1]).is_file() for command in suite)
    for command in suite:
        assert command.name.endswith(command.environment["SIMMST_GPU_BACKENDS"])
        assert command.environment["PYTHONPATH"].startswith(str(run.site))
        assert command.environment["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    tools = [(command.argv[2], command.argv[-1]) for command in run.sanitizer_commands()]
    assert tools == [("memcheck", "triton"), ("memcheck", "cuda"), ("racecheck", "cuda"), ("initcheck", "cuda")]


def test_triton_is_compiled_in_a_process_for_each_case_with_the_cache_of_the_timing(
    on_a_gpu: Callable[..., Run],
) -> None:
    run = on_a_gpu()
    commands = run.compile_commands()
    chosen = [cases.CASES[int(command.argv[command.argv.index("--cases") + 1])] for command in commands]
    assert chosen == [case for case in cases.CASES if case.operator != "cutting_plane"]
    (part, *_) = run.others("triton")
    timed = part.command(part.cases)
    assert {command.environment["TRITON_CACHE_DIR"] for command in (*commands, timed)} == {str(run.folder / "triton")}


def test_another_installation_in_the_way_is_not_measured(tmp_path: Path) -> None:
    child = [sys.executable, str(BENCHMARKS), "gpu.child", "machine", str(tmp_path / "machine.jsonl")]
    found = subprocess.run(
        [*child, "--device", "cpu", "--site", str(tmp_path)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert found.returncode == 1
    assert f"not from {tmp_path}, where it was just installed" in found.stdout
    assert not (tmp_path / "machine.jsonl").exists()


def test_a_tool_that_is_missing_leaves_its_stage_out_and_says_so(
    on_a_gpu: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    (stage,) = on_a_gpu("--stages", "sanitizers").stages()
    (outcome,) = budget.run_all([stage], 10.0, tell=lambda line: None)
    assert (outcome.state, outcome.good) == ("left out", True)
    assert outcome.reason == "there is no compute-sanitizer on PATH"


# The cases

# (case, backend) -> the ratio to reach: the project's targets, written down a second time.
TO_REACH = {
    ("ProbSparse forward, shared samples, L={}", "triton"): {720: 1.2, 4096: 10, 16384: 50},
    ("ProbSparse forward, shared samples, L={}", "cuda"): {96: 0.8, 336: 1.0, 720: 1.4, 4096: 14, 16384: 70},
    ("ProbSparse forward, per-query samples, L={}", "triton"): {4096: 2, 16384: 6},
    ("ProbSparse forward, per-query samples, L={}", "cuda"): {96: 0.8, 336: 1.0, 720: 1.0, 4096: 5, 16384: 8},
    ("ProbSparse forward + backward, shared samples, L={}", "triton"): {720: 1.8, 4096: 15},
    ("ProbSparse forward + backward, shared samples, L={}", "cuda"): {336: 1.0, 720: 2.2, 4096: 20},
    ("spatial forward, 1024 maps, N={}", "triton"): {121: 3, 225: 2.5, 400: 2},
    ("spatial forward, 1024 maps, N={}", "cuda"): {121: 3.5, 225: 3, 400: 2.3},
    ("spatial forward + backward, 1024 maps, N={}", "triton"): {121: 2, 225: 1.8, 400: 1.5},
    ("plane step, L=64, N=1e7, {}", "triton"): {"float32": 1.8, "bfloat16": 3.3, "signs": 8},
    ("plane step, L=64, N=1e7, {}", "cuda"): {"float32": 1.9, "bfloat16": 3.5, "signs": 12},
}


def test_every_ratio_to_reach_is_among_the_cases() -> None:
    found = {
        (case.name, backend): floor
        for case in cases.CASES
        for backend, floor in case.floors.items()
        if case.peer != cases.PLAIN
    }
    wanted = {
        (name.format(size), backend): floor
        for (name, backend), sizes in TO_REACH.items()
        for size, floor in sizes.items()
    }
    assert found == wanted
    plain = [case for case in cases.CASES if case.peer == cases.PLAIN]
    assert {case.floors["triton"] for case in plain} == {10.0}
    assert len({(case.name, case.peer) for case in cases.CASES}) == len(cases.CASES)
    shares = {case.name: case.shares for case in cases.CASES if case.shares}
    dense = ("float32", "bfloat16")
    assert shares == {f"plane step, L=64, N=1e7, {kind}": {"triton": 0.8, "cuda": 0.85} for kind in dense}


def test_the_bytes_and_operations_of_a_case_are_counted() -> None:
    """By hand: one read of every plane and of three vectors, one write of the point; two products of L x N."""
    work = cases.chosen("plane step, L=64, N=1e7, float32")[0].build(CPU, "tiny")
    assert work.bytes == 4 * (64 * 1000 + 4 * 1000)
    assert work.flops == 4 * 64 * 1000
    sparse = cases.chosen("ProbSparse forward, shared samples, L=96")[0].build(CPU, "tiny")
    assert sparse.bytes == 4 * (4 * 40 * 64) * 2
    assert sparse.flops == 4 * 40 * 64 * (2 * 20 + 4 * 20 + 1)


@pytest.mark.parametrize("case", cases.CASES[::3], ids=lambda case: f"{case.name}, {case.peer}")
def test_a_wrong_result_is_not_timed(case: cases.Case, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu import measure

    work = case.build(CPU, "tiny")
    assert measure.problem_with(work, "reference", CPU) == ""
    right = checks.excess
    for wrong in (lambda x: x + 0.5, lambda x: torch.full_like(x, float("nan")), lambda x: x[..., :-1]):
        monkeypatch.setattr(checks, "excess", right)
        for module in GPU_OPERATORS:
            spoilt = lambda name, ours, plain, exact, wrong=wrong: right(name, wrong(ours), plain, exact)  # noqa: E731
            monkeypatch.setattr(importlib.import_module(f"gpu.{module}"), "excess", spoilt)
        assert measure.problem_with(work, "reference", CPU)


def test_a_result_that_changes_is_not_timed() -> None:
    results = iter([[torch.zeros(2)], [torch.zeros(2) + 1e-7]])
    assert checks.differences(lambda: next(results)) == "two runs differ in result [0]"


def test_a_backend_that_cannot_run_gets_a_row_that_says_why() -> None:
    from gpu import measure

    ceilings = measure.Ceilings(1e9, dict.fromkeys(("float32", "bfloat16", "float16"), 1e9))
    rows: list[dict[str, Any]] = []
    case = cases.chosen("N=121")[0]
    measure.rows([case], ["reference", "cuda"], CPU, "tiny", ceilings, seconds=0.01, keep=rows.append)
    assert [row["backend"] for row in rows] == ["reference", "cuda"]
    assert rows[0]["ratio"] > 0
    assert "cannot run spatial_attention" in rows[1]["problem"]
    assert "ratio" not in rows[1]

    def broken(device: torch.device, scale: str) -> Any:
        raise RuntimeError("out of memory")

    measure.rows([case._replace(build=broken)], ["cuda"], CPU, "tiny", ceilings, keep=rows.append)
    assert rows[-1]["problem"] == "its inputs cannot be made: RuntimeError: out of memory"
