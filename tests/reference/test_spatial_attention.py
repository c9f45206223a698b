"""The reference of spatial attention against nn.MultiheadAttention, a naive loop and finite differences."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from simmst.core.spatial_attention import Options
from simmst.reference.spatial_attention import backward, forward, spatial_attention

F64 = torch.float64


def make_weights(channels, dtype=F64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return (torch.randn(shape, generator=generator, dtype=F64) * 0.4).to(dtype)

    shapes = ((3 * channels, channels), (3 * channels,), (channels, channels), (channels,))
    return [draw(*shape) for shape in shapes]


def make_norm(channels, dtype=F64):
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(channels, generator=generator, dtype=F64).to(dtype) for _ in range(2)]


def draw_mask(batch, positions, seed=0):
    mask = torch.rand(batch, positions, generator=torch.Generator().manual_seed(seed)) < 0.4
    mask[:, 0] = False
    return mask


def naive(x, in_weight, in_bias, out_weight, out_bias, num_heads, mask=None, scale=None):
    """Compute one head of one query at a time, from the definition; x is (B, N, C)."""
    batch, positions, channels = x.shape
    width = channels // num_heads
    scale = width**-0.5 if scale is None else scale
    out = torch.zeros_like(x)
    for b in range(batch):
        packed = x[b] @ in_weight.T + in_bias
        for i in range(positions):
            row = torch.zeros(channels, dtype=x.dtype)
            for h in range(num_heads):
                section = slice(h * width, (h + 1) * width)
                weights = []
                for j in range(positions):
                    score = scale * float(packed[i, :channels][section] @ packed[j, channels : 2 * channels][section])
                    weights.append(0.0 if mask is not None and mask[b, j] else math.exp(score))
                for j, weight in enumerate(weights):
                    row[section] += weight / sum(weights) * packed[j, 2 * channels :][section]
            out[b, i] = out_weight @ row + out_bias
    return out


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("residual", "norm"), [(False, False), (True, False), (False, True), (True, True)])
def test_equals_multihead_attention(masked, residual, norm):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(12, 3, batch_first=True, dtype=F64)
    nn.init.normal_(layer.in_proj_bias)
    nn.init.normal_(layer.out_proj.bias)
    last = nn.LayerNorm(12, dtype=F64)
    nn.init.normal_(last.weight)
    nn.init.normal_(last.bias)
    x = torch.randn(4, 9, 12, dtype=F64)
    mask = draw_mask(4, 9) if masked else None
    expected = layer(x, x, x, key_padding_mask=mask, need_weights=False)[0]
    expected = expected + x if residual else expected
    expected = last(expected) if norm else expected
    out = spatial_attention(
        x,
        layer.in_proj_weight,
        layer.in_proj_bias,
        layer.out_proj.weight,
        layer.out_proj.bias,
        num_heads=3,
        key_padding_mask=mask,
        residual=residual,
        norm_weight=last.weight if norm else None,
        norm_bias=last.bias if norm else None,
    )
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scale", [None, 0.3])
def test_equals_the_definition(scale):
    weights = make_weights(6)
    x = torch.randn(2, 5, 6, dtype=F64, generator=torch.Generator().manual_seed(1))
    mask = draw_mask(2, 5)
    out = spatial_attention(x, *weights, num_heads=2, key_padding_mask=mask, scale=scale)
    torch.testing.assert_close(out, naive(x, *weights, 2, mask, scale), rtol=0, atol=1e-10)


def test_layouts_agree_and_stay():
    weights = make_weights(8)
    maps = torch.randn(3, 8, 2, 5, dtype=F64)
    mask = draw_mask(3, 10)
    options = {"num_heads": 2, "key_padding_mask": mask, "residual": True, "norm_weight": torch.ones(8, dtype=F64)}
    out = spatial_attention(maps, *weights, **options)
    tokens = spatial_attention(maps.flatten(2).mT, *weights, **options)
    assert out.shape == maps.shape
    assert out.is_contiguous()
    torch.testing.assert_close(out.flatten(2).mT, tokens, rtol=0, atol=1e-12)
    for other in (maps.contiguous(memory_format=torch.channels_last), maps.mT.contiguous().mT):
        torch.testing.assert_close(spatial_attention(other, *weights, **options), out, rtol=0, atol=1e-12)


def test_biases_are_optional():
    w_in, _, w_out, _ = make_weights(8)
    x = torch.randn(2, 4, 8, dtype=F64)
    zeros = torch.zeros(24, dtype=F64)
    expected = spatial_attention(x, w_in, zeros, w_out, zeros[:8], num_heads=4)
    torch.testing.assert_close(spatial_attention(x, w_in, None, w_out, None, num_heads=4), expected)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_a_map_without_positions_has_no_attention_branch(residual, norm):
    weights = [w.requires_grad_() for w in make_weights(6)]
    x = torch.randn(3, 6, 2, 2, dtype=F64, requires_grad=True)
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[1] = True
    last = make_norm(6) if norm else [None, None]
    out = spatial_attention(
        x, *weights, num_heads=2, key_padding_mask=mask, residual=residual, norm_weight=last[0], norm_bias=last[1]
    )
    expected = x[1] if residual else torch.zeros_like(x[1])
    if norm:
        expected = nn.functional.layer_norm(expected.permute(1, 2, 0), (6,), *last).permute(2, 0, 1)
    torch.testing.assert_close(out[1], expected, rtol=0, atol=1e-12)
    assert (out[0] - expected).abs().max() > 1e-3
    gradients = torch.autograd.grad(out.square().sum(), [x, *weights])
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    if not residual and not norm:
        assert (gradients[0][1] == 0).all()


def test_what_ignored_positions_hold_reaches_no_other():
    weights = make_weights(6)
    x = torch.randn(2, 5, 6, dtype=F64)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[:, 3] = True
    clean = spatial_attention(x, *weights, num_heads=2, key_padding_mask=mask)
    x[:, 3] = float("nan")
    out = spatial_attention(x, *weights, num_heads=2, key_padding_mask=mask)
    torch.testing.assert_close(out[:, [0, 1, 2, 4]], clean[:, [0, 1, 2, 4]], rtol=0, atol=1e-12)


def differentiable_call(mask=None):
    def call(x, w_in, b_in, w_out, b_out, w_norm, b_norm):
        return spatial_attention(
            x,
            w_in,
            b_in,
            w_out,
            b_out,
            num_heads=2,
            key_padding_mask=mask,
            residual=True,
            norm_weight=w_norm,
            norm_bias=b_norm,
        )

    return call


def inputs(shape=(2, 4, 1, 3)):
    x = torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(3))
    return tuple(tensor.requires_grad_() for tensor in (x, *make_weights(4), *make_norm(4)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("masked", [False, True])
def test_derivatives_of_every_kind(masked):
    mask = torch.tensor([[True, True, True], [False, True, False]]) if masked else None
    call = differentiable_call(mask)
    assert torch.autograd.gradcheck(call, inputs(), check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs(), fast_mode=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torch_func():
    call, primals = differentiable_call(), tuple(tensor.detach() for tensor in inputs())
    tangents = tuple(torch.randn_like(tensor) for tensor in primals)
    _, forward_mode = torch.func.jvp(call, primals, tangents)
    step = 1e-6
    shifted = [call(*(p + sign * step * t for p, t in zip(primals, tangents, strict=True))) for sign in (1, -1)]
    torch.testing.assert_close(forward_mode, (shifted[0] - shifted[1]) / (2 * step), rtol=1e-6, atol=1e-7)
    many = torch.randn(3, 2, 5, 4, dtype=F64)
    mapped = torch.func.vmap(lambda x: call(x, *primals[1:]))(many)
    torch.testing.assert_close(mapped, torch.stack([call(x, *primals[1:]) for x in many]))
    per_sample = torch.func.vmap(torch.func.grad(lambda x: call(x[None], *primals[1:]).square().sum()))(many[0])
    x = many[0].clone().requires_grad_()
    torch.testing.assert_close(per_sample, torch.autograd.grad(call(x, *primals[1:]).square().sum(), x)[0])


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_closed_form_backward_equals_autograd(residual, norm, masked):
    mask = torch.tensor([[True, True, True], [False, True, False]]) if masked else None
    x, w_in, b_in, w_out, b_out, *last = inputs()
    w_norm, b_norm = last if norm else (None, None)
    options = Options(2, residual, 1e-5, 0.4)
    out = spatial_attention(
        x, w_in, b_in, w_out, b_out, key_padding_mask=mask, norm_weight=w_norm, norm_bias=b_norm, **options._asdict()
    )
    arguments = (x, w_in, b_in, w_out, b_out, mask, w_norm, b_norm)
    again, lse = forward(*arguments, options)
    torch.testing.assert_close(again, out)
    assert lse.shape == (2, 2, 3)
    grad = torch.randn_like(out)
    given = [tensor for tensor in (x, w_in, b_in, w_out, b_out, w_norm, b_norm) if tensor is not None]
    expected = torch.autograd.grad(out, given, grad)
    gradients = backward(grad, *arguments, lse, options, [True] * 7)
    torch.testing.assert_close(tuple(g for g in gradients if g is not None), expected, rtol=1e-10, atol=1e-11)
    wanted = backward(grad, *arguments, lse, options, [True] + [False] * 6)
    assert [g is not None for g in wanted] == [True] + [False] * 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_by_the_two_times_rule(dtype):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(32, 4, batch_first=True, dtype=dtype)
    x = torch.randn(4, 25, 32, dtype=dtype)
    weights = layer.in_proj_weight, layer.in_proj_bias, layer.out_proj.weight, layer.out_proj.bias
    truth = spatial_attention(x.double(), *(w.double() for w in weights), num_heads=4, residual=True)
    plain = layer(x, x, x, need_weights=False)[0] + x
    out = spatial_attention(x, *weights, num_heads=4, residual=True)
    assert out.dtype == dtype
    assert torch.isfinite(out).all()
    assert (out - truth).abs().max() <= 2 * (plain - truth).abs().max() + 1e-6


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(0, 3),
    height=st.integers(0, 4),
    width=st.integers(1, 5),
    num_heads=st.integers(1, 3),
    head_width=st.integers(1, 5),
    as_map=st.booleans(),
    strided=st.booleans(),
    masked=st.booleans(),
)
def test_any_shape(batch, height, width, num_heads, head_width, as_map, strided, masked):
    channels, positions = num_heads * head_width, height * width
    weights = make_weights(channels)
    shape = (batch, channels, height, width) if as_map else (batch, positions, channels)
    x = torch.randn((*shape[:-1], 2 * shape[-1]), dtype=F64)[..., ::2] if strided else torch.randn(shape, dtype=F64)
    mask = draw_mask(batch, positions) if masked and positions else None
    out = spatial_attention(x, *weights, num_heads=num_heads, key_padding_mask=mask, residual=True)
    assert out.shape == x.shape
    tokens = x.flatten(2).mT if as_map else x
    expected = tokens + naive(tokens, *weights, num_heads, mask)
    torch.testing.assert_close(out.flatten(2).mT if as_map else out, expected, rtol=0, atol=1e-9)


def test_large_batches():
    weights = make_weights(2, torch.float32)
    x = torch.randn(65_537, 3, 2)
    out = spatial_attention(x, *weights, num_heads=1)
    torch.testing.assert_close(out[-2:], spatial_attention(x[-2:], *weights, num_heads=1))
