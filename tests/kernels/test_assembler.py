"""The assembler of the Triton kernels, and the kernels that an old one must not assemble."""

from __future__ import annotations

import re
import subprocess

import pytest

pytest.importorskip("triton", reason="the package triton is not installed")

from simmst.kernels import assembler
from simmst.kernels.assembler import Assembler, why_not_trusted


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_the_version_is_what_the_program_itself_says(capability: int) -> None:
    found = assembler.assembler(capability)
    said = subprocess.run([found.path, "--version"], capture_output=True, text=True, check=True).stdout
    assert re.search(rf"release {found.version[0]}\.{found.version[1]}\b", said)


def test_an_old_assembler_is_trusted_with_all_but_spatial_attention_on_capability_9(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(assembler, "assembler", lambda capability: Assembler("ptxas", (12, 8)))
    reason = why_not_trusted("spatial_attention", 90)
    assert reason is not None
    assert "ptxas 12.8" in reason
    assert "TRITON_PTXAS_PATH" in reason
    for operator, capability in (("spatial_attention", 80), ("spatial_attention", 100), ("prob_sparse_attention", 90)):
        assert why_not_trusted(operator, capability) is None


def test_one_of_cuda_13_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembler, "assembler", lambda capability: Assembler("ptxas", (13, 0)))
    assert why_not_trusted("spatial_attention", 90) is None


def test_a_missing_assembler_is_a_reason_and_not_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(capability: int) -> Assembler:
        raise RuntimeError("Cannot find ptxas")

    monkeypatch.setattr(assembler, "assembler", missing)
    assert "Cannot find ptxas" in (why_not_trusted("spatial_attention", 90) or "")
