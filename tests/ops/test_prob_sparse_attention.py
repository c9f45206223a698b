from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from simmst.core.prob_sparse_attention import informer_count
from simmst.errors import BackendUnavailableError
from simmst.ops import backends, dispatch, prob_sparse_attend, prob_sparse_attention, prob_sparse_select
from simmst.reference import prob_sparse_attention as reference

operators = torch.ops.simmst


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Backend "cpu" that runs the reference, plugged in like a kernel; returns the names of the calls."""
    calls = []

    class Kernel:
        def __getattr__(self, name: str) -> Callable[..., Any]:
            calls.append(name)
            return getattr(reference, name)

    stand_in = Kernel()
    load = backends.implementation
    monkeypatch.setattr(
        dispatch,
        "implementation",
        lambda operator, backend: stand_in if backend == "cpu" else load(operator, backend),
    )
    monkeypatch.setitem(backends._PREDICATES, "cpu", lambda operator, device, dtype: None)
    backends._resolve.cache_clear()
    yield calls
    backends._resolve.cache_clear()


def inputs(*batch: int, queries=30, keys=25, width=4, value_width=4, dtype=torch.float32, grad=False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (*batch, queries, width), (*batch, keys, width), (*batch, keys, value_width)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_(grad) for shape in shapes]


def test_counts_are_those_of_informer() -> None:
    lengths = [*range(1, 3000), *(round(math.exp(n)) + d for n in range(9, 14) for d in (-1, 0, 1))]
    for length in lengths:
        expected = min(5 * np.ceil(np.log(length)).astype("int").item(), length)
        assert informer_count(length, 5) == max(1, expected)


def test_a_seed_gives_the_selection_of_informer() -> None:
    query, key, value = inputs(2, 3, queries=96, keys=80)
    torch.manual_seed(7)
    sample = torch.randint(80, (96, 25))  # the draw of Informer2020's _prob_QK
    scores = torch.einsum("bhld,bhlsd->bhls", query, key[:, :, sample])
    measure = scores.max(-1)[0] - scores.sum(-1) / 80
    top = measure.topk(25, sorted=False)[1].sort(-1)[0]
    torch.manual_seed(7)
    _, aux = prob_sparse_attention(query, key, value, return_aux=True)
    assert torch.equal(aux.top, top)
    torch.testing.assert_close(aux.measure, measure)
    _, again = prob_sparse_attention(query, key, value, generator=torch.Generator().manual_seed(7), return_aux=True)
    assert torch.equal(again.measure, aux.measure)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("fill", [None, "mean", "cumsum", "cummean"])
@pytest.mark.parametrize("normalizer", ["keys", "samples"])
@pytest.mark.parametrize("sampling", ["per_query", "shared"])
def test_the_whole_is_its_two_halves(is_causal, fill, normalizer, sampling) -> None:
    query, key, value = inputs(2)
    draw = torch.Generator().manual_seed(3)
    sample = torch.randint(25, (30, 4) if sampling == "per_query" else (4,), generator=draw)  # ceil(ln 25) = 4
    options = {"is_causal": is_causal, "fill": fill, "scale": 0.3}
    whole, aux = prob_sparse_attention(
        query,
        key,
        value,
        factor=1,
        sampling=sampling,
        normalizer=normalizer,
        generator=torch.Generator().manual_seed(3),
        return_aux=True,
        **options,
    )
    top, measure = prob_sparse_select(query, key, sample, u=4, normalizer=normalizer)  # ceil(ln 30) = 4
    half, lse = prob_sparse_attend(query, key, value, top, **options)
    for got, wanted in ((aux.top, top), (aux.measure, measure), (whole, half), (aux.lse, lse)):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def test_short_sequences_get_full_attention_whether_or_not_aux_is_asked_for() -> None:
    query, key, value = inputs(2, 2, queries=9, keys=12)
    full = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(prob_sparse_attention(query, key, value), full)
    out, aux = prob_sparse_attention(query, key, value, return_aux=True)
    torch.testing.assert_close(out, full)
    assert torch.equal(aux.top, torch.arange(9).expand(2, 2, 9))
    states = []
    for return_aux in (False, True):
        generator = torch.Generator().manual_seed(1)
        prob_sparse_attention(query, key, value, generator=generator, return_aux=return_aux)
        states.append(generator.get_state())
    assert torch.equal(*states)


@pytest.mark.parametrize(("queries", "keys"), [(0, 5), (1, 1), (1, 5), (5, 1)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_smallest_sizes(queries: int, keys: int, is_causal: bool) -> None:
    for batch in ((), (0,), (2, 3)):
        query, key, value = inputs(*batch, queries=queries, keys=keys, value_width=6, grad=True)
        out, aux = prob_sparse_attention(query, key, value, is_causal=is_causal, return_aux=True)
        assert out.shape == (*batch, queries, 6)
        assert aux.top.shape == (*batch, queries)
        out.sum().backward()
        assert value.grad is not None
        assert not value.grad.isnan().any()


def test_dropout_is_reproducible_and_off_by_default() -> None:
    query, key, value = inputs(2)
    runs = [
        prob_sparse_attention(query, key, value, dropout_p=0.5, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_more_batch_entries_than_a_launch_grid_holds() -> None:
    query, key, value = inputs(65_540, queries=3, keys=2, width=1, value_width=1)
    top = torch.tensor([[1]]).expand(65_540, 1)
    out, _ = prob_sparse_attend(query, key, value, top)
    part, _ = prob_sparse_attend(query[-3:], key[-3:], value[-3:], top[-3:])
    torch.testing.assert_close(out[-3:], part)
    assert prob_sparse_attention(query, key, value, factor=1).shape == query.shape


# Bad input


BAD_CALLS = [
    ({"query": [1.0]}, TypeError, "query must be a torch.Tensor, got list"),
    ({"query": torch.zeros(2, 30, 4, dtype=torch.int64)}, TypeError, "float32, bfloat16, float16, float64, got int64"),
    ({"key": torch.zeros(2, 25, 4).double()}, TypeError, r"one dtype, got .*key float64 \(2, 25, 4\)"),
    ({"value": torch.zeros(2, 25, 4, device="meta")}, ValueError, "one device, got .*on meta"),
    ({"query": torch.zeros(4)}, ValueError, r"query must be .* got query float32 \(4,\)"),
    ({"query": torch.zeros(3, 30, 4)}, ValueError, r"same leading sizes .*\(3, 30, 4\)"),
    ({"query": torch.zeros(2, 30, 5)}, ValueError, r"the same D, got query float32 \(2, 30, 5\)"),
    ({"value": torch.zeros(2, 24, 4)}, ValueError, r"value must be .*\(2, 24, 4\)"),
    ({"key": torch.zeros(2, 0, 4), "value": torch.zeros(2, 0, 4)}, ValueError, "at least one position"),
    ({"query": torch.zeros(2, 30, 0), "key": torch.zeros(2, 25, 0)}, ValueError, "width of at least one"),
    ({"factor": 0}, ValueError, "factor must be at least 1, got 0"),
    ({"factor": True}, TypeError, r"factor must be an int, got True \(bool\)"),
    ({"factor": 2.5}, TypeError, r"factor must be an int, got 2.5 \(float\)"),
    ({"is_causal": 1}, TypeError, "is_causal must be True or False, got 1"),
    ({"return_aux": "yes"}, TypeError, "return_aux must be True or False"),
    ({"scale": "big"}, TypeError, "scale must be a number, got 'big'"),
    ({"scale": math.nan}, ValueError, "scale must be a number, got NaN"),
    ({"scale": math.inf}, ValueError, "scale must be finite, got inf"),
    ({"dropout_p": 1.0}, ValueError, "dropout_p must be at least 0 and less than 1, got 1.0"),
    ({"dropout_p": -0.1}, ValueError, "got -0.1"),
    ({"dropout_p": None}, TypeError, "dropout_p must be a number, got None"),
    ({"fill": "zero"}, ValueError, "fill must be one of None, 'mean', 'cumsum', 'cummean', got 'zero'"),
    ({"sampling": "random"}, ValueError, "sampling must be one of 'per_query', 'shared', got 'random'"),
    ({"normalizer": "none"}, ValueError, "normalizer must be one of 'keys', 'samples', got 'none'"),
    ({"sample": torch.zeros(30, 5)}, TypeError, r"sample must be int64, got float32 \(30, 5\)"),
    ({"sample": [1, 2]}, TypeError, "sample must be an int64 torch.Tensor, got list"),
    (
        {"sample": torch.zeros(29, 5, dtype=torch.int64)},
        ValueError,
        r"\(30, S\) or \(S,\) .* got sample int64 \(29, 5\)",
    ),
    ({"sample": torch.zeros(30, 0, dtype=torch.int64)}, ValueError, "S >= 1"),
    ({"sample": torch.zeros(1, 30, 5, dtype=torch.int64)}, ValueError, "sample must be"),
    ({"sample": torch.tensor([0, 25])}, ValueError, "sample must hold indices from 0 to 24, got values from 0 to 25"),
    ({"sample": torch.tensor([-1, 2])}, ValueError, "got values from -1 to 2"),
    ({"sample": torch.zeros(3, dtype=torch.int64, device="meta")}, ValueError, "sample must be on cpu"),
    ({"backend": "fast"}, ValueError, "argument backend is 'fast'; it must be one of reference, cpu, triton, cuda"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_CALLS)
def test_bad_input_names_what_it_got(change: dict[str, Any], error: type[Exception], message: str) -> None:
    query, key, value = inputs(2)
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    arguments = {"query": query, "key": key, "value": value, "generator": generator, "dropout_p": 0.1} | change
    with pytest.raises(error, match=message):
        prob_sparse_attention(**arguments)
    assert torch.equal(generator.get_state(), before)


def test_bad_input_to_the_halves() -> None:
    query, key, value = inputs(2)
    for u in (0, 31):
        with pytest.raises(ValueError, match=f"u must be from 1 to 30, got {u}"):
            prob_sparse_select(query, key, torch.arange(3), u=u)
    with pytest.raises(TypeError, match=r"u must be an int, got 2\.0"):
        prob_sparse_select(query, key, torch.arange(3), u=2.0)
    for top in (torch.tensor([0]), torch.zeros(3, 2, dtype=torch.int64), torch.arange(31).expand(2, 31)):
        with pytest.raises(ValueError, match=r"top must be \(\.\.\., u\) with the leading sizes of query"):
            prob_sparse_attend(query, key, value, top)
    for top, shown in (([[0, 30], [1, 2]], "0 to 30"), ([[-1, 3], [1, 2]], "-1 to 3")):
        with pytest.raises(ValueError, match=f"top must hold indices from 0 to 29, got values from {shown}"):
            prob_sparse_attend(query, key, value, torch.tensor(top))
    with pytest.raises(TypeError, match="top must be int64, got int32"):
        prob_sparse_attend(query, key, value, torch.zeros(2, 1, dtype=torch.int32))


def test_a_backend_asked_for_by_name_is_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = inputs(2)
    for name in ("triton", "cuda"):
        with pytest.raises(BackendUnavailableError, match=rf"backend '{name}' \(the argument backend\) cannot run"):
            prob_sparse_attention(query, key, value, backend=name)
        monkeypatch.setenv("SIMMST_BACKEND", name)
        with pytest.raises(BackendUnavailableError, match="environment variable SIMMST_BACKEND"):
            prob_sparse_attend(query, key, value, torch.zeros(2, 1, dtype=torch.int64))
        prob_sparse_attention(query, key, value, backend="reference")


# Autograd, autocast, compilers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_and_runs_outside(dtype: torch.dtype) -> None:
    query, key, value = inputs(2, grad=True)
    with torch.autocast("cpu", dtype=dtype):
        out, aux = prob_sparse_attention(query, key.to(dtype), value=value, sample=torch.arange(5), return_aux=True)
    assert out.dtype == dtype
    assert aux.lse.dtype == aux.measure.dtype == torch.float32
    cast = [x.to(dtype) for x in (query, key, value)]
    assert torch.equal(out, prob_sparse_attention(*cast, sample=torch.arange(5)))
    out.sum().backward()
    assert query.grad is not None
    assert query.grad.dtype == torch.float32
    with torch.autocast("cpu", dtype=dtype):
        assert prob_sparse_attention(*(x.double() for x in (query, key, value))).dtype == torch.float64


LIBRARY_OPTIONS = [
    (None, False, 0.5, "mean", 0.0),
    (None, True, 0.5, "cumsum", 0.0),
    (torch.tensor([1, 2]), True, 0.3, "cummean", 0.25),
]


@pytest.mark.parametrize("options", LIBRARY_OPTIONS)
@pytest.mark.parametrize("transposed", [False, True])
def test_library_operators_pass_opcheck(options: tuple[Any, ...], transposed: bool) -> None:
    pytest.importorskip("simmst._cpu", reason="this installation has no compiled CPU module")
    for value_width in (4, 3):
        tensors = inputs(2, 3, queries=8, keys=6, value_width=value_width)
        if transposed:  # the (B, L, H, D) layout
            tensors = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors]
        query, key, value = (x.requires_grad_() for x in tensors)
        top = torch.tensor([1, 4]).expand(2, 3, 2)
        arguments = (*options, "cpu")
        torch.library.opcheck(operators.prob_sparse_attend.default, (query, key, value, top, *arguments))
        out, lse = operators.prob_sparse_attend(query, key, value, top, *arguments)
        assert not lse.requires_grad
        assert value_width != 4 or out.stride() == query.stride()
        saved = [x.detach() for x in (torch.ones_like(out), query, key, value, top, out, lse)]
        torch.library.opcheck(operators.prob_sparse_attend_backward.default, (*saved, *arguments))


@pytest.mark.parametrize("shape", [(6,), (8, 6)])
def test_select_passes_opcheck(shape: tuple[int, ...]) -> None:
    query, key, _ = inputs(2, queries=8, keys=6)
    sample = torch.randint(6, shape)
    for q in (query, query.mT.contiguous().mT):
        torch.library.opcheck(operators.prob_sparse_select.default, (q, key, sample, 3, "samples", "reference"))
    top, measure = operators.prob_sparse_select(query.requires_grad_(), key, sample, 3, "keys", "reference")
    assert not measure.requires_grad
    assert torch.equal(top, reference.select(query, key, sample, u=3)[0])


@pytest.mark.parametrize("options", LIBRARY_OPTIONS)
def test_library_gradients(options: tuple[Any, ...]) -> None:
    tensors = inputs(2, queries=5, keys=4, width=2, value_width=2, dtype=torch.float64, grad=True)
    top = torch.tensor([[0, 3], [1, 2]])
    assert torch.autograd.gradcheck(lambda *x: operators.prob_sparse_attend(*x, top, *options, "reference")[0], tensors)


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_eager_compiled_and_reference_calls_agree(kernel: list[str], dropout_p: float) -> None:
    query, key, value = inputs(2, 2, grad=True)

    def attention(query: Tensor, key: Tensor, value: Tensor, backend: str) -> Tensor:
        return prob_sparse_attention(query, key, value, factor=2, is_causal=True, dropout_p=dropout_p, backend=backend)

    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    results = []
    for run, backend in ((attention, "reference"), (attention, "cpu"), (compiled, "cpu"), (compiled, "reference")):
        kernel.clear()
        torch.manual_seed(5)
        out = run(query, key, value, backend)
        results.append([out, *torch.autograd.grad(out.square().sum(), (query, key, value))])
        assert set(kernel) == ({"select", "attend", "attend_backward"} if backend == "cpu" else set())
    for result in results[1:]:
        for got, wanted in zip(result, results[0], strict=True):
            torch.testing.assert_close(got, wanted)


def test_a_kernel_is_chosen_when_none_is_named_and_plain_torch_inside_transforms(kernel: list[str]) -> None:
    query, key, value = inputs(2)
    top = torch.zeros(2, 1, dtype=torch.int64)
    prob_sparse_attend(query, key, value, top)
    assert kernel == ["attend"]
    kernel.clear()
    torch.func.grad(lambda q: prob_sparse_attend(q, key, value, top)[0].sum())(query)
    torch.func.vmap(lambda q, k, v, t: prob_sparse_attend(q, k, v, t)[0])(query, key, value, top)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(query, torch.ones_like(query))
        out, _ = prob_sparse_attend(dual, key, value, top)
        assert torch.autograd.forward_ad.unpack_dual(out).tangent is not None
    assert kernel == []
    with pytest.raises(BackendUnavailableError, match=r"torch\.func transforms"):
        torch.func.grad(lambda q: prob_sparse_attend(q, key, value, top, backend="cpu")[0].sum())(query)


def test_kernels_refuse_a_second_derivative(kernel: list[str]) -> None:
    tensors = inputs(2, grad=True)
    out, _ = prob_sparse_attend(*tensors, torch.zeros(2, 1, dtype=torch.int64), backend="cpu")
    first = torch.autograd.grad(out.square().sum(), tensors, create_graph=True)
    with pytest.raises(RuntimeError, match='backend="reference" to differentiate twice'):
        first[0].sum().backward()


def test_compiles_whole_without_warnings_at_every_length() -> None:
    torch.compiler.reset()
    compiled = torch.compile(prob_sparse_attention, fullgraph=True, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for length in (12, 40, 50):
            tensors = inputs(2, queries=length, keys=length, grad=True)
            torch.manual_seed(2)
            out, aux = compiled(*tensors, return_aux=True)
            torch.manual_seed(2)
            wanted, wanted_aux = prob_sparse_attention(*tensors, return_aux=True)
            torch.testing.assert_close(out, wanted)
            assert torch.equal(aux.top, wanted_aux.top)
            out.sum().backward()


@pytest.mark.slow(of=("csrc/core", "csrc/cpu", "simmst/core", "simmst/native/cpu", "simmst/ops", "simmst/reference"))
def test_inductor() -> None:
    compiled = torch.compile(prob_sparse_attention, fullgraph=True)
    tensors = inputs(2, 2, queries=60, keys=60, grad=True)
    sample = torch.randint(60, (60, 25))
    out = compiled(*tensors, sample=sample, is_causal=True)
    wanted = prob_sparse_attention(*tensors, sample=sample, is_causal=True)
    torch.testing.assert_close(out, wanted)
    grads = (torch.autograd.grad(x.square().sum(), tensors) for x in (out, wanted))
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_export(kernel: list[str], backend: str) -> None:
    class Attention(torch.nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor, sample: Tensor) -> Tensor:
            return prob_sparse_attention(query, key, value, sample=sample, backend=backend)

    tensors = inputs(3)
    sample = torch.randint(25, (30, 5))
    batch = torch.export.Dim("batch")
    exported = torch.export.export(
        Attention(), (*tensors, sample), dynamic_shapes=({0: batch}, {0: batch}, {0: batch}, None)
    )
    names = [str(node.target) for node in exported.graph.nodes]
    assert ("simmst.prob_sparse_attend.default" in names) == (backend == "cpu")
    larger = inputs(5)
    torch.testing.assert_close(exported.module()(*larger, sample), prob_sparse_attention(*larger, sample=sample))
