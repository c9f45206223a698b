"""The targets of the fuzzer on its corpus and on a few random bytes; ``.ci/fuzz`` looks for more."""

from __future__ import annotations

import random
from pathlib import Path

import native_targets
import pytest
import reader_targets

CORPUS = Path(__file__).with_name("corpus")


def inputs(name: str) -> list[bytes]:
    drawn = random.Random(name)
    return [
        *(path.read_bytes() for path in sorted((CORPUS / name).glob("*"))),
        *(drawn.randbytes(size) for size in (1, 20, 60, 100, 140)),
    ]


@pytest.mark.parametrize("name", native_targets.TARGETS)
def test_native_entry_points(name):
    for data in inputs(name):
        native_targets.run(name, data)


@pytest.mark.parametrize("name", reader_targets.TARGETS)
def test_readers(name):
    for package in ("pandas", "pyarrow", "safetensors", "yaml"):
        pytest.importorskip(package)
    for data in inputs(name):
        reader_targets.run(name, data)
