"""The output of a run on a GPU, from made-up timings: the table, the file, and the tables of a tuned run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpu import host, report, tuning
from gpu.cases import CHAIN
from simmst.kernels import configurations
from simmst.kernels.configurations import configuration

CPU = torch.device("cpu")

ROW = {
    "case": "plane step, L=64, N=1e7, float32",
    "operator": "cutting_plane",
    "dtype": "float32",
    "size": 10**7,
    "peer": "torch, two GEMV and the update",
    "backend": "triton",
    "floor": 1.8,
    "share_floor": 0.8,
    "problem": "",
    "short": True,
    "peer_ms": 4.0,
    "ours_ms": 2.0,
    "ratio": 2.0,
    "ratio_in_a_row": 1.9,
    "spread": [0.01, 0.02],
    "calls": 9,
    "bytes": 1e9,
    "flops": 1e9,
    "of_copy_bandwidth": 0.75,
    "of_roofline": 0.75,
    "bound": "bytes",
}
FIGURES = {"ours_ms", "peer_ms", "ratio", "ratio_in_a_row", "spread", "calls", "of_copy_bandwidth", "of_roofline"}
WRONG = {name: value for name, value in ROW.items() if name not in FIGURES}
WRONG |= {"backend": "cuda", "problem": "the values is off by 1", "short": False}
HOST = {"call": "plane step", "backend": "cuda", "at_most": 2.0, "problem": "", "over": True, "host_us": 40.0}
HOST |= {"peer_us": 12.5, "times_peer": 3.2, "launches": 5.0, "peer_launches": 1.0}
RESULT = {
    "date": "2026-01-02",
    "commit": "abc",
    "device": "a GPU",
    "driver": "1.2",
    "versions": {"torch": "2.11"},
    "dry_run": False,
    "machine": {"copy": 4.2e12, "products": {"bfloat16": 8e14}},
    "stages": [{"stage": "suite", "state": "failed"}],
    "rows": [ROW, WRONG],
    "host": [HOST],
    "suite": [],
    "tuned": [],
}


def test_the_table_shows_shortfalls_and_problems() -> None:
    first, second = report.table(RESULT["rows"])[1:]
    assert first.split()[-9:] == ["4.000", "2.000", "2.00", "1.8", "1.90", "75%/80%", "75%", "bytes", "SHORT"]
    assert "NOT TIMED (floor 1.8): the values is off by 1" in second
    without_a_peer = {**ROW, "problem": "the peer fails: OutOfMemoryError: no memory"}
    assert "- 2.000 NO RATIO (floor 1.8): the peer fails" in " ".join(report.table([without_a_peer])[1].split())
    summary = "\n".join(report.summary(RESULT))
    assert "copy 4.20 TB/s, products in TFLOP/s: bfloat16 800" in summary
    assert "suite failed" in summary
    assert "2 rows: 1 below the figure to reach (SHORT), 1 not timed" in summary
    text = report.markdown(RESULT)
    assert "Measured on 2026-01-02 at commit abc on a GPU, driver 1.2, torch 2.11." in text
    assert text.count("\n|") == 4
    assert report.table([]) == ["no case was measured"]


def test_the_host_s_table_shows_what_is_over() -> None:
    line, failed = report.host_table([HOST, {**WRONG, "call": "plane step"}])[1:]
    assert line.split()[-8:] == ["cuda", "12.5", "40.0", "3.20", "5", "1", "OVER", "2"]
    assert "NOT TIMED: the values is off by 1" in failed
    assert report.told("host-cuda", HOST) == line
    assert report.told("rows-cutting_plane-triton", ROW) == report.table([ROW])[1]
    assert report.told("suite-x", {"failed": "test_a", "words": ""}) == "suite-x: failed test_a"


def test_times_of_the_host_are_measured_before_the_profiler_is_there_and_told_with_the_launches() -> None:
    whats = [measure.what for measure in host.SMALL]
    assert whats == sorted(whats, reverse=True), "times first"
    (line,) = host.together(
        [
            host.line(host.SMALL[0], "cuda", host_us=40.0, peer_us=12.5, times_peer=3.2),
            host.line(host.SMALL[-1]._replace(small=host.SMALL[0].small), "cuda", launches=5.0, peer_launches=1.0),
        ]
    )
    assert line == {**HOST, "call": host.SMALL[0].small.name}
    measured = [host.measure(host.SMALL[0], backend, CPU) for backend in ("reference", "cuda")]
    assert measured[0]["times_peer"] == measured[0]["host_us"] / measured[0]["peer_us"]
    assert measured[1]["problem"].startswith("BackendUnavailableError")
    assert "host_us" not in measured[1]


def test_the_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "gpu.json"
    report.write(path, RESULT)
    assert json.loads(path.read_text()) == RESULT
    assert [each.name for each in path.parent.iterdir()] == ["gpu.json"]


# Tuning


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A table with one kernel of two configurations."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    shape = {"constants": {"BLOCK": 1}, "num_warps": 1, "num_stages": 1}
    entry = {
        "configurations": dict.fromkeys(("slow", "fast", "wrong"), shape),
        "buckets": {"N8": "slow"},
        "default": "slow",
        "interpreter": "slow",
    }
    content = {"measured": None, "kernels": {"cutting_plane.step": entry}}
    parsed = configurations.parse(content)
    monkeypatch.setattr(configurations, "_loaded", lambda: parsed)
    return content


def test_tuning_keeps_the_fastest_configuration_that_is_right(kernel: dict[str, Any]) -> None:
    def ours(backend: str) -> None:
        time.sleep({"slow": 0.02, "fast": 0.002, "wrong": 0.0}[configuration("cutting_plane.step", "N16").name])

    def complaint(backend: str) -> str:
        return "wrong" if configuration("cutting_plane.step", "N16").name == "wrong" else ""

    work = SimpleNamespace(ours=ours, complaint=complaint, results=lambda backend: [torch.zeros(1)])
    kept: list[dict[str, Any]] = []
    case = SimpleNamespace(build=lambda device, scale: work)
    tuning.tune([case, case], CPU, "tiny", seconds=0.05, keep=kept.append)
    assert len(kept) == 1, "each bucket is tried once"
    assert (kept[0]["kernel"], kept[0]["bucket"], kept[0]["best"]) == ("cutting_plane.step", "N16", "fast")
    assert set(kept[0]["milliseconds"]) == {"slow", "fast"}
    measured = {"device": "a GPU", "date": "2026-01-02", "commit": "abc", "versions": {}}
    content = tuning.configured(kernel, kept, measured)
    assert content["kernels"]["cutting_plane.step"]["buckets"] == {"N8": "slow", "N16": "fast"}
    assert content["measured"] == measured
    assert kernel["kernels"]["cutting_plane.step"]["buckets"] == {"N8": "slow"}, "the current table does not change"


def test_the_choice_is_made_of_cases_that_both_backends_ran() -> None:
    def row(backend: str, ratio: float, case: str = "a", size: int = 700, **more: Any) -> dict[str, Any]:
        return {**ROW, "case": case, "backend": backend, "ratio": ratio, "size": size, **more}

    rows = [
        row("triton", 2.0),
        row("cuda", 3.0),
        row("triton", 9.0, "b"),
        row("cuda", 2.0, "b"),
        row("cuda", 100.0, "c"),
        row("triton", 1.0, "d", 5000),
        row("cuda", 1.5, "d", 5000),
        row("triton", 1.0, "e", 9000),
        row("cuda", 9.9, "e", 9000, problem="wrong"),
        row("reference", 50.0),
    ]
    measured = {"device": "a GPU", "date": "2026-01-02", "commit": "abc", "versions": {}}
    assert tuning.choices(rows, measured) == {
        "version": 2,
        "measured": measured,
        "inference": {"cutting_plane": [["float32", 1024, ["triton", "cuda"]], ["float32", 8192, ["cuda", "triton"]]]},
        "training": {},
    }
    assert tuning.choices(rows[:1], measured) == {"version": 2, "measured": None, "inference": {}, "training": {}}


def test_the_chain_comes_before_the_backends_that_are_not_worth_it() -> None:
    def rows(direction: str, size: int, triton: float, cuda: float, peer: str = CHAIN) -> list[dict[str, Any]]:
        case = f"spatial {direction}, N={size}"
        common = {**ROW, "operator": "spatial_attention", "case": case, "size": size, "peer": peer}
        return [{**common, "backend": name, "ratio": one} for name, one in (("triton", triton), ("cuda", cuda))]

    table = tuning.choices(
        [
            *rows("forward", 121, 2.5, 1.0),
            *rows("forward", 225, 0.9, 0.99),
            *rows("forward", 400, 0.8, 1.7),
            *rows("forward", 900, 0.8, 0.7, "another peer"),
            *rows("forward + backward", 121, 1.57, 1.19),
            *rows("forward + backward", 225, 1.19, 1.1),
            *rows("forward + backward", 400, 1.2, 1.5),
        ],
        {"device": "a GPU", "date": "2026-01-02", "commit": "abc", "versions": {}},
    )
    assert table["inference"]["spatial_attention"] == [
        ["float32", 128, ["triton", "cuda", "chain"]],
        ["float32", 256, ["chain", "cuda", "triton"]],
        ["float32", 512, ["cuda", "chain", "triton"]],
        ["float32", 1024, ["triton", "cuda"]],
    ]
    assert table["training"]["spatial_attention"] == [
        ["float32", 128, ["triton", "chain", "cuda"]],
        ["float32", 256, ["chain", "triton", "cuda"]],
        ["float32", 512, ["cuda", "triton", "chain"]],
    ]


def test_tables_are_written_into_a_tree_and_into_an_installation(kernel: dict[str, Any], tmp_path: Path) -> None:
    tree, site = tmp_path / "tree", tmp_path / "site"
    for path in (tree / "kernels", tree / "simmst/ops", site / "simmst/kernels", site / "simmst/ops"):
        path.mkdir(parents=True)
    for path in (tree / "kernels", site / "simmst/kernels"):
        (path / "configurations.json").write_text(json.dumps(kernel))
    tuned = [{"kernel": "cutting_plane.step", "bucket": "N16", "best": "fast", "milliseconds": {}}]
    both = [ROW, {**ROW, "backend": "cuda", "ratio": 3.0}]
    written = tuning.apply({**RESULT, "tuned": tuned, "rows": both}, [tree, site])
    assert [path.relative_to(tmp_path).as_posix() for path in written] == [
        "tree/kernels/configurations.json",
        "tree/simmst/ops/measured_choice.json",
        "site/simmst/kernels/configurations.json",
        "site/simmst/ops/measured_choice.json",
    ]
    for path in written[::2]:
        content = json.loads(path.read_text())
        assert content["kernels"]["cutting_plane.step"]["buckets"]["N16"] == "fast"
        assert content["measured"]["device"] == "a GPU"
    assert json.loads(written[1].read_text())["inference"]["cutting_plane"] == [
        ["float32", 1 << 24, ["cuda", "triton"]]
    ]
    assert tuning.apply({**RESULT, "rows": both}, [tree]) == [tree / "simmst/ops/measured_choice.json"], "not tuned"
    with pytest.raises(ValueError, match="it was a dry run, or neither tuned nor timed both backends"):
        tuning.apply(RESULT, [tree])
