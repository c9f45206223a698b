"""Each network against its source: formulas in numpy, torch's own layers, or what the source is known for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_networks import HORIZON, SIDE, STEPS, call, small_network, small_windows, view_of

CENTRE = SIDE * SIDE // 2


@pytest.fixture(scope="module")
def batch():
    return small_windows().batch([4 + 9 * n for n in (80, 90, 100, 110)])  # of the middle cell: all cells are inside


@pytest.fixture(autouse=True)
def _quiet():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


# --- dlinear, nlinear


def test_dlinear_maps_trend_and_rest(batch):
    network = small_network("dlinear", kernel=5)
    values = view_of(network, batch).values[..., CENTRE].numpy()  # (B, T, K)
    padded = np.concatenate([values[:, :1].repeat(2, axis=1), values, values[:, -1:].repeat(2, axis=1)], axis=1)
    trend = np.stack([padded[:, i : i + 5].mean(axis=1) for i in range(STEPS)], axis=1)
    one, two = network.trend, network.season
    expected = np.einsum("btk,ht->bhk", trend, one.weight) + np.einsum("btk,ht->bhk", values - trend, two.weight)
    expected += (one.bias + two.bias).numpy()[:, None]
    level = np.nanmean(batch.values[:, :, :, 1, 1], axis=1)[:, None]
    np.testing.assert_allclose(call(network, batch), level + expected, atol=1e-5)


def test_nlinear_follows_a_shift(batch):
    network = small_network("nlinear", centre="fixed")
    shifted = batch._replace(values=batch.values - 0.5)
    assert torch.allclose(call(network, shifted), call(network, batch) - 0.5, atol=1e-5)
    network.linear.weight.zero_()
    network.linear.bias.zero_()
    last = batch.values[:, -1:, :, 1, 1].expand(-1, HORIZON, -1)
    assert torch.allclose(call(network, batch), last, atol=1e-5)


# --- lstm


def test_lstm_sums_its_branches(batch):
    network = small_network("lstm", width=4, layers=1, period_days=2)
    view = view_of(network, batch)
    states = []
    for branch, inputs in (
        (network.closeness, view.values[..., CENTRE]),
        (network.period, view.days[:, :2].flip(1).flatten(2)),
    ):
        hidden = memory = torch.zeros(4, 4)
        for step in range(inputs.shape[1]):
            gates = inputs[:, step] @ branch.weight_ih_l0.T + branch.bias_ih_l0
            gates = gates + hidden @ branch.weight_hh_l0.T + branch.bias_hh_l0
            i, f, g, o = gates.chunk(4, dim=1)
            memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * memory.tanh()
        states.append(hidden)
    expected = network.head(states[0] + states[1]).reshape(4, HORIZON, 2)
    assert torch.allclose(network.forecast(view), expected, atol=1e-5)
