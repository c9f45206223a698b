"""Tuning: the launch configuration of each bucket, and the GPU backend that each operator prefers."""

from __future__ import annotations

import contextlib
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gpu.cases import CHAIN, Case
from gpu.measure import problem_with
from gpu.work import Work
from harness.timing import time_in_turn
from simmst.kernels import configurations
from simmst.ops import measured_choice

CONFIGURATIONS, CHOICE = Path("kernels/configurations.json"), Path("simmst/ops/measured_choice.json")
# The ratio against the chain of PyTorch's operators that a backend must reach to come before the chain.
WORTH = {"inference": 1.0, "training": 1.2}


def compile_all(work: Work, backend: str, *, whatever: bool) -> None:
    """Run everything a case runs, so that it is compiled; with `whatever`, every configuration of its kernels as well.

    Tuning reports a configuration that does not compile.
    """
    with configurations.trial({}) as asked:
        work.ours(backend)
        work.results(backend)
        work.complaint(backend)
    for kernel in sorted({kernel for kernel, _ in asked} if whatever else ()):
        for one in configurations.named(kernel):
            with contextlib.suppress(RuntimeError, ValueError), configurations.trial({kernel: one.name}):
                work.results(backend)


def tune(
    cases: Iterable[Case],
    device: torch.device,
    scale: str,
    *,
    backend: str = "triton",
    seconds: float = 0.2,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Try every configuration of every kernel that a case asks for, one kernel at a time, and keep the fastest.

    `keep` gets {kernel, bucket, best, milliseconds}, with milliseconds by configuration. A configuration that is wrong
    or fails is left out.
    """
    done: set[tuple[str, str]] = set()
    best: dict[tuple[str, str], str] = {}
    for case in cases:
        work = case.build(device, scale)
        with configurations.trial({}) as asked:
            work.ours(backend)
        for kernel, bucket in sorted(asked - done):
            done.add((kernel, bucket))
            others = {one: name for (one, at), name in best.items() if (one, at) in asked and one != kernel}
            times = _times_by_name(work, kernel, others, device, backend, seconds)
            if times:
                best[kernel, bucket] = min(times, key=lambda name: times[name])
                milliseconds = {name: round(1e3 * taken, 5) for name, taken in times.items()}
                keep({"kernel": kernel, "bucket": bucket, "best": best[kernel, bucket], "milliseconds": milliseconds})


def _times_by_name(
    work: Work, kernel: str, others: Mapping[str, str], device: torch.device, backend: str, seconds: float
) -> dict[str, float]:
    sides = {}
    for name in (one.name for one in configurations.named(kernel)):

        def side(name: str = name) -> None:
            with configurations.trial({**others, kernel: name}):
                work.ours(backend)

        try:
            with configurations.trial({**others, kernel: name}):
                problem = problem_with(work, backend, device)
        except (RuntimeError, ValueError) as error:  # for example, too much shared memory
            problem = f"{type(error).__name__}: {error}"
        if problem:
            print(f"{kernel} {name}: left out, {problem}")
        else:
            sides[name] = side
    return {name: times.median for name, times in time_in_turn(sides, device, seconds=seconds).items()}


def configured(content: Mapping[str, Any], tuned: Sequence[Mapping[str, Any]], measured: Mapping[str, Any]) -> Any:
    """Return the content of configurations.json with the tuned buckets; the other buckets keep their entry."""
    kernels = {name: {**entry, "buckets": dict(entry["buckets"])} for name, entry in content["kernels"].items()}
    for line in tuned:
        kernels[line["kernel"]]["buckets"][line["bucket"]] = line["best"]
    result = {"measured": dict(measured), "kernels": kernels}
    configurations.parse(result)
    return result


def choices(rows: Sequence[Mapping[str, Any]], measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of measured_choice.json, from the cases of a run that were timed on both backends.

    If several cases fall into one bucket, the geometric mean of their ratios decides: those on the device and those in
    a row, which include the host's work. Both count, because a call may be bound by either. If the peer is the chain,
    it comes before the backends whose ratio on the device alone is too low (`WORTH`).
    """
    cases: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        if row["backend"] in measured_choice.GPU_BACKENDS and not row["problem"]:
            cases.setdefault((row["case"], row["peer"]), {})[row["backend"]] = row
    ratios: dict[tuple[str, str, str, int], dict[str, list[tuple[float, float]]]] = {}
    chained = set()
    for found in cases.values():
        if len(found) == len(measured_choice.GPU_BACKENDS):
            row = next(iter(found.values()))
            mode = "training" if "forward + backward" in row["case"] else "inference"
            key = mode, row["operator"], row["dtype"], measured_choice.bucket(row["size"]) or 1
            for backend, one in found.items():
                ratios.setdefault(key, {}).setdefault(backend, []).append((one["ratio"], one["ratio_in_a_row"]))
            if row["peer"] == CHAIN:
                chained.add(key)
    tables: dict[str, dict[str, list[list[Any]]]] = {mode: {} for mode in WORTH}
    for key, by_backend in sorted(ratios.items()):
        mode, operator, dtype, size = key
        both = {
            name: statistics.geometric_mean(ratio for pair in pairs for ratio in pair)
            for name, pairs in by_backend.items()
        }
        order = sorted(both, key=lambda one: -both[one])
        if key in chained:
            device = {name: statistics.geometric_mean(pair[0] for pair in pairs) for name, pairs in by_backend.items()}
            worth_it = [name for name in order if device[name] >= WORTH[mode]]
            order = [*worth_it, "chain", *(name for name in order if name not in worth_it)]
        tables[mode].setdefault(operator, []).append([dtype, size, order])
    result = {"version": measured_choice.VERSION, "measured": dict(measured) if ratios else None, **tables}
    measured_choice.parse(result)
    return result


def apply(result: Mapping[str, Any], roots: Sequence[Path]) -> list[Path]:
    """Write the tables of a run below each root: a source tree, or the folder that holds an installed simmst.

    The tables are the configurations of a tuned run, and the choice of any run that timed cases on both backends, which
    replaces the whole table.

    Raises:
        ValueError: If the run was a dry run, or has neither table.
    """
    measured = {name: result[name] for name in ("device", "date", "commit", "versions")}
    table, tuned = choices(result["rows"], measured), result.get("tuned")
    if result["dry_run"] or not (tuned or table["measured"]):
        raise ValueError(
            "this result holds no measured tables: it was a dry run, or neither tuned nor timed both backends"
        )
    written = []
    for root in roots:
        contents: dict[Path, Any] = {}
        installed = root / "simmst/kernels/configurations.json"
        first = installed if installed.exists() else root / CONFIGURATIONS
        if tuned:
            contents[first] = configured(json.loads(first.read_text()), tuned, measured)
        if table["measured"]:
            contents[root / CHOICE] = table
        for path, content in contents.items():
            path.write_text(json.dumps(content, indent=2) + "\n")
            written.append(path)
    return written
