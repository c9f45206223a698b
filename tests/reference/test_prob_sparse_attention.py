from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from simmst.core.prob_sparse_attention import DEFAULTS, Options
from simmst.reference import prob_sparse_attention as reference

FILLS = (None, "mean", "cumsum", "cummean")
OPTIONS = list(itertools.product((False, True), FILLS))


def naive(query, key, value, sample, u, normalizer, is_causal, scale, fill):
    """Compute Informer's definition, one number at a time, for one head in float64."""
    query, key, value = (np.asarray(x, dtype=np.float64) for x in (query, key, value))
    queries, keys = len(query), len(key)
    measure = []
    for i in range(queries):
        indices = sample[i] if np.ndim(sample) == 2 else sample
        scores = [float(np.dot(query[i], key[j])) for j in indices]
        measure.append(max(scores) - sum(scores) / (keys if normalizer == "keys" else len(scores)))
    top = sorted(sorted(range(queries), key=lambda i: (-measure[i], i))[:u])
    fill = fill or ("cumsum" if is_causal else "mean")
    out, lse = np.zeros((queries, value.shape[1])), []
    for i in range(queries):
        visible = range(min(i + 1, keys))
        if i in top:
            seen = visible if is_causal else range(keys)
            exponentials = [math.exp(scale * float(np.dot(query[i], key[j]))) for j in seen]
            lse.append(math.log(sum(exponentials)))
            out[i] = sum(e * value[j] for e, j in zip(exponentials, seen, strict=True)) / sum(exponentials)
        elif fill == "mean":
            out[i] = sum(value[j] for j in range(keys)) / keys
        else:
            out[i] = sum(value[j] for j in visible) / (len(visible) if fill == "cummean" else 1)
    return np.array(measure), np.array(top, dtype=np.int64), out, np.array(lse)


def run(query, key, value, sample, u, *, normalizer="keys", options=DEFAULTS):
    top, measure = reference.select(query, key, sample, u=u, normalizer=normalizer)
    return (measure, top, *reference.attend(query, key, value, top, options=options))


