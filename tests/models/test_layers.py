"""Layers that run as one operator equal the layers in parts: with dropout, with hooks, and with a replaced module."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from simmst.models import SimMSTNetConfig
from simmst.models.attend import attend
from simmst.models.context import no_memory, relate
from simmst.models.decoder import DecoderLayer
from simmst.models.dropout import FeatureDropout
from simmst.models.feed_forward import two_layers
from simmst.models.interaction import TaskMLP
from simmst.models.temporal_encoder import EncoderLayer


def watch(module: nn.Module) -> list[str]:
    """Hook every linear layer, so that it is more than its weights; the list records which layers were called."""
    calls: list[str] = []
    for name, each in module.named_modules():
        if isinstance(each, nn.Linear):
            each.register_forward_hook(lambda *args, name=name: calls.append(name))
    return calls


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_feed_forward_part_with_dropout(dropout) -> None:
    torch.manual_seed(0)
    layers, drop = (nn.Linear(8, 20), nn.Linear(20, 8)), FeatureDropout(dropout)
    x, addend, norm = torch.randn(3, 5, 8), torch.randn(3, 20), nn.LayerNorm(8)
    results = []
    for hooked in (False, True):
        calls = watch(nn.ModuleList(layers)) if hooked else []
        torch.manual_seed(1)
        results.append(two_layers(x, *layers, norm=norm, norm_first=False, addend=addend, dropout=drop))
        assert len(calls) == 2 * hooked
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("build", [EncoderLayer, DecoderLayer, TaskMLP])
def test_layers_in_parts(build) -> None:
    torch.manual_seed(0)
    layer = build(SimMSTNetConfig(width=8, num_heads=2, feedforward=20, factor=100)).eval()
    tokens = torch.randn(3, 5, 8)
    given = {DecoderLayer: (torch.randn(3, 7, 8),), TaskMLP: (torch.randn(3, 1, 8),)}.get(build, ())
    expected = layer(tokens, *given)
    calls = watch(layer)
    torch.testing.assert_close(layer(tokens, *given), expected, rtol=1e-5, atol=1e-5)
    assert len(set(calls)) == sum(isinstance(each, nn.Linear) for each in layer.modules())


def test_what_stands_in_the_place_of_an_attention_is_called() -> None:
    class Twice(nn.Module):
        def forward(self, tokens: Tensor, memory: Tensor | None = None) -> Tensor:
            return 2 * tokens

    tokens = torch.randn(2, 3, 8)
    torch.testing.assert_close(attend(tokens, nn.Identity(), Twice(), FeatureDropout()), 3 * tokens)
    torch.testing.assert_close(attend(tokens, nn.Identity(), Twice(), FeatureDropout(), tokens), 3 * tokens)


def test_of_the_neighbourhood_the_latest_slots_can_be_enough() -> None:
    torch.manual_seed(0)
    values, inside = torch.randn(2, 6, 3, 5, 5), torch.rand(2, 5, 5) > 0.3
    values[0, 3] = torch.nan
    memory = no_memory(values, inside, 4, 2)
    whole, latest = relate(values, inside, memory), relate(values, inside, memory, 2)
    for name, one, two in zip(whole._fields, whole, latest, strict=True):
        assert torch.equal(one[:, -2:] if name.startswith("patch") else one, two)
    assert torch.equal(whole.series, whole.patch[..., 2, 2])
    assert torch.equal(whole.observed, whole.patch_observed[..., 2, 2])
    assert torch.equal(whole.unusual, whole.patch_unusual[..., 2, 2])
