from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from simmst import ops
from simmst.errors import BackendUnavailableError
from simmst.ops import backends, limits, measured_choice

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def fresh_choices(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("SIMMST_BACKEND", "TRITON_INTERPRET", "SIMMST_CUDA_EMULATION"):
        monkeypatch.delenv(name, raising=False)
    backends._resolve.cache_clear()
    yield
    backends._resolve.cache_clear()


def choose(backend: str | None, *, device: torch.device = CPU, dtype: torch.dtype = torch.float32, **sizes: int) -> str:
    return backends.choose("prob_sparse_attention", backend, device=device, dtype=dtype, **sizes)


SHARED = 227 * 1024  # bytes of a simulated GPU


def with_native(monkeypatch: pytest.MonkeyPatch, **modules: list[str] | None) -> None:
    """Pretend that the compiled modules exist and hold kernels for these operators; None where one is missing."""
    built = {
        f"simmst._{name}": None
        if names is None
        else SimpleNamespace(operators=lambda names=names: names, shared_bytes=lambda device: SHARED)
        for name, names in modules.items()
    }
    monkeypatch.setattr(backends, "load_native", lambda name: (built.get(name), "" if built.get(name) else "no file"))


def test_the_first_backend_that_can_run_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    with_native(monkeypatch, cpu=["prob_sparse_attention"])
    assert choose(None) == "cpu"
    backends._resolve.cache_clear()
    with_native(monkeypatch, cpu=None)
    assert choose(None) == "reference"
    assert choose(None, device=torch.device("meta")) == "reference"


def test_the_environment_sets_the_default_and_an_argument_overrides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with_native(monkeypatch, cpu=["prob_sparse_attention"])
    monkeypatch.setenv("SIMMST_BACKEND", "reference")
    assert choose(None) == "reference"
    assert choose("cpu") == "cpu"
    monkeypatch.setenv("SIMMST_BACKEND", "")
    assert choose(None) == "cpu"
    monkeypatch.setenv("SIMMST_BACKEND", "numpy")
    with pytest.raises(
        ValueError, match="SIMMST_BACKEND is 'numpy'; it must be one of reference, cpu, triton, cuda, chain"
    ):
        choose(None)


@pytest.mark.parametrize(
    ("backend", "modules", "message"),
    [
        ("cpu", {"cpu": None}, "no file"),
        ("cpu", {"cpu": ["cutting_plane"]}, "this build of simmst._cpu has no prob_sparse_attention kernel"),
        ("cuda", {"cuda": None}, "no file"),
        ("cuda", {"cuda": []}, "this build of simmst._cuda has no prob_sparse_attention kernel"),
        ("cuda", {"cuda": ["prob_sparse_attention"]}, "it runs on CUDA tensors, got device 'cpu'"),
    ],
)
def test_a_named_backend_raises_its_reason(monkeypatch, backend, modules, message) -> None:
    with_native(monkeypatch, **modules)
    with pytest.raises(BackendUnavailableError, match=rf"backend '{backend}' \(the argument backend\).*{message}"):
        choose(backend)


@pytest.fixture
def with_triton(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pretend that triton is installed and that there is a kernel for every operator."""
    for operator in backends.OPERATORS:
        (tmp_path / f"{operator}.py").touch()
    monkeypatch.setattr(backends, "_kernel_folders", lambda: [str(tmp_path)])
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: SimpleNamespace())


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(backends, "_why_not_assembled", lambda *call: None)


def test_triton_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(backends, "_kernel_folders", lambda: [str(tmp_path)])
    with pytest.raises(BackendUnavailableError, match="no Triton kernel for prob_sparse_attention"):
        choose("triton")
    (tmp_path / "prob_sparse_attention.py").touch()
    backends._resolve.cache_clear()
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailableError, match="triton is not installed; install it with: pip install triton"):
        choose("triton")


@pytest.mark.usefixtures("with_triton")
def test_triton_takes_cpu_tensors_in_its_interpreter_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendUnavailableError, match="it runs on CUDA tensors, got device 'cpu'"):
        choose("triton")
    backends._resolve.cache_clear()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("triton") == choose("triton", dtype=torch.float16) == "triton"
    with pytest.raises(BackendUnavailableError, match="computes bfloat16 matrix products wrongly; use float32"):
        choose("triton", dtype=torch.bfloat16)
    assert backends.choose("cutting_plane", "triton", device=CPU, dtype=torch.bfloat16) == "triton"
    with pytest.raises(BackendUnavailableError, match=r"dtype torch\.float64 is none of"):
        choose("triton", dtype=torch.float64)
    with_native(monkeypatch, cpu=["prob_sparse_attention"])
    assert choose(None) == "cpu", "the interpreter is never chosen automatically"


def test_cuda_takes_cpu_tensors_in_its_emulator_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with_native(monkeypatch, cuda=["prob_sparse_attention"], _cuda_emulated=None)
    monkeypatch.setenv("SIMMST_CUDA_EMULATION", "1")
    with pytest.raises(BackendUnavailableError, match="no file"):
        choose("cuda")
    backends._resolve.cache_clear()
    with_native(monkeypatch, cuda_emulated=["prob_sparse_attention"])
    assert choose("cuda") == choose("cuda", dtype=torch.bfloat16) == "cuda"
    assert choose(None) == "reference", "the emulator is never chosen automatically"
    with pytest.raises(BackendUnavailableError, match="the emulator runs on CPU tensors, got device 'cuda:0'"):
        choose("cuda", device=GPU)
    with pytest.raises(BackendUnavailableError, match="_cuda_emulated has no cutting_plane kernel"):
        backends.choose("cutting_plane", "cuda", device=CPU, dtype=torch.float32)


@pytest.mark.usefixtures("with_triton")
def test_a_gpu_that_is_missing_or_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with_native(monkeypatch, cuda=["prob_sparse_attention"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailableError, match="torch sees no CUDA device"):
        choose("triton", device=GPU)
    backends._resolve.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    for backend in ("triton", "cuda"):
        with pytest.raises(BackendUnavailableError, match=r"compute capability 8\.0 or newer, cuda:0 has 7\.5"):
            choose(backend, device=GPU)
    assert choose(None, device=GPU) == "reference"


@pytest.mark.usefixtures("with_triton", "with_gpu")
def test_a_head_that_is_too_wide_is_refused_or_goes_to_the_next_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    with_native(monkeypatch, cuda=["prob_sparse_attention"])
    widths = {
        name: {"prob_sparse_attention": {"head_width": width}} for name, width in (("cuda", 128), ("triton", 256))
    }
    monkeypatch.setattr(limits, "LARGEST", widths)
    with pytest.raises(BackendUnavailableError, match="its largest head width is 128, got 129"):
        choose("cuda", device=GPU, head_width=129)
    assert choose(None, device=GPU, head_width=128) == "cuda"
    assert choose(None, device=GPU, head_width=129) == "triton"
    assert choose(None, device=GPU, head_width=257) == "reference"
    assert choose(None, device=GPU) == "cuda"


@pytest.mark.usefixtures("with_triton", "with_gpu")
def test_a_gpu_with_little_shared_memory_takes_another_backend_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    with_native(monkeypatch, cuda=["prob_sparse_attention"])
    monkeypatch.setitem(globals(), "SHARED", 99 * 1024)
    with pytest.raises(BackendUnavailableError, match=r"float32 a block needs 129984 .*, but this GPU has 101376"):
        choose("cuda", device=GPU)
    assert choose(None, device=GPU) == "triton"
    assert choose(None, device=GPU, dtype=torch.bfloat16) == "cuda"


def test_the_operators_say_how_wide_their_heads_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, by the emulator's rules, a wide head is refused before anything runs."""
    monkeypatch.setenv("SIMMST_CUDA_EMULATION", "1")
    with_native(monkeypatch, cuda_emulated=list(backends.OPERATORS))
    narrow, wide = torch.randn(3, 4, 128), torch.randn(3, 4, 160)
    for query, value in ((wide, narrow), (narrow, wide)):
        with pytest.raises(BackendUnavailableError, match="its largest head width is 128, got 160"):
            ops.prob_sparse_attention(query, query, value, backend="cuda")
    with pytest.raises(BackendUnavailableError, match="its largest head width is 128, got 160"):
        ops.prob_sparse_select(wide, wide, torch.tensor([0, 1]), u=2, backend="cuda")
    weights = torch.randn(1920, 640), None, torch.randn(640, 640), None
    with pytest.raises(BackendUnavailableError, match="its largest head width is 128, got 320"):
        ops.spatial_attention(torch.randn(1, 5, 640), *weights, num_heads=2, backend="cuda")


def test_tensors_on_two_devices_are_refused() -> None:
    here, there = torch.randn(4, 8), torch.randn(4, 8, device="meta")
    with pytest.raises(ValueError, match=r"must be on one device, got query float32 .* on cpu, key .* on meta"):
        ops.prob_sparse_attention(here, there, here)
    weights = torch.randn(24, 8), None, torch.randn(8, 8), None
    with pytest.raises(ValueError, match="must be on one device"):
        ops.spatial_attention(there[None], *weights, num_heads=2)
    with pytest.raises(ValueError, match="device"):
        ops.cutting_plane_values(here, torch.zeros(4), there[0])


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    conditions = {"device": "a GPU", "date": "2026-01-01", "commit": "0", "versions": {}}
    lines = [
        ["bfloat16", 256, ["triton", "cuda"]],
        ["bfloat16", 4096, ["cuda", "triton"]],
        ["bfloat16", 16384, ["cuda", "triton"]],
    ]
    maps = [["bfloat16", 128, ["triton", "chain", "cuda"]], ["bfloat16", 512, ["chain", "triton", "cuda"]]]
    content = {
        "version": measured_choice.VERSION,
        "measured": conditions,
        "inference": {"prob_sparse_attention": lines, "spatial_attention": [["bfloat16", 128, ["cuda", "triton"]]]},
        "training": {"spatial_attention": maps},
    }
    table = measured_choice.parse(content)
    monkeypatch.setattr(measured_choice, "_table", lambda: table)


@pytest.mark.usefixtures("with_triton", "with_gpu", "measured")
def test_between_gpu_backends_the_measured_table_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    with_native(monkeypatch, cuda=["prob_sparse_attention"])
    monkeypatch.setattr(limits, "LARGEST", {"cuda": {"prob_sparse_attention": {"head_width": 128}}})

    def at(bucket: int | None, dtype: torch.dtype = torch.bfloat16, **sizes: int) -> str:
        return backends.choose("prob_sparse_attention", None, device=GPU, dtype=dtype, bucket=bucket, **sizes)

    assert [at(size) for size in (1, 256, 512, 1024, 2048, 1 << 20)] == ["triton"] * 3 + ["cuda"] * 3
    assert at(None) == "cuda", "most buckets prefer it"
    assert at(256, torch.float32) == "cuda", "nothing was measured in float32"
    assert at(4096, head_width=200) == "triton", "the faster one cannot run it"
    assert choose("cuda", device=GPU, dtype=torch.bfloat16) == "cuda"
    with_native(monkeypatch)
    backends._resolve.cache_clear()
    assert at(4096) == "triton"


@pytest.mark.usefixtures("with_triton")
def test_an_assembler_that_computes_wrongly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    assembler = importlib.import_module("simmst.kernels.assembler")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(assembler, "assembler", lambda capability: assembler.Assembler("ptxas", (12, 8)))

    def why(operator: str, dtype: torch.dtype) -> str | None:
        return backends.why_not(operator, "triton", device=GPU, dtype=dtype)

    for dtype in (torch.float16, torch.bfloat16):
        assert "ptxas 12.8" in (why("spatial_attention", dtype) or "")
    assert why("spatial_attention", torch.float32) is why("prob_sparse_attention", torch.bfloat16) is None
    monkeypatch.setattr(assembler, "assembler", lambda capability: assembler.Assembler("ptxas", (13, 0)))
    assert why("spatial_attention", torch.bfloat16) is None


@pytest.mark.usefixtures("with_triton", "with_gpu", "measured")
def test_training_and_inference_are_chosen_apart_and_the_chain_is_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def at(bucket: int | None, *, training: bool, dtype: torch.dtype = torch.bfloat16, **sizes: int) -> str:
        options = {"device": GPU, "dtype": dtype, "bucket": bucket, "training": training, **sizes}
        return backends.choose("spatial_attention", None, **options)

    with_native(monkeypatch, cuda=["spatial_attention"])
    assert [at(size, training=False) for size in (128, 512)] == ["cuda", "cuda"]
    assert [at(size, training=True) for size in (128, 512)] == ["triton", "chain"]
    assert at(512, training=True, dtype=torch.float16) == "chain", "the same as bfloat16, whose kernels it shares"
    assert at(512, training=True, dtype=torch.float32) == "cuda", "nothing was measured in float32"
    assert at(512, training=False, head_width=200) == at(512, training=False, dtype=torch.float64) == "chain"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    backends._resolve.cache_clear()
    assert at(128, training=True) == at(128, training=False) == "chain", (
        "no kernel runs here, and the reference is slower"
    )
    with pytest.raises(BackendUnavailableError, match="cutting_plane cannot be built from PyTorch's fused operators"):
        backends.choose("cutting_plane", "chain", device=GPU, dtype=torch.float32)
    sparse = {"device": GPU, "dtype": torch.bfloat16, "bucket": 256, "training": True}
    assert measured_choice.order("prob_sparse_attention", torch.bfloat16, 256, training=True) == ("triton", "cuda")
    assert backends.choose("prob_sparse_attention", None, **sparse) == "reference"


def test_spatial_attention_says_whether_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    from simmst.ops.spatial_attention import api

    seen: list[bool] = []
    monkeypatch.setattr(api, "choose", lambda *_, training, **__: seen.append(training) or "reference")
    monkeypatch.setattr(api, "_on_gpu", lambda x: True)
    x, *weights = torch.randn(2, 5, 8), torch.randn(24, 8, requires_grad=True), None, torch.randn(8, 8), None
    ops.spatial_attention(x, *weights, num_heads=2)
    with torch.no_grad():
        ops.spatial_attention(x, *weights, num_heads=2)
    ops.spatial_attention(x, *(each if each is None else each.detach() for each in weights), num_heads=2)
    assert seen == [True, False, False]


def test_the_table_in_the_package_is_sound() -> None:
    found = measured_choice.measured()
    assert found is None or set(found) == {"device", "date", "commit", "versions"}
    for operator in backends.OPERATORS:
        order = measured_choice.order(operator, torch.bfloat16, 1024)
        assert set(order) <= set(measured_choice.ORDERED)
        assert order == () or found is not None


@pytest.mark.parametrize(
    "line",
    [
        ["float64", 256, ["cuda"]],
        ["bfloat16", 300, ["cuda"]],
        ["bfloat16", 256, ["cpu"]],
        ["bfloat16", 256, ["cuda", "cuda"]],
        ["bfloat16", 256, []],
        ["bfloat16", 256],
    ],
)
def test_a_damaged_table_is_refused(line: list[object]) -> None:
    content = {"version": 2, "measured": {}, "inference": {"cutting_plane": [line]}, "training": {}}
    with pytest.raises(ValueError, match=r"measured_choice\.json, inference, cutting_plane: a line must be \[one of "):
        measured_choice.parse(content)
    with pytest.raises(ValueError, match="must be of version 2, got None; write it again with: python benchmarks gpu"):
        measured_choice.parse({"measured": {}, "choices": {}})
    with pytest.raises(ValueError, match="does not say what they were measured with"):
        measured_choice.parse({**content, "measured": None})


def test_choosing_compiles_whole_whatever_the_sizes() -> None:
    """Widths become constants and lengths may be symbols, so the graph does not break, and lengths share a program."""
    torch.compiler.reset()
    made = CompileCounter()
    compiled = torch.compile(ops.prob_sparse_attention, fullgraph=True, backend=made)
    for length in (20, 30, 40, 50):  # the number of selected queries is a constant from 21 to 54
        query = torch.randn(2, length, 8)
        sample = torch.randint(length, (10,))
        assert compiled(query, query, query, sample=sample, backend="reference").shape == query.shape
    assert made.frame_count <= 2
    for width in (4, 12):
        query = torch.randn(2, 20, width)
        assert compiled(query, query, query, sample=torch.tensor([0, 1]), backend="reference").shape == query.shape


def test_dtypes_and_devices_of_the_cpu_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    with_native(monkeypatch, cpu=["prob_sparse_attention"])
    with pytest.raises(BackendUnavailableError, match=r"dtype torch\.int32 is none of"):
        choose("reference", dtype=torch.int32)
    with pytest.raises(BackendUnavailableError, match="runs on CPU tensors, got device 'meta'"):
        choose("cpu", device=torch.device("meta"))
    with pytest.raises(
        BackendUnavailableError, match=r"no backend can run prob_sparse_attention here: cpu: .*reference"
    ):
        choose(None, dtype=torch.int32)


def test_inside_a_transform_only_plain_torch_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    with_native(monkeypatch, cpu=["prob_sparse_attention"])
    seen = []
    torch.func.grad(lambda x: seen.append(choose(None)) or x)(torch.tensor(1.0))
    with torch.autograd.forward_ad.dual_level():
        seen.append(choose(None))
        with pytest.raises(BackendUnavailableError, match="forward-mode AD need backend 'reference'"):
            choose("cpu")
    assert seen == ["reference", "reference"]
    assert choose(None) == "cpu"


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
