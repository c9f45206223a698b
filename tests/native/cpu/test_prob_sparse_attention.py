"""The C++ kernels against the reference: every option, instruction set, precision and layout, with 1 and 2 threads."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from simmst.core.prob_sparse_attention import Options
from simmst.ops import prob_sparse_attend, prob_sparse_attention, prob_sparse_select
from simmst.ops.prob_sparse_attention import library
from simmst.reference import prob_sparse_attention as reference

cpu = pytest.importorskip("simmst._cpu", reason="this installation has no compiled CPU module")
if "prob_sparse_attention" not in cpu.operators():
    pytest.skip("this build has no ProbSparse kernel", allow_module_level=True)
native = importlib.import_module("simmst.native.cpu.prob_sparse_attention")

ISAS = cpu.instruction_sets()
OPTIONS = [
    {"is_causal": causal, "fill": fill, "dropout_p": dropout}
    for causal, fill, dropout in itertools.product((False, True), ("mean", "cumsum", "cummean"), (0.0, 0.3))
]


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SIMMST_CPU_ISA", request.param)
    return str(request.param)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """Fill torch.empty with NaN, so that a row that no kernel writes is noticed."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def inputs(
    *batch: int, queries: int, keys: int, width: int = 16, value_width: int = 16, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(queries * 1000 + keys)
    shapes = (queries, width), (keys, width), (keys, value_width)
    query, key, value = (torch.randn(*batch, *shape, dtype=torch.float64).to(dtype) for shape in shapes)
    return query, key, value


def draw_top(query: Tensor, u: int) -> Tensor:
    return torch.rand(query.shape[:-1]).argsort(-1)[..., :u]


def everything(module: Any, query: Tensor, key: Tensor, value: Tensor, top: Tensor, **options: Any) -> list[Tensor]:
    """Return results and gradients of attend."""
    given = torch.tensor([3, 2**32 - 5]), Options(**options)
    out, lse = module.attend(query, key, value, top, *given)
    grad = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).cos().to(out.dtype)
    return [out, lse, *module.attend_backward(grad, query, key, value, top, out, lse, *given)]


def assert_same(found: list[Tensor], wanted: list[Tensor], tolerance: float = 1e-10) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_attend_and_its_gradients_equal_the_reference(isa: str, threads: int, options: dict[str, Any]) -> None:
    torch.set_num_threads(threads)
    for batch, queries, keys, width, value_width, u in ((3, 70, 150, 20, 33, 27), (1, 130, 70, 9, 70, 50)):
        query, key, value = inputs(batch, queries=queries, keys=keys, width=width, value_width=value_width)
        top = draw_top(query, u)
        found = everything(native, query, key, value, top, **options)
        assert_same(found, everything(reference, query, key, value, top, **options))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("normalizer", ["keys", "samples"])
def test_select_equals_the_reference(isa: str, threads: int, shared: bool, normalizer: str) -> None:
    torch.set_num_threads(threads)
    for batch, width, samples in ((1, 64, 35), (3, 24, 25), (2, 130, 9), (2, 5, 1), (2, 32, 47)):
        query, key, _ = inputs(batch, queries=90, keys=200, width=width)
        sample = torch.randint(200, (samples,) if shared else (90, samples))
        top, measure = native.select(query, key, sample, u=21, normalizer=normalizer)
        wanted_top, wanted = reference.select(query, key, sample, u=21, normalizer=normalizer)
        assert_same([measure], [wanted])
        assert torch.equal(top, wanted_top)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_lower_precisions_are_at_most_twice_as_far_off_as_plain_pytorch(isa: str, dtype: torch.dtype) -> None:
    for options in (OPTIONS[0], OPTIONS[3], OPTIONS[8], OPTIONS[10]):
        query, key, value = inputs(2, queries=150, keys=300, width=64, value_width=40, dtype=dtype)
        top, sample = draw_top(query, 30), torch.randint(300, (150, 29))
        exact = [x.double() for x in (query, key, value)]
        wanted = [*everything(reference, *exact, top, **options), reference.select(*exact[:2], sample, u=9)[1]]
        plain = [
            *everything(reference, query, key, value, top, **options),
            reference.select(query, key, sample, u=9)[1],
        ]
        found = [*everything(native, query, key, value, top, **options), native.select(query, key, sample, u=9)[1]]
        for a, b, c in zip(found, plain, wanted, strict=True):
            assert a.dtype == b.dtype
            assert not a.isnan().any()
            allowed = 2 * (b.double() - c).abs().max() + 1e-6 * (1 + c.abs().max())
            assert (a.double() - c).abs().max() <= allowed


