"""What this installation is made of and what it can run: the text behind ``simmst info``."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch

from simmst import __version__
from simmst.extras import import_extra
from simmst.ops.backends import availability, load_native

if TYPE_CHECKING:
    from rich.console import Console

# One telling package per extra.
_EXTRAS = {
    "forecast": ("pandas", "polars", "matplotlib", "rich", "jsonargparse", "safetensors", "scikit-learn", "holidays"),
    "test": ("pytest", "hypothesis", "triton"),
    "bench": ("pytest-benchmark",),
    "nixtla": ("neuralforecast",),
    "mtl": ("torchjd",),
    "raytracing": ("sionna-rt",),
}


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _native() -> dict[str, Any]:
    found: dict[str, Any] = {}
    cpu, reason = load_native("simmst._cpu")
    found["simmst._cpu"] = reason if cpu is None else cpu.build_info()
    if cpu is not None:
        found["instruction sets"] = cpu.instruction_sets()
        found["instruction set in use"] = cpu.instruction_set()
    cuda, reason = load_native("simmst._cuda")
    found["simmst._cuda"] = reason if cuda is None else cuda.build_info()
    if cuda is not None:
        devices = cuda.devices()
        found["CUDA devices"] = devices["problem"] or devices["devices"]
    return found


def collect() -> dict[str, Any]:
    """Gather versions, compiled modules, CPU capability and the operator x backend table as plain data.

    Returns:
        ``versions``, ``native``, ``threads``, ``extras`` (missing packages by extra) and ``backends``, ready for JSON.

    Raises:
        ValueError: ``SIMMST_CPU_ISA`` names an instruction set this machine cannot run.

    Example:
        >>> sorted(collect())
        ['backends', 'extras', 'native', 'threads', 'versions']
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
        "extras": {extra: [p for p in packages if _installed(p) is None] for extra, packages in _EXTRAS.items()},
        "backends": [row._asdict() for row in availability()],
    }


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)


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
    console.print(about)
    backends = table_module.Table("operator", "backend", "available", "why not", title="Backends", title_justify="left")
    for row in facts["backends"]:
        backends.add_row(row["operator"], row["backend"], "yes" if row["available"] else "no", row["reason"])
    console.print(backends)
