from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from simmst.errors import BackendUnavailableError
from simmst.ops import backends

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh_choices(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SIMMST_BACKEND", raising=False)
    backends._resolve.cache_clear()
    yield
    backends._resolve.cache_clear()


def choose(backend: str | None, *, device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> str:
    return backends.choose("prob_sparse_attention", backend, device=device, dtype=dtype)


def with_native(monkeypatch: pytest.MonkeyPatch, **modules: list[str] | None) -> None:
    """Pretend that the compiled modules exist and hold kernels for these operators; None where one is missing."""
    built = {
        f"simmst._{name}": None if names is None else SimpleNamespace(operators=lambda names=names: names)
        for name, names in modules.items()
    }
    monkeypatch.setattr(backends, "load_native", lambda name: (built.get(name), "" if built.get(name) else "no file"))


def test_the_first_backend_that_can_run_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    with_native(monkeypatch, cpu=["prob_sparse_attention"])
    assert choose(None) == "cpp"
    backends._resolve.cache_clear()
    with_native(monkeypatch, cpu=None)
    assert choose(None) == "reference"
    assert choose(None, device=torch.device("meta")) == "reference"


def test_the_environment_sets_the_default_and_an_argument_overrides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with_native(monkeypatch, cpu=["prob_sparse_attention"])
    monkeypatch.setenv("SIMMST_BACKEND", "reference")
    assert choose(None) == "reference"
    assert choose("cpp") == "cpp"
    monkeypatch.setenv("SIMMST_BACKEND", "")
    assert choose(None) == "cpp"
    monkeypatch.setenv("SIMMST_BACKEND", "numpy")
    with pytest.raises(ValueError, match="SIMMST_BACKEND is 'numpy'; it must be one of reference, cpp, triton, cuda"):
        choose(None)


@pytest.mark.parametrize(
    ("backend", "modules", "message"),
    [
        ("cpp", {"cpu": None}, "no file"),
        ("cpp", {"cpu": ["cutting_plane"]}, "this build of simmst._cpu has no prob_sparse_attention kernel"),
        ("cuda", {"cuda": None}, "no file"),
        ("cuda", {"cuda": []}, "this build of simmst._cuda has no prob_sparse_attention kernel"),
        ("cuda", {"cuda": ["prob_sparse_attention"]}, "it runs on CUDA tensors, got device 'cpu'"),
    ],
)
def test_a_named_backend_raises_its_reason(monkeypatch, backend, modules, message) -> None:
    with_native(monkeypatch, **modules)
    with pytest.raises(BackendUnavailableError, match=rf"backend '{backend}' \(the argument backend\).*{message}"):
        choose(backend)


def test_triton_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(backends, "_kernel_folders", lambda: [str(tmp_path)])
    with pytest.raises(BackendUnavailableError, match="no Triton kernel for prob_sparse_attention"):
        choose("triton")
    (tmp_path / "prob_sparse_attention.py").touch()
    with pytest.raises(BackendUnavailableError, match=r"triton is not installed|CUDA tensors"):
        choose("triton")


def test_dtypes_and_devices_of_the_cpu_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    with_native(monkeypatch, cpu=["prob_sparse_attention"])
    with pytest.raises(BackendUnavailableError, match=r"dtype torch\.int32 is none of"):
        choose("reference", dtype=torch.int32)
    with pytest.raises(BackendUnavailableError, match="runs on CPU tensors, got device 'meta'"):
        choose("cpp", device=torch.device("meta"))
    with pytest.raises(
        BackendUnavailableError, match=r"no backend can run prob_sparse_attention here: cpp: .*reference"
    ):
        choose(None, dtype=torch.int32)


def test_inside_a_transform_only_plain_torch_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    with_native(monkeypatch, cpu=["prob_sparse_attention"])
    seen = []
    torch.func.grad(lambda x: seen.append(choose(None)) or x)(torch.tensor(1.0))
    with torch.autograd.forward_ad.dual_level():
        seen.append(choose(None))
        with pytest.raises(BackendUnavailableError, match="forward-mode AD need backend 'reference'"):
            choose("cpp")
    assert seen == ["reference", "reference"]
    assert choose(None) == "cpp"


def test_availability_lists_every_pair_with_a_reason() -> None:
    rows = backends.availability()
    assert [(row.operator, row.backend) for row in rows] == [
        (operator, backend) for operator in backends.OPERATORS for backend in backends.BACKENDS
    ]
    assert all(row.available != bool(row.reason) for row in rows)
    assert all(row.available for row in rows if row.backend == "reference")


def test_implementations_are_imported_on_first_use() -> None:
    module = backends.implementation("prob_sparse_attention", "reference")
    assert module is sys.modules["simmst.reference.prob_sparse_attention"]
