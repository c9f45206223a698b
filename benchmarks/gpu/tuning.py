"""Tuning: which launch configuration each bucket gets, and which GPU backend each operator prefers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gpu.cases import Case
from gpu.measure import problem_with
from gpu.work import Work
from harness.timing import time_in_turn
from simmst.kernels import configurations
from simmst.ops import measured_choice

CONFIGURATIONS, CHOICE = Path("kernels/configurations.json"), Path("simmst/ops/measured_choice.json")


def compile_all(work: Work, backend: str, *, whatever: bool) -> None:
    """Run what a case runs, so that it is compiled; `whatever` also with every configuration of its kernels.

    A configuration that does not compile is tuning's to report.
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

    `keep` gets {kernel, bucket, best, milliseconds}, the last by configuration; one that is wrong or fails is left out.
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
        except (RuntimeError, ValueError) as error:  # too much shared memory, for one
            problem = f"{type(error).__name__}: {error}"
        if problem:
            print(f"{kernel} {name}: left out, {problem}")
        else:
            sides[name] = side
    return {name: times.median for name, times in time_in_turn(sides, device, seconds=seconds).items()}


def configured(content: Mapping[str, Any], tuned: Sequence[Mapping[str, Any]], measured: Mapping[str, Any]) -> Any:
    """The content of configurations.json with what was tuned; buckets that were not tried keep their entry."""
    kernels = {name: {**entry, "buckets": dict(entry["buckets"])} for name, entry in content["kernels"].items()}
    for line in tuned:
        kernels[line["kernel"]]["buckets"][line["bucket"]] = line["best"]
    result = {"measured": dict(measured), "kernels": kernels}
    configurations.parse(result)
    return result


def choices(rows: Sequence[Mapping[str, Any]], measured: Mapping[str, Any]) -> dict[str, Any]:
    """The content of measured_choice.json, from the cases of a run that were timed on both backends.

    Where several cases fall into one bucket, the geometric mean of their ratios decides.
    """
    cases: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        if row["backend"] in measured_choice.GPU_BACKENDS and not row["problem"]:
            cases.setdefault((row["case"], row["peer"]), {})[row["backend"]] = row
    products: dict[tuple[str, str, int], dict[str, float]] = {}
    for found in cases.values():
        if len(found) == len(measured_choice.GPU_BACKENDS):
            row = next(iter(found.values()))
            key = row["operator"], row["dtype"], measured_choice.bucket(row["size"]) or 1
            product = products.setdefault(key, dict.fromkeys(measured_choice.GPU_BACKENDS, 1.0))
            for backend in product:
                product[backend] *= found[backend]["ratio"]
    table: dict[str, list[list[Any]]] = {}
    for (operator, dtype, size), product in sorted(products.items()):
        table.setdefault(operator, []).append([dtype, size, sorted(product, key=lambda one: -product[one])])
    result = {"measured": dict(measured) if table else None, "choices": table}
    measured_choice.parse(result)
    return result


def apply(result: Mapping[str, Any], roots: Sequence[Path]) -> list[Path]:
    """Write the tables of a tuned run below each root: a source tree, or the folder that holds an installed simmst.

    Raises:
        ValueError: the run was not tuned, or was a dry run.
    """
    if result["dry_run"] or not result.get("tuned"):
        raise ValueError("this result holds no measured tables: it was a dry run, or ran without --tune")
    measured = {name: result[name] for name in ("device", "date", "commit", "versions")}
    written = []
    for root in roots:
        installed = root / "simmst/kernels/configurations.json"
        first = installed if installed.exists() else root / CONFIGURATIONS
        contents = {first: configured(json.loads(first.read_text()), result["tuned"], measured)}
        table = choices(result["rows"], measured)
        if table["choices"]:
            contents[root / CHOICE] = table
        for path, content in contents.items():
            path.write_text(json.dumps(content, indent=2) + "\n")
            written.append(path)
    return written
