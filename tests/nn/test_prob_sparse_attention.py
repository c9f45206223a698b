from __future__ import annotations

import copy
import warnings

import pytest
import torch

import simmst.nn.prob_sparse_attention as layers
from simmst.nn import ProbSparseAttention
from simmst.ops import prob_sparse_attention


def layer(**options) -> ProbSparseAttention:
    torch.manual_seed(0)
    return ProbSparseAttention(16, 4, **options)


def test_is_the_operator_between_projections() -> None:
    attention = layer(is_causal=True, fill="cummean", normalizer="samples").eval()
    x = torch.randn(2, 40, 16)
    heads = [
        projection(x).view(2, 40, 4, 4).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    ]
    sample = layers.evaluation_sample(40, 40, 20, shared=False, device=x.device)
    out = prob_sparse_attention(*heads, is_causal=True, fill="cummean", normalizer="samples", sample=sample)
    torch.testing.assert_close(attention(x), attention.out_proj(out.transpose(1, 2).reshape(2, 40, 16)))


def test_short_sequences_match_multihead_attention() -> None:
    attention, peer = layer().eval(), torch.nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        peer.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        peer.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
        peer.out_proj.load_state_dict(attention.out_proj.state_dict())
    query, key = torch.randn(3, 5, 16), torch.randn(3, 9, 16)
    torch.testing.assert_close(attention(query, key), peer(query, key, key, need_weights=False)[0])


def test_cross_attention_widths_and_parameter_names() -> None:
    attention = layer(kdim=6, vdim=7, bias=False)
    assert sorted(attention.state_dict()) == [f"{name}_proj.weight" for name in ("k", "out", "q", "v")]
    query, key, value = torch.randn(2, 30, 16), torch.randn(2, 20, 6), torch.randn(2, 20, 7)
    out = attention(query, key, value)
    assert out.shape == (2, 30, 16)
    out.square().sum().backward()
    for name, parameter in attention.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("sampling", ["per_query", "shared"])
def test_evaluation_is_deterministic_and_training_is_not(sampling: str) -> None:
    attention = layer(sampling=sampling, factor=1)
    x = torch.randn(2, 100, 16)
    assert not torch.equal(attention(x), attention(x))
    torch.manual_seed(4)
    first = attention(x)
    torch.manual_seed(4)
    assert torch.equal(attention(x), first)
    attention.eval()
    state = torch.get_rng_state()
    out = attention(x)
    assert torch.equal(torch.get_rng_state(), state)
    layers._evaluation_samples.clear()
    assert torch.equal(attention(x), out)
    assert torch.equal(copy.deepcopy(attention)(x), out)


def test_dropout_acts_in_training_alone() -> None:
    attention, x = layer(dropout=0.5), torch.randn(2, 10, 16)  # short: every query is selected
    assert not torch.equal(attention(x), attention(x))
    attention.eval()
    torch.testing.assert_close(attention(x), layer().eval()(x))


def test_the_evaluation_sample_is_cached_bounded_and_usable_after_inference_mode() -> None:
    layers._evaluation_samples.clear()
    attention, x = layer().eval(), torch.randn(1, 50, 16)
    with torch.inference_mode():
        attention(x)
    (cached,) = layers._evaluation_samples.values()
    assert not cached.is_inference()
    attention(x.requires_grad_()).sum().backward()
    assert next(iter(layers._evaluation_samples.values())) is cached
    for length in range(1, 80):
        layers.evaluation_sample(length, 5, 5, shared=False, device=x.device)
    assert len(layers._evaluation_samples) <= 64


@pytest.mark.parametrize("training", [False, True])
def test_compiles_whole_and_exports_without_warnings(training: bool) -> None:
    torch.compiler.reset()
    attention, x = layer(dropout=0.1).train(training), torch.randn(2, 30, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
        torch.manual_seed(1)
        out = compiled(x)
        torch.manual_seed(1)
        torch.testing.assert_close(out, attention(x))
    if not training:
        exported = torch.export.export(attention, (x,)).module()
        torch.testing.assert_close(exported(x), attention(x))


def test_autocast() -> None:
    attention, x = layer().eval(), torch.randn(2, 30, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attention(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), attention(x), rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_heads": 3}, ValueError, "num_heads must divide embed_dim, got embed_dim=16 and num_heads=3"),
        ({"num_heads": 0}, ValueError, "num_heads must be at least 1, got 0"),
        ({"kdim": 0}, ValueError, "kdim must be at least 1, got 0"),
        ({"factor": 1.5}, TypeError, "factor must be an int, got 1.5"),
        ({"dropout": 1.0}, ValueError, "less than 1, got 1.0"),
        ({"fill": "zeros"}, ValueError, "fill must be one of"),
        ({"sampling": "none"}, ValueError, "sampling must be one of"),
        ({"normalizer": "none"}, ValueError, "normalizer must be one of"),
        ({"backend": "numpy"}, ValueError, "backend must be one of"),
    ],
)
def test_bad_settings(options, error, message) -> None:
    with pytest.raises(error, match=message):
        ProbSparseAttention(16, **({"num_heads": 4} | options))


def test_bad_shapes() -> None:
    attention = layer(kdim=6).eval()
    query, key = torch.zeros(2, 5, 16), torch.zeros(2, 4, 6)
    for bad in (
        (query[0], key, query),
        (query, query, query),
        (query, key, torch.zeros(2, 3, 16)),
        (query, torch.zeros(3, 4, 6), torch.zeros(3, 4, 16)),
    ):
        with pytest.raises(ValueError, match=r"query must be \(B, L_Q, 16\), key \(B, L_K, 6\) .* got query float32"):
            attention(*bad)
    with pytest.raises(ValueError, match="at least one position"):
        attention(query, key[:, :0], query[:, :0])


def test_print_shows_the_settings() -> None:
    assert "factor=5" in repr(layer())
    assert "is_causal=True" in repr(layer(is_causal=True))


def test_device_and_dtype_are_those_of_every_parameter() -> None:
    meta = layer(kdim=6, vdim=7, device="meta", dtype=torch.float64)
    assert {(str(each.device), each.dtype) for each in meta.parameters()} == {("meta", torch.float64)}
    x = torch.randn(2, 30, 16, dtype=torch.float64)
    assert layer(dtype=torch.float64)(x).dtype == torch.float64


def test_submodules_are_called() -> None:
    attention, x = layer().eval(), torch.randn(2, 30, 16)
    before = attention(x)
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        handle = getattr(attention, name).register_forward_hook(lambda module, args, out: 3 * out)
        assert not torch.allclose(attention(x), before), name
        handle.remove()
