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
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "not installed" if value is None else str(value)


def show(console: Console) -> None:
    """Print ``collect()`` as tables on a rich console."""
    table_module = import_extra("rich.table", extra="forecast")
    facts = collect()
    about = table_module.Table(title="Installation", show_header=False, title_justify="left")
    for group in ("versions", "native"):
        for key, value in facts[group].items():
            about.add_row(key, _words(value))
    about.add_row("threads", str(facts["threads"]))
    for extra, missing in facts["extras"].items():
        about.add_row(f"extra {extra!r}", f"missing: {', '.join(missing)}" if missing else "installed")
    choice = facts["gpu_choice"]
    about.add_row("GPU choice", _words(choice) if choice else "not measured: cuda, then triton, then reference")
    console.print(about)
    backends = table_module.Table("operator", "backend", "available", "why not", title="Backends", title_justify="left")
    for row in facts["backends"]:
        backends.add_row(row["operator"], row["backend"], "yes" if row["available"] else "no", row["reason"])
    console.print(backends)
