"""ProbSparse attention agrees with the public implementations for the same samples, with their faults corrected."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from simmst.core.prob_sparse_attention import informer_count
from simmst.ops import prob_sparse_attention

pytest.importorskip("simmst._cpu", reason="this installation has no compiled CPU module")

BATCH, HEADS, WIDTH, FACTOR = 2, 4, 16, 5
BACKENDS = ["cpu", "reference"]


def draw(length: int, seed: int) -> Tensor:
    """(B, H, L, D)"""
    return torch.randn(BATCH, HEADS, length, WIDTH, generator=torch.Generator().manual_seed(seed))


def assert_same_with_gradients(ours: Tensor, theirs: Tensor, leaves: list[Tensor], tolerance: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * max(1.0, theirs.detach().abs().max().item()))
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(9))
    for one, two in zip(*(torch.autograd.grad(out, leaves, weights) for out in (ours, theirs)), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=tolerance * max(1.0, two.abs().max().item()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(96, 96), (336, 336), (40, 150), (720, 720), (12, 5)])
def test_neuralforecast(backend: str, is_causal: bool, queries: int, keys: int) -> None:
    informer = pytest.importorskip("neuralforecast.models.informer", reason="neuralforecast is not installed")
    if is_causal and queries != keys:
        pytest.skip("its causal mode wants as many queries as keys")
    leaves = [draw(length, seed).requires_grad_() for seed, length in enumerate((queries, keys, keys))]
    layer = informer.ProbAttention(mask_flag=is_causal, factor=FACTOR, attention_dropout=0.0).eval()
    torch.manual_seed(queries)
    # It takes (B, L, H, D) and returns (B, H, L, D), which its caller then reads as (B, L, H, D): this is the fault.
    theirs, _ = layer(
        **dict(zip(("queries", "keys", "values"), (x.transpose(1, 2) for x in leaves), strict=True)), attn_mask=None
    )
    torch.manual_seed(queries)
    sample = torch.randint(keys, (queries, informer_count(keys, FACTOR)))  # its only draw
    ours = prob_sparse_attention(*leaves, sample=sample, factor=FACTOR, is_causal=is_causal, backend=backend)
    assert_same_with_gradients(ours, theirs, leaves)


def hugging_face(is_decoder: bool, factor: int) -> Any:
    """Return its attention without projections: states (B, L, C) are query, key and value, heads in the columns."""
    informer = pytest.importorskip("transformers.models.informer.modeling_informer", reason="transformers is missing")
    layer = informer.InformerProbSparseAttention(
        HEADS * WIDTH, HEADS, dropout=0.0, is_decoder=is_decoder, sampling_factor=factor
    ).eval()
    layer.q_proj, layer.k_proj, layer.v_proj, layer.out_proj = (torch.nn.Identity() for _ in range(4))
    return layer


def as_states(heads: Tensor) -> Tensor:
    return heads.transpose(1, 2).flatten(2)


def their_counts(queries: int, keys: int, factor: int) -> tuple[int, int]:
    """Return its number of samples, shared by all queries and proportional to L_Q, and of selected queries."""
    samples = min(factor * queries * math.ceil(math.log1p(keys)), keys)
    return samples, min(factor * math.ceil(math.log1p(queries)), queries)


# 148 is floor(e^5): log1p selects 30 queries there where the logarithm selects 25, so it takes another factor.
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("is_decoder", [False, True])
@pytest.mark.parametrize(
    ("length", "factor", "our_factor"), [(96, 5, 5), (336, 5, 5), (148, 5, 6), (720, 2, 2), (9, 5, 5)]
)
def test_hugging_face(backend: str, is_decoder: bool, length: int, factor: int, our_factor: int) -> None:
    layer = hugging_face(is_decoder, factor)
    samples, selected = their_counts(length, length, factor)
    assert informer_count(length, our_factor) == selected
    heads = draw(length, seed=3).requires_grad_()
    mask = torch.full((length, length), -torch.inf).triu(1).expand(BATCH, 1, length, length) if is_decoder else None
    torch.manual_seed(length)
    theirs = layer(as_states(heads), attention_mask=mask)[0].unflatten(2, (HEADS, WIDTH)).transpose(1, 2)
    torch.manual_seed(length)
    sample = torch.randint(0, length, (samples,))
    ours = prob_sparse_attention(
        heads, heads, heads, sample=sample, factor=our_factor, is_causal=is_decoder, backend=backend
    )
    assert_same_with_gradients(ours, theirs, [heads])


@pytest.mark.parametrize("backend", BACKENDS)
def test_hugging_face_with_fewer_samples_than_keys(backend: str) -> None:
    """It takes factor * L_Q * ceil(log1p L_K) samples, which are fewer than the keys only for a few queries."""
    queries, keys, factor = 6, 150, 1
    layer = hugging_face(False, factor)
    samples, selected = their_counts(queries, keys, factor)
    assert samples < keys
    assert selected == informer_count(queries, factor) < queries
    query, other = (draw(length, seed).requires_grad_() for seed, length in enumerate((queries, keys)))
    torch.manual_seed(1)
    theirs = layer(as_states(query), key_value_states=as_states(other))[0].unflatten(2, (HEADS, WIDTH)).transpose(1, 2)
    torch.manual_seed(1)
    sample = torch.randint(0, keys, (samples,))
    ours = prob_sparse_attention(query, other, other, sample=sample, factor=factor, backend=backend)
    assert_same_with_gradients(ours, theirs, [query, other])