@settings(
    max_examples=min(60, settings.default.max_examples),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    batch=st.sampled_from([(), (0,), (1,), (2, 3), (3, 1, 2)]),
    queries=st.sampled_from([0, 1, 2, 7, 33, 65]),
    keys=st.sampled_from([1, 2, 9, 64, 65, 129]),
    width=st.integers(1, 256),
    value_width=st.integers(1, 256),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    options=st.sampled_from(OPTIONS),
    isa=st.sampled_from(ISAS),
    share=st.floats(0, 1),
)
def test_any_shape(
    monkeypatch: pytest.MonkeyPatch,
    batch: tuple[int, ...],
    queries: int,
    keys: int,
    width: int,
    value_width: int,
    dtype: torch.dtype,
    options: dict[str, Any],
    isa: str,
    share: float,
) -> None:
    monkeypatch.setenv("SIMMST_CPU_ISA", isa)
    query, key, value = inputs(*batch, queries=queries, keys=keys, width=width, value_width=value_width, dtype=dtype)
    u = min(queries, math.ceil(share * queries))
    top = draw_top(query, u)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    assert_same(
        everything(native, query, key, value, top, **options),
        everything(reference, query, key, value, top, **options),
        tolerance,
    )
    sample = torch.randint(keys, (queries, 7))
    found, measure = native.select(query, key, sample, u=u)
    assert_same([measure], [reference.select(query, key, sample, u=u)[1]], tolerance)
    order = measure.sort(dim=-1, descending=True, stable=True).indices
    assert torch.equal(found, order[..., :u].sort(-1).values)


