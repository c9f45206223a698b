"""The versions, modules and backends of this installation, as ``simmst info`` shows them."""

from __future__ import annotations

import platform
import re
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch

from simmst import __version__
from simmst.errors import ConfigError
from simmst.foundation.extras import import_extra
from simmst.ops import measured_choice
from simmst.ops.backends import availability, load_native

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _missing_by_extra() -> dict[str, list[str]]:
    """Return the missing packages of each extra."""
    missing: dict[str, list[str]] = {}
    for requirement in metadata.requires("simmst") or []:
        package, extra = re.match(r"[\w.-]+", requirement), re.search(r"""extra == ['"]([\w-]+)['"]""", requirement)
        if package is not None and extra is not None:
            lacks = missing.setdefault(extra[1], [])
            if _installed(package[0]) is None:
                lacks.append(package[0])
    return missing


def _native() -> dict[str, Any]:
    found: dict[str, Any] = {}
    cpu, reason = load_native("simmst._cpu")
    found["simmst._cpu"] = reason if cpu is None else cpu.build_info()
    if cpu is not None:
        found["instruction sets"] = cpu.instruction_sets()
        try:
            found["instruction set in use"] = cpu.instruction_set()
        except ValueError as error:
            raise ConfigError(str(error)) from error
    cuda, reason = load_native("simmst._cuda")
    found["simmst._cuda"] = reason if cuda is None else cuda.build_info()
    if cuda is not None:
        devices = cuda.devices()
        found["CUDA devices"] = devices["problem"] or devices["devices"]
    return found


def collect() -> dict[str, Any]:
    """Gather versions, compiled modules, CPU capability and the operator x backend table as plain data.

    Returns:
        ``versions``, ``native``, ``threads``, ``extras`` (missing packages by extra), ``backends`` and ``gpu_choice``
        (device, date and versions of the measurement that orders the GPU backends; None without one), ready for
        JSON.

    Raises:
        ConfigError: ``SIMMST_CPU_ISA`` names an instruction set this machine cannot run.

    Example:
        >>> sorted(collect())
        ['backends', 'extras', 'gpu_choice', 'native', 'threads', 'versions']
    """
    return {
        "versions": {
            "simmst": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": _installed("numpy"),
            "triton": _installed("triton"),
            "platform": f"{sys.platform} {platform.machine()}",
        },
        "native": _native(),
        "threads": torch.get_num_threads(),
        "extras": _missing_by_extra(),
        "backends": [row._asdict() for row in availability()],
        "gpu_choice": measured_choice.measured(),
    }


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "not installed" if value is None else str(value)


def show(console: Console) -> None:
    """Print ``collect()`` on a rich console: facts, a matrix of operators and backends, and reasons for its gaps."""
    facts = collect()
    about = _table(["", ""])
    for group in ("versions", "native"):
        for key, value in facts[group].items():
            about.add_row(key, _words(value))
    about.add_row("threads", str(facts["threads"]))
    complete = [extra for extra, missing in facts["extras"].items() if not missing]
    about.add_row("extras", ", ".join(complete) or "none")
    for extra, missing in facts["extras"].items():
        if missing:
            about.add_row(f"extra {extra}", f"missing: {', '.join(missing)}")
    choice = facts["gpu_choice"]
    about.add_row("GPU choice", _words(choice) if choice else "not measured: cuda, then triton, then reference")
    console.print("Installation", style="bold")
    console.print(about)
    console.print("\nBackends", style="bold")
    rows = facts["backends"]
    backends = list(dict.fromkeys(row["backend"] for row in rows))
    matrix = _table(["operator", *backends])
    for operator in dict.fromkeys(row["operator"] for row in rows):
        here = {row["backend"]: row["available"] for row in rows if row["operator"] == operator}
        matrix.add_row(operator, *("yes" if here[backend] else "-" for backend in backends))
    console.print(matrix)
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if not row["available"]:
            reason = re.sub(rf"\b{row['operator']}\b", "it", row["reason"])
            reasons.setdefault((row["backend"], reason), []).append(row["operator"])
    if reasons:
        console.print("\nNot available here", style="bold")
        why = _table(["", ""])
        for (backend, reason), operators in sorted(reasons.items(), key=lambda item: backends.index(item[0][0])):
            which = "" if len(operators) == len({row["operator"] for row in rows}) else f"{', '.join(operators)}: "
            why.add_row(backend, which + reason)
        console.print(why)


def _table(heads: list[str]) -> Table:
    box = import_extra("rich.box", extra="forecast")
    made: Table = import_extra("rich.table", extra="forecast").Table(
        box=box.SIMPLE_HEAD if heads[0] else None, show_header=bool(heads[0]), pad_edge=False, padding=(0, 1, 0, 0)
    )
    for number, head in enumerate(heads):
        made.add_column(head, no_wrap=number == 0 or bool(heads[0]), overflow="fold")
    return made
