"""Whether TF32 is allowed, by any of torch's settings for it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch

from simmst.core.dtypes import tf32_is_allowed

NEW = hasattr(torch.backends.cuda.matmul, "fp32_precision")


def set_old(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = allowed


def set_new(precision: str) -> None:
    torch.backends.cuda.matmul.fp32_precision = precision


def set_all(precision: str) -> None:
    torch.backends.fp32_precision = precision


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """Use the settings of a new process, and restore the old ones afterwards."""
    before = torch.get_float32_matmul_precision()

    def start(precision: str) -> None:
        if NEW:
            set_all("none")
        torch.set_float32_matmul_precision(precision)
        if NEW and precision == "highest":
            set_new("none")

    start("highest")
    yield
    start(before)


needs_new = pytest.mark.skipif(not NEW, reason="this torch has no fp32_precision")


@pytest.mark.parametrize(
    ("choose", "allowed"),
    [
        (lambda: torch.set_float32_matmul_precision("highest"), False),
        (lambda: torch.set_float32_matmul_precision("high"), True),
        (lambda: set_old(True), True),
        (lambda: set_old(False), False),
        pytest.param(lambda: set_new("tf32"), True, marks=needs_new),
        pytest.param(lambda: set_new("ieee"), False, marks=needs_new),
        pytest.param(lambda: set_all("tf32"), True, marks=needs_new),
        pytest.param(lambda: (set_old(True), set_new("ieee")), False, marks=needs_new),
        pytest.param(lambda: (set_old(False), set_new("tf32")), True, marks=needs_new),
        pytest.param(lambda: (set_new("ieee"), set_old(True)), True, marks=needs_new),
    ],
)
def test_every_setting_is_followed_and_mixed_ones_too(choose: Callable[[], object], allowed: bool) -> None:
    choose()
    assert tf32_is_allowed() is allowed


class _Mixed:
    """Behaves as torch does after a program has mixed its settings: the old one cannot be read."""

    fp32_precision = "tf32"

    @property
    def allow_tf32(self) -> bool:
        raise RuntimeError("PyTorch is checking whether allow_tf32_new is enabled for cuBlas matmul")


def test_the_old_setting_is_read_only_where_there_is_no_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "matmul", _Mixed())
    assert tf32_is_allowed()
    for allowed in (True, False):
        monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(allow_tf32=allowed))
        assert tf32_is_allowed() is allowed


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted here")
def test_the_kernels_follow_mixed_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="the package triton is not installed")
    sparse = importlib.import_module("simmst.kernels.prob_sparse_attention")
    sizes = importlib.import_module("simmst.kernels.spatial_attention_sizes")
    query, half = torch.zeros(1), torch.zeros(1, dtype=torch.bfloat16)

    def precisions() -> list[str]:
        spatial = [sizes.Sizes(1, 9, 2, 16, tensor.dtype).precision for tensor in (query, half)]
        return [*(sparse._precision(tensor) for tensor in (query, half)), *spatial]

    assert precisions() == ["ieee"] * 4
    monkeypatch.setattr(torch.backends.cuda, "matmul", _Mixed())
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: 1 / 0)
    assert precisions() == ["tf32", "ieee"] * 2