def heads_last(tensor: Tensor) -> Tensor:
    """Return the same numbers as a (B, H, L, D) view of a (B, L, H, D) tensor."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def columns_apart(tensor: Tensor) -> Tensor:
    return torch.stack((tensor, tensor), -1)[..., 0]


@pytest.mark.parametrize(
    "layout", [heads_last, columns_apart, lambda x: x.mT.contiguous().mT, lambda x: x.flip(0).flip(0)]
)
@pytest.mark.parametrize("threads", [1, 2])
def test_layouts_change_no_bit(layout: Any, threads: int) -> None:
    torch.set_num_threads(threads)
    query, key, value = inputs(2, 3, queries=50, keys=70, dtype=torch.float32)
    top = draw_top(query, 20)
    laid_out = [layout(x) for x in (query, key, value)]
    for a, b in zip(everything(native, query, key, value, top), everything(native, *laid_out, top), strict=True):
        assert torch.equal(a, b)
    out, _ = native.attend(*laid_out, top)
    assert out.stride() == torch.empty_like(laid_out[0]).stride()
    sample = torch.randint(70, (50, 21))
    for a, b in zip(native.select(query, key, sample, u=9), native.select(*laid_out[:2], sample, u=9), strict=True):
        assert torch.equal(a, b)


def test_expanded_and_strided_rows() -> None:
    query, key, value = inputs(2, queries=40, keys=60)
    key, value = key[:1].expand(2, 60, 16), torch.cat((value, value), -1)[..., :16]
    top = draw_top(query, 11)
    assert_same(everything(native, query, key, value, top), everything(reference, query, key, value, top))


def test_more_than_65535_batch_entries() -> None:
    query, key, value = inputs(70_000, queries=3, keys=4, width=3, value_width=2, dtype=torch.float32)
    top = draw_top(query, 2)
    found, wanted = (everything(module, query, key, value, top, dropout_p=0.2) for module in (native, reference))
    assert_same(found, wanted, 1e-5)
    sample = torch.randint(4, (3, 2))
    assert_same([native.select(query, key, sample, u=1)[1]], [reference.select(query, key, sample, u=1)[1]], 1e-5)


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("options", [OPTIONS[1], OPTIONS[4], OPTIONS[9]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_runs_and_thread_counts_agree_to_the_bit(
    isa: str, batch: int, options: dict[str, Any], dtype: torch.dtype
) -> None:
    query, key, value = inputs(batch, queries=200, keys=600, width=40, value_width=24, dtype=dtype)
    top, sample = draw_top(query, 90), torch.randint(600, (200, 30))
    runs = []
    for threads in (1, 1, 2, 5):
        torch.set_num_threads(threads)
        run = everything(native, query, key, value, top, **options)
        runs.append([*run, *native.select(query, key, sample, u=35), *native.select(query, key, sample[0], u=35)])
    for run in runs[1:]:
        for a, b in zip(run, runs[0], strict=True):
            assert torch.equal(a, b)


def test_dropout_drops_the_very_weights_that_the_reference_drops(isa: str) -> None:
    query, key, _ = inputs(2, 2, queries=60, keys=131)
    value = torch.eye(131, dtype=torch.float64).expand(2, 2, 131, 131)  # so that out is the weights
    top, seed = draw_top(query, 20), torch.tensor([2**32 - 1, 12345])
    outs = [m.attend(query, key, value, top, seed, Options(dropout_p=0.37))[0] for m in (native, reference)]
    rows = [out.gather(-2, top[..., None].expand(2, 2, 20, 131)) for out in outs]
    assert torch.equal(rows[0] == 0, rows[1] == 0)
    assert 0.3 < (rows[0] == 0).double().mean() < 0.44


def test_ties_go_to_the_lower_index_and_nan_is_the_largest(isa: str) -> None:
    key = torch.ones(1, 1)
    sample = torch.zeros(8, 1, dtype=torch.int64)
    query = torch.tensor([1.0, 5.0, -0.0, 0.0, 5.0, 5.0, torch.nan, -3.0])[:, None]
    for u in range(1, 9):
        found, _ = native.select(query, key, sample, u=u, normalizer="keys")
        assert torch.equal(found, reference.select(query, key, sample, u=u)[0])
    equal = torch.ones(100, 1)
    found, _ = native.select(equal, key, torch.zeros(100, 1, dtype=torch.int64), u=7)
    assert found.tolist() == list(range(7))


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_show_where_the_reference_shows_them(isa: str, which: int, bad: float) -> None:
    tensors = inputs(2, queries=40, keys=70, dtype=torch.float32)
    tensors[which][0, 5, 3] = bad
    top = torch.arange(3, 23).expand(2, 20)
    found, wanted = native.attend(*tensors, top)[0], reference.attend(*tensors, top)[0]
    assert torch.equal(found.isnan(), wanted.isnan())
    torch.testing.assert_close(found, wanted, equal_nan=True, rtol=1e-4, atol=1e-5)
    sample = torch.arange(12)
    found, wanted = (m.select(*tensors[:2], sample, u=4)[1] for m in (native, reference))
    assert torch.equal(found.isnan(), wanted.isnan())


def test_indices_out_of_range_are_refused_before_memory_is_touched(isa: str) -> None:
    query, key, value = inputs(2, queries=10, keys=12)
    sample, top = torch.zeros(10, 3, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int64)
    for bad in (-1, 12, 2**62):
        wrong = sample.clone()
        wrong[9, 2] = bad
        with pytest.raises(IndexError, match="sample must hold indices from 0 to 11"):
            native.select(query, key, wrong, u=3)
        with pytest.raises(ValueError, match="sample must hold indices from 0 to 11"):
            prob_sparse_attention(query, key, value, sample=wrong, backend="cpu")
    for bad in (-1, 10):
        wrong = top.clone()
        wrong[1, 3] = bad
        with pytest.raises(IndexError, match="top must hold indices from 0 to 9"):
            native.attend(query, key, value, wrong)
        with pytest.raises(ValueError, match="top must hold indices from 0 to 9"):
            prob_sparse_attend(query, key, value, wrong, backend="cpu")


def test_the_module_checks_sizes_itself() -> None:
    query, key, value = inputs(2, queries=10, keys=12)
    top, sample = torch.zeros(2, 4, dtype=torch.int64), torch.zeros(10, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"key float64 \(2, 12, 8\) must have any rows and 16 columns"):
        native.attend(query, key[..., :8], value, top)
    with pytest.raises(ValueError, match=r"value float64 \(2, 5, .*\) must have 12 rows and any columns"):
        native.attend(query, key, value[:, :5], top)
    with pytest.raises(ValueError, match=r"key float64 \(1, .*\) must have the leading sizes of query"):
        native.attend(query, key[:1], value, top)
    with pytest.raises(ValueError, match=r"top int64 \(3, 2, 4\) must have 2 rows of 4"):
        native.attend(query, key, value, top.expand(3, 2, 4))
    with pytest.raises(ValueError, match=r"sample int64 \(4, 3\) must have shape \(L_Q, S\)"):
        native.select(query, key, sample[:4], u=2)
    with pytest.raises(ValueError, match="key must have at least one position"):
        native.attend(query, key[:, :0], value[:, :0], top)
    with pytest.raises(ValueError, match="needs a seed"):
        native.attend(query, key, value, top, options=Options(dropout_p=0.5))


def test_it_is_the_automatic_choice_and_gives_gradients_through_autograd() -> None:
    query, key, value = inputs(2, 3, queries=48, keys=60)
    sample = torch.randint(60, (48, 25))
    results = []
    for backend in (None, "cpu", "reference"):
        leaves = [x.clone().requires_grad_() for x in (query, key, value)]
        out, aux = prob_sparse_attention(*leaves, sample=sample, is_causal=True, return_aux=True, backend=backend)
        out.sin().sum().backward()
        results.append([out.detach(), aux.lse, aux.measure, *[x.grad for x in leaves]])
        assert not aux.lse.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert_same(results[1], results[2])
    leaves = [x[:1, :1, :12].clone().requires_grad_() for x in (query, key, value)]
    top = torch.tensor([[[0, 3, 7]]])
    assert torch.autograd.gradcheck(lambda *x: prob_sparse_attend(*x, top, backend="cpu")[0], leaves)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sampling", ["per_query", "shared"])
def test_the_short_way_the_long_way_and_the_dispatcher_agree_to_the_bit(
    is_causal: bool, dtype: torch.dtype, sampling: str
) -> None:
    for queries in (3, 64):
        query, key, value = inputs(2, 3, queries=queries, keys=80, dtype=dtype)
        sample = torch.randint(80, (queries, 25) if sampling == "per_query" else (25,))
        short = prob_sparse_attention(query, key, value, sample=sample, is_causal=is_causal)
        long, aux = prob_sparse_attention(query, key, value, sample=sample, is_causal=is_causal, return_aux=True)
        assert torch.equal(short, long)
        options = (is_causal, 0.25, "cumsum" if is_causal else "mean", 0.0, "cpu")
        dispatched = torch.ops.simmst.prob_sparse_attend(query, key, value, aux.top, None, *options)
        direct = library.attend(query, key, value, aux.top, None, Options(*options[:-1]), "cpu")
        assert all(torch.equal(a, b) for a, b in zip(dispatched, direct, strict=True))
        assert torch.equal(short, direct[0])
        chosen = torch.ops.simmst.prob_sparse_select(query, key, sample, aux.top.shape[-1], "keys", "cpu")
        assert torch.equal(chosen[0], aux.top)
        assert torch.equal(prob_sparse_select(query, key, sample, u=aux.top.shape[-1])[1], chosen[1])


def test_compiled_without_a_graph_break() -> None:
    query, key, value = inputs(2, queries=40, keys=40, dtype=torch.float32)
    sample = torch.randint(40, (40, 20))

    def step(x: Tensor) -> Tensor:
        return prob_sparse_attention(x, key, value, sample=sample, backend="cpu").sum(-1)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(query), step(query))
