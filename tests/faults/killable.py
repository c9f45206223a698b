"""Commands in separate processes that start at once, so that they can be killed at any moment of their work.

Each process is forked from a server that has imported everything and computed nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

_PRELOADED = (
    "simmst.commands.main",
    "simmst.jobs.tables",
    "simmst.forecaster",
    "simmst.plotting",
    "simmst.baselines.networks",
    "simmst.training.recipes",
    "matplotlib.figure",
    "pandas",
    "pyarrow.parquet",
    "sklearn.ensemble",
    "safetensors.torch",
    "jsonargparse",
    "rich.progress",
    "holidays",
    "scipy.stats",
    "torch.distributed",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the server, which forks, and for all that it starts
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(list(_PRELOADED))


def start(arguments: list[str], log: Path, *, memory: int | None = None, **environment: str) -> BaseProcess:
    """Start ``simmst ARGUMENTS``.

    Args:
        arguments: arguments of the command.
        log: file to which its output is appended.
        memory: bytes that it may take beyond those at its start; None for no limit.
        environment: variables to set.
    """
    process = _CONTEXT.Process(target=_run, args=(arguments, str(log), memory, environment))
    process.start()
    return process


def finish(arguments: list[str], log: Path, **options: int | str) -> int | None:
    """Run a command to its end and return its exit status; None if it hangs."""
    process = start(arguments, log, **options)  # type: ignore[arg-type]
    process.join(300)
    if process.is_alive():
        process.kill()
        return None
    return process.exitcode


def start_ranks(arguments: list[str], log: Path, number: int) -> list[BaseProcess]:
    """Start a command in several ranks, each with a log of its own: LOG.0, LOG.1, ..."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1"}
    return [
        start(arguments, log.with_name(f"{log.name}.{rank}"), RANK=str(rank), MASTER_PORT=str(port), **shared)
        for rank in range(number)
    ]


def _run(arguments: list[str], log: str, memory: int | None, environment: dict[str, str]) -> None:
    import resource

    from simmst.commands.main import main

    os.environ.update(environment)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(target, 1)
    os.dup2(target, 2)
    if memory is not None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    sys.exit(main(arguments))
