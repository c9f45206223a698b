"""The layer against nn.MultiheadAttention, whose weights it loads."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

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


class Doubled(nn.Module):
    """An adapter as fine-tuning libraries use in place of a layer: it has weight and bias, and does more."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.weight, self.bias = base.weight, base.bias

    def forward(self, x):
        return 2 * self.base(x)


def by_hand(layer, x, mask):
    """Compute the layer from torch's own parts, calling its submodules."""
    attention = nn.MultiheadAttention(8, 2, batch_first=True, bias=layer.in_proj_bias is not None, dtype=x.dtype)
    with torch.no_grad():
        attention.in_proj_weight.copy_(layer.in_proj_weight)
        attention.in_proj_bias.copy_(layer.in_proj_bias)
        attention.out_proj.weight.copy_(torch.eye(8))
        attention.out_proj.bias.zero_()
    tokens = x.flatten(2).mT if x.dim() == 4 else x
    out = layer.out_proj(attention(tokens, tokens, tokens, key_padding_mask=mask, need_weights=False)[0])
    out = layer.norm(out + tokens)
    return out.mT.reshape(x.shape) if x.dim() == 4 else out


def doubling(layer):
    layer.out_proj = Doubled(layer.out_proj)


def hooked(layer):
    layer.out_proj.register_forward_hook(lambda module, args, out: 3 * out)


def pruned(layer):
    prune.random_unstructured(layer.out_proj, "weight", amount=0.5)
    with torch.no_grad():
        layer.out_proj.weight_orig += 1.0  # the hook makes the weight from this one


def reparametrised(layer):
    torch.nn.utils.parametrizations.weight_norm(layer.out_proj)


def normalised_otherwise(layer):
    layer.norm = nn.RMSNorm(8, dtype=torch.float64)


def normalised_without_weights(layer):
    layer.norm = nn.LayerNorm(8, elementwise_affine=False)


def normalised_with_another_eps(layer):
    layer.norm = nn.LayerNorm(8, eps=0.5, dtype=torch.float64)


def normalised_without_bias(layer):
    layer.norm = nn.LayerNorm(8, bias=False, dtype=torch.float64)


CHANGES = [
    doubling,
    hooked,
    pruned,
    reparametrised,
    normalised_otherwise,
    normalised_without_weights,
    normalised_with_another_eps,
    normalised_without_bias,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("backend", ["reference", None])
def test_what_is_put_in_place_of_a_submodule_has_its_effect(change, backend):
    torch.manual_seed(0)
    layer = SpatialAttention(8, 2, residual=True, norm=True, backend=backend, dtype=torch.float64)
    for parameter in (layer.norm.weight, layer.norm.bias):
        nn.init.normal_(parameter)
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, 2] = True
    x = torch.randn(2, 8, 2, 3, dtype=torch.float64)
    before = layer(x, mask)
    change(layer)
    out = layer(x, mask)
    assert (out - before).abs().max() > 1e-3 or change is reparametrised
    torch.testing.assert_close(out, by_hand(layer, x, mask))
    torch.testing.assert_close(layer(x.flatten(2).mT.contiguous(), mask), out.flatten(2).mT)
    out.square().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_a_map_with_every_position_masked_has_no_branch_whatever_out_proj_is():
    layer = SpatialAttention(8, 2, residual=True)
    doubling(layer)
    x, mask = torch.randn(2, 8, 2, 2), torch.tensor([[True] * 4, [False] * 4])
    out = layer(x, mask)
    assert torch.equal(out[0], x[0])
    assert not torch.equal(out[1], x[1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_quantised_layers_are_called():
    torch.manual_seed(0)
    model = nn.Sequential(SpatialAttention(16, 4, residual=True, norm=True), nn.Linear(16, 3)).eval()
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    x = torch.randn(2, 9, 16)
    assert not isinstance(quantised[0].out_proj, nn.Linear)
    with torch.no_grad():
        torch.testing.assert_close(quantised(x), model(x), rtol=0, atol=0.05)
        assert not torch.equal(quantised[0](x), model[0](x))


def test_compiles_with_an_adapter():
    torch.compiler.reset()
    layer, x = SpatialAttention(8, 2, residual=True, backend="reference"), torch.randn(2, 8, 3, 3)
    doubling(layer)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))


