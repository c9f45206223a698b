"""The simulator's time and memory: `python benchmarks cpu.simulator`.

Three cases, each in its own process, with its result checked:

    cities   1,277 cities of 20 x 20 cells, 192 h and three services to shards on disk, 24 windows of each streamed back
    large    one city of 100 x 100 cells, a week at 10 minutes
    rays     the ray-traced radio of a procedural city of 4.7 km, after a first one that compiles the tracer's programs

The figures are wall seconds, CPU seconds of all processes and the largest resident memory of one, next to the goals.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import harness

BENCHMARKS = Path(__file__).parents[1]
GOALS = {
    "cities": "under 45 s on two cores",
    "large": "under 15 s and 2 GB",
    "rays": "under 5 CPU s",
}


def cities(quick: bool) -> dict[str, Any]:
    """Simulate to disk, and read samples back."""
    from simmst.data import CityShards, StreamedWindows, WindowSpec
    from simmst.jobs import simulate

    number = 40 if quick else 1277
    with tempfile.TemporaryDirectory() as folder:
        measured = clocked(
            lambda: simulate(number, folder, city={"height": 20, "width": 20, "days": 8}, workers=os.cpu_count())
        )
        stored = sum(path.stat().st_size for path in Path(folder).iterdir())
        spec = WindowSpec.recent(1, 24, daily=3, steps_per_day=24)
        windows = StreamedWindows(CityShards(folder), spec, per_city=24)
        reading = clocked(lambda: check_samples(windows))
    return {
        "cities": number,
        "samples": len(windows),
        "gigabytes": stored / 1e9,
        **measured,
        "stream": reading["wall_s"],
    }


def check_samples(windows: Any) -> None:
    """Read every sample once."""
    seen = np.zeros(len(windows), bool)
    for batch in windows.batches(256, seed=0, epoch=0):
        seen[batch.index.numpy()] = True
        if not np.isfinite(batch.target.numpy()).mean() > 0.9:
            raise SystemExit("more than a tenth of a batch's targets is missing")
    if not seen.all():
        raise SystemExit("some samples were not read")


def large(quick: bool) -> dict[str, Any]:
    """Simulate one large city."""
    from simmst.simulation import CityConfig, simulate_city

    config = CityConfig(height=100, width=100, days=1 if quick else 7, step_minutes=10)
    made: list[Any] = []
    measured = clocked(lambda: made.append(simulate_city(config)))
    if not np.nanmin(made[0].activity) >= 0:
        raise SystemExit("the city has negative activity")
    return {"shape": list(made[0].activity.shape), **measured}


def rays(quick: bool) -> dict[str, Any]:
    """Trace a city's radio."""
    from simmst.errors import MissingExtraError, RayTracingError
    from simmst.simulation import CityConfig
    from simmst.simulation.radio.ray_tracing import RayTracedRadio
    from simmst.simulation.radio.ray_tracing_probe import require_ray_tracing

    try:
        require_ray_tracing()
    except (MissingExtraError, RayTracingError) as error:
        return {"skipped": str(error)}
    radio, made = RayTracedRadio(cache=False, rays=200_000 if quick else 2_000_000), []

    def trace(index: int) -> None:
        config = CityConfig(height=20, width=20, index=index, inter_site_distance_m=700.0)
        made.append(radio.coverage(config, np.random.default_rng(index)))

    first = clocked(lambda: trace(0))
    measured = clocked(lambda: trace(1))
    if not all(np.isfinite(coverage.sinr_db).all() for coverage in made):
        raise SystemExit("a cell is not covered")
    return {"first_cpu_s": first["cpu_s"], **measured}


def clocked(work: Callable[[], Any]) -> dict[str, float]:
    """Do the work; return wall seconds, and CPU seconds with those of ended child processes."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    work()
    return {"wall_s": time.perf_counter() - wall, "cpu_s": cpu_seconds() - cpu}


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and its ended children so far."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


CASES: dict[str, Callable[[bool], dict[str, Any]]] = {"cities": cities, "large": large, "rays": rays}


def run(case: str, quick: bool) -> dict[str, Any]:
    """Run a case in another process."""
    command = [sys.executable, str(BENCHMARKS), "cpu.simulator", "--case", case, *(["--quick"] if quick else [])]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Run the cases and print a line for each."""
    parser = harness.parser("cpu.simulator", __doc__)
    parser.add_argument("--quick", action="store_true", help="small cases, to check that everything works")
    parser.add_argument("--case", choices=sorted(CASES), help="run one case here and print it as JSON")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    if options.case:
        found = CASES[options.case](options.quick)
        peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        sys.stdout.write(json.dumps({**found, "peak_gb": peak * 1024 / 1e9}) + "\n")
        return
    figures = {}
    for case, goal in GOALS.items():
        figures[case] = found = run(case, options.quick)
        said = ", ".join(
            f"{name} {value:.2f}" if isinstance(value, float) else f"{name} {value}" for name, value in found.items()
        )
        sys.stdout.write(f"{case:8} ({goal}{', quick' if options.quick else ''}): {said}\n")
        sys.stdout.flush()
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
