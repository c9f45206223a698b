"""The layer against nn.MultiheadAttention, whose weights it loads."""

import pytest
import torch
from torch import nn

from simmst.nn.spatial_attention import SpatialAttention


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_loads_the_weights_of_multihead_attention(bias, residual):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(12, 3, bias=bias, batch_first=True, dtype=torch.float64)
    ours = SpatialAttention(12, 3, bias=bias, residual=residual, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    maps = torch.randn(2, 12, 3, 3, dtype=torch.float64)
    tokens = maps.flatten(2).mT
    mask = torch.rand(2, 9) < 0.3
    expected = theirs(tokens, tokens, tokens, key_padding_mask=mask)[0]
    expected = expected + tokens if residual else expected
    torch.testing.assert_close(ours(tokens, mask), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(ours(maps, mask).flatten(2).mT, expected, rtol=0, atol=1e-10)


def test_initialises_as_multihead_attention():
    torch.manual_seed(1)
    ours = SpatialAttention(64, 4)
    theirs = nn.MultiheadAttention(64, 4)
    assert (ours.in_proj_bias == 0).all()
    assert (ours.out_proj.bias == 0).all()
    for name, parameter in theirs.state_dict().items():
        if name.endswith("weight"):
            torch.testing.assert_close(ours.state_dict()[name].std(), parameter.std(), rtol=0.1, atol=0)


def test_norm_is_the_last_step():
    torch.manual_seed(0)
    layer = SpatialAttention(8, 2, residual=True, norm=True, eps=1e-3)
    nn.init.normal_(layer.norm.weight)
    nn.init.normal_(layer.norm.bias)
    plain = SpatialAttention(8, 2, residual=True)
    plain.load_state_dict({name: value for name, value in layer.state_dict().items() if not name.startswith("norm")})
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(layer(x), layer.norm(plain(x)))
    assert layer.norm.eps == 1e-3
    assert {"norm.weight", "norm.bias"} < set(layer.state_dict())
    layer(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_compiles_and_names_its_backend():
    layer = SpatialAttention(8, 2, residual=True, norm=True, backend="reference")
    x = torch.randn(2, 8, 3, 3)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
    assert repr(layer).startswith("SpatialAttention(\n  8, num_heads=2, residual=True, backend='reference'")
    with pytest.raises(ValueError, match="'fast'"):
        SpatialAttention(8, 2, backend="fast")(x)


@pytest.mark.parametrize(("width", "heads"), [(8, 3), (8, 0), (0, 1)])
def test_widths_that_do_not_split(width, heads):
    with pytest.raises(ValueError, match=f"positive multiple of num_heads, got {width} and {heads}"):
        SpatialAttention(width, heads)