def test_a_nan_under_the_mask_reaches_no_gradient_of_the_layer():
    torch.manual_seed(0)
    layer = SpatialAttention(8, 2, residual=True, norm=True)
    x, mask = torch.randn(2, 6, 8), torch.zeros(2, 6, dtype=torch.bool)
    mask[:, 4] = True
    for change in (lambda layer: None, doubling):
        change(layer)
        gradients = []
        for hidden in (0.0, float("nan"), float("inf")):
            layer.zero_grad()
            x[:, 4] = hidden
            leaf = x.clone().requires_grad_()
            layer(leaf, mask)[~mask].square().sum().backward()
            gradients.append([leaf.grad, *(parameter.grad.clone() for parameter in layer.parameters())])
        for found in gradients[1:]:
            for one, other in zip(found, gradients[0], strict=True):
                torch.testing.assert_close(one, other)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_takes_over_multihead_attention(bias, batch_first):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(12, 3, bias=bias, batch_first=batch_first, dtype=torch.float64).eval()
    theirs.in_proj_weight.requires_grad_(False)
    ours = SpatialAttention.from_torch(theirs, backend="reference")
    maps = torch.randn(2, 12, 3, 3, dtype=torch.float64)
    tokens = maps.flatten(2).mT
    mask = torch.rand(2, 9) < 0.3
    given = tokens if batch_first else tokens.transpose(0, 1)
    expected = theirs(given, given, given, key_padding_mask=mask)[0]
    expected = expected if batch_first else expected.transpose(0, 1)
    torch.testing.assert_close(ours(maps, mask).flatten(2).mT, expected)
    assert ours.backend == "reference"
    assert not ours.training
    assert not ours.in_proj_weight.requires_grad
    assert ours.out_proj.weight.requires_grad
    with torch.no_grad():
        ours.in_proj_weight.zero_()
    assert (theirs.in_proj_weight != 0).any()


def test_takes_over_the_attention_of_an_encoder_layer():
    torch.manual_seed(0)
    theirs = nn.TransformerEncoderLayer(12, 3, 16, dropout=0.0, batch_first=True, layer_norm_eps=0.1)
    nn.init.normal_(theirs.norm1.weight)
    ours = SpatialAttention.from_torch(theirs)
    x = torch.randn(2, 9, 12)
    half = ours(x)
    torch.testing.assert_close(half, theirs.norm1(x + theirs.self_attn(x, x, x)[0]))
    torch.testing.assert_close(theirs.norm2(half + theirs._ff_block(half)), theirs(x))
    assert ours.training
    meta = nn.TransformerEncoderLayer(12, 3, 16, dropout=0.0, device="meta", dtype=torch.bfloat16)
    assert {(each.device.type, each.dtype) for each in SpatialAttention.from_torch(meta).parameters()} == {
        ("meta", torch.bfloat16)
    }


def test_takes_over_an_adapter_of_out_proj():
    theirs = nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.out_proj = nn.utils.parametrizations.weight_norm(theirs.out_proj)
    x = torch.randn(2, 9, 8)
    torch.testing.assert_close(SpatialAttention.from_torch(theirs)(x), theirs(x, x, x)[0])


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.MultiheadAttention(8, 2, kdim=4), "kdim=4 and vdim=8 with embed_dim=8"),
        (nn.MultiheadAttention(8, 2, add_bias_kv=True), "add_bias_kv=True"),
        (nn.MultiheadAttention(8, 2, add_zero_attn=True), "add_zero_attn=True"),
        (nn.TransformerEncoderLayer(8, 2, 8, norm_first=True), r"norm_first=True.*from_torch\(layer.self_attn\)"),
    ],
)
def test_refuses_what_the_layer_cannot_do(module, message):
    with pytest.raises(ValueError, match=message):
        SpatialAttention.from_torch(module)


def test_says_that_dropout_is_left_out():
    for module in (nn.MultiheadAttention(8, 2, dropout=0.2), nn.TransformerEncoderLayer(8, 2, 8, dropout=0.2)):
        with pytest.warns(UserWarning, match=f"{type(module).__name__} drops 0.2 .* drops nothing"):
            SpatialAttention.from_torch(module)
    with pytest.raises(TypeError, match="must be a MultiheadAttention or TransformerEncoderLayer, got Linear"):
        SpatialAttention.from_torch(nn.Linear(1, 1))
