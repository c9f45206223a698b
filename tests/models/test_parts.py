from __future__ import annotations

import pytest
import torch
from model_windows import build, inputs, memory_of

from simmst.models.dropout import FeatureDropout
from simmst.models.embedding import SeriesEmbedding, sinusoidal_positions


def test_feature_dropout_drops_whole_features_and_keeps_the_mean():
    torch.manual_seed(0)
    kept = FeatureDropout(0.25)(torch.ones(200, 3, 50))
    assert torch.equal(kept, kept[:, :1].expand_as(kept))
    assert kept.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert kept.mean().item() == pytest.approx(1.0, abs=0.02)


def test_feature_dropout_is_silent_in_evaluation_and_at_zero():
    tokens = torch.randn(2, 3, 4)
    assert FeatureDropout(0.5).eval()(tokens) is tokens
    assert FeatureDropout(0.0)(tokens) is tokens


@pytest.mark.parametrize("width", [1, 5, 8])
def test_positions_differ_and_are_bounded(width):
    table = sinusoidal_positions(30, width)
    assert table.shape == (30, width)
    assert table.abs().max() <= 1
    assert len(table.unique(dim=0)) == 30


def test_the_embedding_is_the_sum_of_its_terms():
    torch.manual_seed(0)
    embed = SeriesEmbedding(4, 8, num_marks=3, num_features=2)
    channels, marks = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    features, task = torch.randn(2, 2), torch.randn(2, 8)
    wanted = (
        channels @ embed.value.weight.t()
        + embed.value.bias
        + marks @ embed.marks.weight.t()
        + (features @ embed.context.weight.t() + task)[:, None]
        + embed.position
    )
    torch.testing.assert_close(embed(channels, marks, features, task), wanted)


@pytest.mark.parametrize("where", ["series", "neighbour", "day before"])
def test_beyond_a_bound_a_value_says_no_more(where):
    """From some size on, an outlier has the same effect in any slot, so a single burst cannot dominate."""
    model = build()
    values, marks, mask = inputs()
    memory = memory_of()

    def forecast(size):
        burst, past = values.clone(), memory
        if where == "day before":
            days = memory.days.clone()
            days[:, 2, 3] = size
            past = memory._replace(days=days)
        else:
            at = 1 if where == "series" else 0
            burst[:, 12, :, at, at] = size
        return model(burst, marks, mask=mask, memory=past, quantiles=True)

    large = forecast(1e3)
    torch.testing.assert_close(forecast(1e6), large, rtol=1e-6, atol=1e-6)
    assert (large - forecast(0.0)).abs().max() > 0
