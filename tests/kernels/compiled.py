"""The Triton kernels with every configuration and GPU they are compiled for, and the record of what they use."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import cutting_plane_specialisations
import prob_sparse_attention_specialisations
import spatial_attention_specialisations
from specialisations import Resources, Specialisation, compile_ahead, with_ones

from simmst.kernels import configurations

RECORD = Path(__file__).with_name("resources.json")
RECORDING = os.environ.get("SIMMST_RECORD") == "1"
HOW_TO_RECORD = "after a deliberate change: SIMMST_RECORD=1 pytest tests/kernels/test_compiled.py"
# Every edit changes the count by a few registers; the hardware allocates them in groups of eight.
ROOM = 8


class Job(NamedTuple):
    """One compilation, described only by names so that it can be sent to another process."""

    label: str
    configuration: str
    capability: int

    @property
    def key(self) -> str:
        """Name of its line in the record."""
        return f"{self.label}, {self.configuration}, sm_{self.capability}"

    def run(self) -> Resources:
        """Compile it."""
        specialisation = next(one for one in SPECIALISATIONS if one.label == self.label)
        chosen = next(one for one in specialisation.configurations if one.name == self.configuration)
        return compile_ahead(specialisation, chosen, self.capability)


_GENERAL = (
    *cutting_plane_specialisations.SPECIALISATIONS,
    *prob_sparse_attention_specialisations.SPECIALISATIONS,
    *spatial_attention_specialisations.SPECIALISATIONS,
)
SPECIALISATIONS: tuple[Specialisation, ...] = (*_GENERAL, *with_ones(_GENERAL))


def modules() -> list[ModuleType]:
    """Return the files of kernels/ except the one without a kernel."""
    names = sorted(path.stem for path in configurations.FILE.parent.glob("*.py"))
    return [importlib.import_module(f"simmst.kernels.{name}") for name in names if name != "configurations"]


def jobs() -> list[Job]:
    return [
        Job(one.label, configuration.name, capability)
        for one in SPECIALISATIONS
        for configuration in one.configurations
        for capability in one.capabilities
    ]


class Record(NamedTuple):
    """The recorded resources, and the version of Triton that they were recorded with."""

    triton: str
    lines: dict[str, Resources]

    @classmethod
    def read(cls) -> Record:
        if not RECORD.exists():
            return cls("", {})
        content = json.loads(RECORD.read_text())
        return cls(content["triton"], {key: Resources(*line) for key, line in content["kernels"].items()})

    def write(self) -> None:
        """Write one line for each compilation, so that a change is easy to read."""
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(list(self.lines[key]))}" for key in sorted(self.lines))
        head = f' "triton": {json.dumps(self.triton)},\n "columns": {json.dumps(list(Resources._fields))},\n'
        RECORD.write_text(f'{{\n{head} "kernels": {{\n{lines}\n }}\n}}\n')


def excess(found: Resources, recorded: Resources | None) -> str:
    """Return in words what a kernel uses beyond the record; empty if nothing."""
    if recorded is None:
        return "it is not in the record"
    allowed = recorded._replace(registers=recorded.registers + ROOM)
    more = [
        f"{name} {getattr(found, name)}, at most {getattr(allowed, name)}"
        for name in Resources._fields
        if getattr(found, name) > getattr(allowed, name)
    ]
    return "; ".join(more)