def random_inputs(*batch: int, queries=9, keys=7, width=4, value_width=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (*batch, queries, width), (*batch, keys, width), (*batch, keys, value_width)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


@settings(max_examples=80, deadline=None)
@given(
    data=st.data(),
    batch=st.sampled_from([(), (1,), (0,), (3,), (2, 1), (1, 2, 2)]),
    queries=st.integers(0, 13),
    keys=st.integers(1, 13),
    width=st.sampled_from([1, 2, 5, 8, 64]),
    value_width=st.sampled_from([1, 3, 64]),
    is_causal=st.booleans(),
    fill=st.sampled_from(FILLS),
    normalizer=st.sampled_from(["keys", "samples"]),
    shared=st.booleans(),
    transposed=st.booleans(),
)
def test_equals_the_definition(
    data, batch, queries, keys, width, value_width, is_causal, fill, normalizer, shared, transposed
) -> None:
    seed = data.draw(st.integers(0, 2**31), label="seed")
    u = data.draw(st.integers(min(1, queries), queries), label="u")
    samples = data.draw(st.integers(1, keys), label="samples")
    query, key, value = random_inputs(
        *batch, queries=queries, keys=keys, width=width, value_width=value_width, seed=seed
    )
    if transposed:  # the same numbers, in a layout with the width first
        query, key, value = (x.mT.contiguous().mT for x in (query, key, value))
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randint(keys, (samples,) if shared else (queries, samples), generator=generator)
    scale = 1 / math.sqrt(width)
    options = Options(is_causal=is_causal, fill=fill)
    measure, top, out, lse = run(query, key, value, sample, u, normalizer=normalizer, options=options)
    assert out.shape == (*batch, queries, value_width)
    assert top.shape == lse.shape == (*batch, u)
    assert top.dtype == torch.int64
    for index in np.ndindex(*batch):
        expected = naive(query[index], key[index], value[index], sample.numpy(), u, normalizer, is_causal, scale, fill)
        for ranked in (np.sort(expected[0])[::-1], np.sort(measure[index].numpy())[::-1]) if 0 < u < queries else ():
            # the definition does not say which of two measures is larger if they differ by a rounding
            assume(not 0 < ranked[u - 1] - ranked[u] < 1e-9)
        for got, wanted in zip((measure, top, out, lse), expected, strict=True):
            np.testing.assert_allclose(got[index].numpy(), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("keys_per_sample", [0, 10**9])
def test_chunks_give_the_measure_of_one_piece(monkeypatch: pytest.MonkeyPatch, keys_per_sample: int) -> None:
    query, key, _ = random_inputs(2, 3, queries=23, keys=19)
    sample = torch.randint(19, (23, 4), generator=torch.Generator().manual_seed(1))
    _, expected = reference.select(query, key, sample, u=5)
    monkeypatch.setattr(reference, "_KEYS_PER_SAMPLE", keys_per_sample)
    monkeypatch.setattr(reference, "_CHUNK_FACTOR", 0)
    monkeypatch.setattr(reference, "_CHUNK_ROWS", 4)
    _, chunked = reference.select(query, key, sample, u=5)
    torch.testing.assert_close(chunked, expected, rtol=1e-12, atol=1e-12)


def test_ties_go_to_the_lower_index() -> None:
    query, key = torch.ones(2, 40, 3), torch.ones(2, 5, 3)
    query[1, 30] = 2.0
    top, _ = reference.select(query, key, torch.zeros(40, 2, dtype=torch.int64), u=3)
    assert top.tolist() == [[0, 1, 2], [0, 1, 30]]


def test_nan_measures_are_selected_first() -> None:
    query, key, value = random_inputs(queries=8, keys=6)
    query[5] = math.nan
    sample = torch.arange(6)
    top, measure = reference.select(query, key, sample, u=2)
    assert 5 in top
    assert measure[5].isnan()
    out, _ = reference.attend(query, key, value, top)
    assert out[5].isnan().all()
    assert not out[torch.arange(8) != 5].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    query, key, value = random_inputs(2, dtype=dtype)
    measure, _, out, lse = run(query, key, value, torch.arange(4), 3)
    assert out.dtype == dtype
    assert measure.dtype == lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("is_causal", "fill"), OPTIONS)
def test_half_precision_errs_at_most_twice_as_much_as_plain_torch(dtype, is_causal, fill) -> None:
    exact = [x.to(dtype).double().requires_grad_() for x in random_inputs(2, 2, queries=70, keys=70, width=16)]
    half = [x.detach().to(dtype).requires_grad_() for x in exact]
    plain = [x.detach().to(dtype).requires_grad_() for x in exact]
    top = torch.arange(0, 70, 5).expand(2, 2, 14)
    grad = random_inputs(2, 2, queries=70, keys=70, value_width=3, seed=3)[2].to(dtype)

    def in_one_precision(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = query[..., top[0, 0], :] @ key.mT * 0.25
        if is_causal:
            scores = scores.masked_fill(torch.arange(70) > top[0, 0, :, None], -math.inf)
        rest = value.cumsum(-2) if (fill or ("cumsum" if is_causal else "mean")) != "mean" else value.mean(-2, True)
        rest = rest / torch.arange(1, 71, dtype=rest.dtype)[:, None] if fill == "cummean" else rest
        return rest.expand(value.shape).index_copy(-2, top[0, 0], scores.softmax(-1) @ value)

    options = Options(is_causal=is_causal, fill=fill)
    outs = [
        reference.attend(*exact, top, options=options)[0],
        reference.attend(*half, top, options=options)[0],
        in_one_precision(*plain),
    ]
    for out in outs:
        out.backward(grad.to(out.dtype))
    out, lse = reference.attend(*half, top, options=options)
    closed = reference.attend_backward(grad, *half, top, out, lse, options=options)
    results = [[outs[0], *(x.grad for x in exact)], [outs[1], *(x.grad for x in half)]]
    baseline = [outs[2], *(x.grad for x in plain)]
    for candidate in (results[1], [outs[1], *closed]):
        for name, right, got, rough in zip("oqkv", results[0], candidate, baseline, strict=True):
            error, allowed = ((x.double() - right).norm() for x in (got, rough))
            assert not got.isnan().any()
            assert error <= 2 * allowed + 1e-6, f"{name}: {error} > 2 * {allowed}"


@pytest.mark.parametrize(("is_causal", "fill"), OPTIONS)
@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (8, 3), (3, 8)])
def test_gradients(is_causal, fill, dropout_p, queries, keys) -> None:
    inputs = [x.requires_grad_() for x in random_inputs(2, queries=queries, keys=keys, width=2, value_width=2)]
    top = torch.tensor([[0, 2], [1, 2]])
    given = torch.tensor([5, 6]), Options(is_causal=is_causal, fill=fill, dropout_p=dropout_p)

    def attend(*tensors: Tensor) -> Tensor:
        return reference.attend(*tensors, top, *given)[0]

    assert torch.autograd.gradcheck(attend, inputs, check_forward_ad=True)
    out, lse = reference.attend(*inputs, top, *given)
    grad = torch.randn_like(out)
    expected = torch.autograd.grad(out, inputs, grad)
    closed = reference.attend_backward(grad, *inputs, top, out, lse, *given)
    for got, wanted in zip(closed, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("is_causal", [False, True])
def test_second_derivatives(is_causal: bool) -> None:
    inputs = [x.requires_grad_() for x in random_inputs(queries=5, keys=4, width=2, value_width=2)]
    top = torch.tensor([1, 3])
    assert torch.autograd.gradgradcheck(
        lambda *x: reference.attend(*x, top, options=Options(is_causal=is_causal))[0], inputs
    )


def test_backward_of_a_full_selection_has_no_fill() -> None:
    query, key, value = (x.requires_grad_() for x in random_inputs(2, queries=4))
    top = torch.arange(4).expand(2, 4)
    out, lse = reference.attend(query, key, value, top, options=Options(fill="cumsum"))
    torch.testing.assert_close(out, torch.nn.functional.scaled_dot_product_attention(query, key, value))
    grad = torch.randn_like(out)
    closed = reference.attend_backward(grad, query, key, value, top, out, lse, options=Options(fill="cumsum"))
    for got, wanted in zip(closed, torch.autograd.grad(out, (query, key, value), grad), strict=True):
        torch.testing.assert_close(got, wanted)


def test_torch_func_transforms() -> None:
    query, key, value = random_inputs(3)
    sample = torch.arange(4)

    def total(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        top, _ = reference.select(q, k, sample, u=3)
        return reference.attend(q, k, v, top, options=Options(is_causal=True))[0]

    torch.testing.assert_close(torch.func.vmap(total)(query, key, value), total(query, key, value))
    grads = torch.func.vmap(torch.func.grad(lambda *x: total(*x).square().sum(), argnums=(0, 1, 2)))(query, key, value)
    leaves = [x.clone().requires_grad_() for x in (query, key, value)]
    expected = torch.autograd.grad(total(*leaves).square().sum(), leaves)
    for got, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(got, wanted)
    tangents = tuple(torch.randn_like(x) for x in (query, key, value))
    _, derivative = torch.func.jvp(total, (query, key, value), tangents)
    step = 1e-6
    moved = [total(*(x + s * step * t for x, t in zip((query, key, value), tangents, strict=True))) for s in (1, -1)]
    torch.testing.assert_close(derivative, (moved[0] - moved[1]) / (2 * step), rtol=1e-6, atol=1e-7)


def test_selection_and_lse_carry_no_gradient() -> None:
    query, key, value = (x.requires_grad_() for x in random_inputs(2))
    measure, _, out, lse = run(query, key, value, torch.arange(3), 4)
    assert out.requires_grad
    assert not measure.requires_grad
    assert not lse.requires_grad


@pytest.mark.parametrize("fill", ["cumsum", "cummean"])
def test_causal_rows_do_not_see_later_keys_when_the_selection_is_given(fill: str) -> None:
    query, key, value = random_inputs(2, queries=9, keys=9)
    top = torch.tensor([[1, 4, 8], [0, 2, 6]])
    before, _ = reference.attend(query, key, value, top, options=Options(is_causal=True, fill=fill))
    for row in range(8):
        later_key, later_value = key.clone(), value.clone()
        later_key[:, row + 1 :] = 1e6
        later_value[:, row + 1 :] = math.inf
        after, _ = reference.attend(query, later_key, later_value, top, options=Options(is_causal=True, fill=fill))
        selected = [row in rows for rows in top.tolist()]
        for batch in range(2):
            if not selected[batch]:  # 0 * inf in a masked product is NaN; selected rows are tested with finite values
                assert torch.equal(after[batch, : row + 1][-1], before[batch, row])
        later_value[:, row + 1 :] = -1e6
        after, _ = reference.attend(query, later_key, later_value, top, options=Options(is_causal=True, fill=fill))
        assert torch.equal(after[:, : row + 1], before[:, : row + 1])


def test_dropout_drops_the_stated_share_and_keeps_the_mean() -> None:
    queries, keys, p = 40, 100, 0.3
    query, key = torch.zeros(8, queries, 2), torch.zeros(8, keys, 2)
    value = torch.eye(keys).expand(8, keys, keys)  # the output rows are the weights
    top = torch.arange(queries).expand(8, queries)
    out, _ = reference.attend(query, key, value, top, torch.tensor([1, 2]), Options(dropout_p=p))
    weights = out * keys
    dropped = weights == 0
    assert abs(dropped.double().mean() - p) < 5 * (p * (1 - p) / dropped.numel()) ** 0.5
    torch.testing.assert_close(weights[~dropped], torch.full_like(weights[~dropped], 1 / (1 - p)))
    assert not torch.equal(dropped[0], dropped[1])
    assert not torch.equal(dropped[:, 0], dropped[:, 1])
    again, _ = reference.attend(query, key, value, top, torch.tensor([1, 2]), Options(dropout_p=p))
    other, _ = reference.attend(query, key, value, top, torch.tensor([1, 3]), Options(dropout_p=p))
    assert torch.equal(out, again)
    assert not torch.equal(out, other)


def test_dropout_depends_on_the_query_and_not_on_what_else_is_selected() -> None:
    query, key, value = random_inputs(2, queries=10)
    given = torch.tensor([7, 8]), Options(dropout_p=0.5)
    whole, _ = reference.attend(query, key, value, torch.arange(10).expand(2, 10), *given)
    part, _ = reference.attend(query, key, value, torch.tensor([[3, 7], [0, 9]]), *given)
    torch.testing.assert_close(part[0, [3, 7]], whole[0, [3, 7]])
    torch.testing.assert_close(part[1, [0, 9]], whole[1, [0, 9]])


def test_dropout_without_a_seed_is_an_error() -> None:
    query, key, value = random_inputs()
    with pytest.raises(ValueError, match="needs a seed"):
        reference.attend(query, key, value, torch.tensor([0]), options=Options(dropout_p=0.5))
