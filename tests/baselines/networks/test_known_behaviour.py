"""Each network against its source: formulas in numpy, torch's own layers, or known properties of the source."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small_networks import HORIZON, SIDE, STEPS, call, small_network, small_windows, view_of
from torch import nn
from torch.nn import functional

from simmst import Forecaster
from simmst.baselines.networks.ast_mtl import ASTMTL
from simmst.baselines.networks.conv_lstm import ConvLSTMCell
from simmst.baselines.networks.dcrnn import DiffusionConvolution, walk_powers
from simmst.baselines.networks.graph import correlation_weights, grid_weights, symmetric
from simmst.baselines.networks.staeformer import AttentionLayer, STAEformerConfig, clock
from simmst.baselines.networks.stgcn import ChebyshevConvolution, GatedConvolution
from simmst.baselines.networks.transformer import DecoderLayer, EncoderLayer, TransformerConfig
from simmst.data.batch import concat_batches
from simmst.data.calendar import slot_of_day, weekday
from simmst.errors import ConfigError
from simmst.models import task_losses
from simmst.nn import ProbSparseAttention

CENTRE = SIDE * SIDE // 2


@pytest.fixture(scope="module")
def batch():
    return small_windows().batch([4 + 9 * n for n in (80, 90, 100, 110)])  # middle cell: its neighbours are inside


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


# --- transformer, informer


def test_transformer_refuses_sizes_that_do_not_fit():
    with pytest.raises(ConfigError, match=r"dropout is 1\.0; it must be a number in \[0, 1\)"):
        Forecaster(model="transformer", network={"dropout": 1.0})
    with pytest.raises(ConfigError, match="width is 10; it must be a multiple of num_heads = 4"):
        Forecaster(model="transformer", network={"width": 10})
    with pytest.raises(ConfigError, match="backend is 'cuda12'; it must be one of reference"):
        Forecaster(model="informer", network={"backend": "cuda12"})


def test_transformer_layers_are_those_of_torch():
    config = TransformerConfig(width=8, num_heads=2, feedforward=16, dropout=0.0)
    ours = EncoderLayer(config, 10_000)
    theirs = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True)
    copy_attention(ours.attention, theirs.self_attn)
    copy_rest(ours.feed_forward, theirs)
    tokens, encoded = torch.randn(3, 7, 8), torch.randn(3, 5, 8)
    assert torch.allclose(ours(tokens), theirs(tokens), atol=1e-5)
    ours = DecoderLayer(config, 10_000)
    theirs = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True)
    copy_attention(ours.self_attention, theirs.self_attn)
    copy_attention(ours.cross_attention, theirs.multihead_attn)
    copy_rest(ours.feed_forward, theirs)
    causal = nn.Transformer.generate_square_subsequent_mask(7)
    expected = theirs(tokens, encoded, tgt_mask=causal, tgt_is_causal=True)
    assert torch.allclose(ours(tokens, encoded), expected, atol=1e-5)


def copy_attention(ours, theirs):
    theirs.in_proj_weight.copy_(torch.cat([ours.q_proj.weight, ours.k_proj.weight, ours.v_proj.weight]))
    theirs.in_proj_bias.copy_(torch.cat([ours.q_proj.bias, ours.k_proj.bias, ours.v_proj.bias]))
    theirs.out_proj.load_state_dict(ours.out_proj.state_dict())


def copy_rest(ours, theirs):
    theirs.linear1.load_state_dict(ours.wide.state_dict())
    theirs.linear2.load_state_dict(ours.narrow.state_dict())


def test_transformer_forecasts_a_step_without_those_after_it(batch):
    network = small_network("transformer", memory=True)
    marks = batch.marks.clone()
    marks[:, -1] += 1.0
    before, after = call(network, batch), call(network, batch._replace(marks=marks))
    # The convolution of the embedding sees one step ahead.
    assert torch.allclose(before[:, :-2], after[:, :-2], atol=1e-6)
    assert not torch.allclose(before[:, -1], after[:, -1], atol=1e-4)


def test_informer_is_the_transformer_where_every_query_is_selected(batch):
    informer = small_network("informer", factor=10_000, encoder_layers=1)
    transformer = small_network("transformer")
    transformer.load_state_dict(informer.state_dict())
    assert torch.allclose(call(informer, batch), call(transformer, batch), atol=1e-5)
    assert all(layer.backend is None for layer in attentions(informer))
    plain = small_network("informer", factor=10_000, encoder_layers=1, backend="reference")
    plain.load_state_dict(informer.state_dict())
    assert {layer.backend for layer in attentions(plain)} == {"reference"}
    assert torch.allclose(call(plain, batch), call(informer, batch), atol=1e-5)
    sparse = small_network("informer", factor=1, encoder_layers=1)
    sparse.load_state_dict(informer.state_dict())
    assert not torch.allclose(call(sparse, batch), call(informer, batch), atol=1e-4)
    assert torch.equal(call(sparse, batch), call(sparse, batch))  # a fixed sample in evaluation


def attentions(network):
    return [layer for layer in network.modules() if isinstance(layer, ProbSparseAttention)]


def test_informer_distils_between_its_layers(batch):
    network = small_network("informer", encoder_layers=3)
    lengths = []
    for layer in network.encoder:
        layer.register_forward_hook(lambda _module, _inputs, output: lengths.append(output.shape[1]))
    call(network, batch)
    assert lengths == [12, 6, 6, 3, 3]


# --- itransformer


def test_itransformer_does_not_care_about_the_order_of_variates():
    network = small_network("itransformer")
    variates, marks = torch.randn(2, STEPS, 6, 1), torch.randn(2, STEPS, 8)
    allowed, order = torch.ones(2, 6, dtype=torch.bool), torch.randperm(6)
    forecast = network.forecast_variates(variates, marks, allowed)
    permuted = network.forecast_variates(variates[:, :, order], marks, allowed)
    assert torch.allclose(permuted, forecast[:, :, order], atol=1e-5)
    assert not torch.allclose(forecast[:, :, 0], forecast[:, :, 1], atol=1e-3)
    # ... nor about the unit of each: the instance norm removes and restores it.
    scale, shift = torch.rand(6) + 0.5, torch.randn(6)
    moved = network.forecast_variates(variates * scale[:, None] + shift[:, None], marks, allowed)
    assert torch.allclose(moved, forecast * scale + shift, atol=1e-3)
    # ... and attends among them.
    other = variates.clone()
    other[:, :, 1] = torch.randn(2, STEPS, 1)
    assert not torch.allclose(network.forecast_variates(other, marks, allowed)[:, :, 0], forecast[:, :, 0], atol=1e-4)


# --- convlstm


def test_convlstm_against_a_loop():
    cell, maps = ConvLSTMCell(2, 3), torch.randn(1, 2, 2, 3, 3)
    weight, bias = cell.gates.weight.numpy(), cell.gates.bias.numpy()
    hidden, memory = np.zeros((3, 3, 3)), np.zeros((3, 3, 3))

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    for step in range(2):
        both = np.pad(np.concatenate([maps[0, step].numpy(), hidden]), ((0, 0), (1, 1), (1, 1)))
        gates = np.empty((12, 3, 3))
        for row in range(3):
            for column in range(3):
                patch = both[:, row : row + 3, column : column + 3]
                gates[:, row, column] = (weight * patch).sum(axis=(1, 2, 3)) + bias
        i, f, o, g = gates.reshape(4, 3, 3, 3)
        memory = sigmoid(f) * memory + sigmoid(i) * np.tanh(g)
        hidden = sigmoid(o) * np.tanh(memory)
    np.testing.assert_allclose(cell(maps)[0, -1], hidden, atol=1e-5)


# --- graphs


def test_graphs_of_a_grid():
    assert grid_weights("rook", 5).sum() == 2 * 40
    assert grid_weights("queen", 5).sum() == 2 * 72
    weights = grid_weights("gaussian", 3).numpy()
    places = np.argwhere(np.ones((3, 3)))
    distance = np.sqrt(((places[:, None] - places) ** 2).sum(axis=2))
    expected = np.exp(-((distance / distance.std()) ** 2))
    expected[(expected < 0.1) | (distance == 0)] = 0
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    values = np.random.default_rng(0).normal(size=(30, 6))
    found = correlation_weights(torch.tensor(values)[None], 2)[0].numpy()
    expected = np.corrcoef(values.T).clip(0) * (1 - np.eye(6))
    expected[expected < np.sort(expected, axis=1)[:, -2:-1]] = 0
    np.testing.assert_allclose(found, expected, atol=1e-6)


# --- stgcn


def test_stgcn_wants_an_input_that_its_convolutions_leave_something_of():
    with pytest.raises(ConfigError, match="input_length is 8; it must be at least 9 for time_kernel = 3"):
        Forecaster(model="stgcn", recent=8)
    with pytest.raises(ConfigError, match="graph is 'knight'; it must be one of gaussian, rook"):
        Forecaster(model="stgcn", network={"graph": "knight"})


def test_stgcn_convolves_by_chebyshev_polynomials():
    weights = grid_weights("gaussian", 3).numpy().astype(float)
    degree = np.diag(weights.sum(axis=1) ** -0.5)
    laplacian = np.eye(9) - degree @ weights @ degree
    value, vector = np.linalg.eigh(2 * laplacian / 2 - np.eye(9))
    layer, features = ChebyshevConvolution(4, 5, 3), torch.randn(2, 6, 9, 4)
    expected = layer.linear.bias.numpy().astype(float)
    for order in range(3):
        polynomial = vector * np.polynomial.chebyshev.Chebyshev.basis(order)(value) @ vector.T
        theta = layer.linear.weight.numpy()[:, 4 * order : 4 * (order + 1)]
        expected = expected + np.einsum("ij,btjc,oc->btio", polynomial, features, theta)
    found = layer(features, -symmetric(torch.tensor(weights).float())[None].expand(2, -1, -1))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_stgcn_gates_its_temporal_convolution():
    layer, features = GatedConvolution(4, 4, 3), torch.randn(2, 6, 9, 4)
    weight, bias = layer.convolution.weight[..., 0], layer.convolution.bias
    both = torch.stack([torch.einsum("bknc,ock->bno", features[:, t : t + 3], weight) for t in range(4)], dim=1) + bias
    expected = (both[..., :4] + features[:, 2:]) * both[..., 4:].sigmoid()
    assert torch.allclose(layer(features), expected, atol=1e-5)


# --- dcrnn


def test_dcrnn_diffuses_by_both_random_walks():
    weights = np.random.default_rng(0).random((5, 5)) * (1 - np.eye(5))
    out, back = weights / weights.sum(axis=1, keepdims=True), weights.T / weights.sum(axis=0)[:, None]
    layer, features = DiffusionConvolution(3, 4, 2), torch.randn(2, 5, 3)
    theta = layer.linear.weight.numpy().reshape(4, 5, 3)
    powers = [np.eye(5), out, out @ out, back, back @ back]
    expected = sum(np.einsum("ij,bjc,oc->bio", p, features, theta[:, k]) for k, p in enumerate(powers))
    found = layer(features, walk_powers(torch.tensor(weights).float()[None].expand(2, -1, -1), 2))
    np.testing.assert_allclose(found, expected + layer.linear.bias.numpy(), atol=1e-5)


def test_dcrnn_is_fed_the_truth_less_and_less(batch):
    network = small_network("dcrnn", sampling_decay=2000)
    assert network.truth_probability() == pytest.approx(2000 / 2001)
    network.batches_seen = torch.tensor(20_000)
    assert network.truth_probability() == pytest.approx(2000 / (2000 + math.exp(10)))
    network.batches_seen = torch.tensor(0)
    plain = call(network, batch)
    fed = network(batch.values, batch.marks, mask=batch.mask, target=batch.target + 3.0)
    assert int(network.batches_seen) == 1
    assert torch.allclose(fed[:, 0], plain[:, 0], atol=1e-6)  # the truth of a step is fed to the steps after it
    assert not torch.allclose(fed[:, 1:], plain[:, 1:], atol=1e-4)
    network.batches_seen = torch.tensor(10**9)
    late = network(batch.values, batch.marks, mask=batch.mask, target=batch.target + 3.0)
    assert torch.allclose(late, plain, atol=1e-6)


# --- staeformer


def test_staeformer_attends_as_torch_does():
    config = STAEformerConfig(input_width=2, day_width=2, week_width=2, adaptive_width=2, num_heads=2, dropout=0.0)
    layer, theirs = AttentionLayer(config), nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.in_proj_weight.copy_(layer.in_proj.weight)
    theirs.in_proj_bias.copy_(layer.in_proj.bias)
    theirs.out_proj.load_state_dict(layer.out_proj.state_dict())
    tokens, allowed = torch.randn(3, 5, 4, 8), torch.ones(3, 4, dtype=torch.bool)
    allowed[1, 2] = False
    hidden = ~allowed.repeat_interleave(5, dim=0)
    attended = theirs(*[tokens.flatten(0, 1)] * 3, key_padding_mask=hidden)[0].reshape(3, 5, 4, 8)
    expected = layer.first_norm(tokens + attended)
    expected = layer.second_norm(expected + layer.feed_forward(expected))
    assert torch.allclose(layer(tokens, allowed), expected, atol=1e-5)


def test_staeformer_reads_the_clock_and_has_its_widths():
    windows = small_windows(days=12)
    numbers = np.arange(0, len(windows), 9)
    marks = windows.batch(numbers).marks[:, STEPS:]
    time = windows.dataset.time[windows.origins[:, None] + np.arange(HORIZON)]
    time = np.stack([time[:, h] for h in range(HORIZON)], axis=1)
    for per_day in (24, 144):
        slot, day = clock(marks, per_day)
        expected = slot_of_day(time.reshape(-1), "UTC", 24 * 60 // per_day).reshape(time.shape)
        np.testing.assert_array_equal(slot, expected)
        np.testing.assert_array_equal(day, weekday(time.reshape(-1), "UTC").reshape(time.shape))
    config = STAEformerConfig()
    assert (config.width, config.layers, config.num_heads, config.feedforward) == (152, 3, 4, 256)


def test_staeformer_forecasts_many_windows_as_it_does_few(batch):
    network = small_network("staeformer")
    many = concat_batches([batch] * 20)
    assert torch.allclose(call(network, many), call(network, batch).repeat(20, 1, 1), atol=1e-5)


# --- mttc


def test_mttc_shares_its_trunk_and_nothing_else(batch):
    network = small_network("mttc", scale=1)
    convolutions = [layer.out_channels for layer in network.trunk if isinstance(layer, nn.Conv1d)]
    assert convolutions == [32, 32, 64, 64, 128, 128]
    before = call(network, batch)
    network.heads[1].bias += 1.0
    after = call(network, batch)
    assert torch.equal(after[..., 0], before[..., 0])
    assert torch.allclose(after[..., 1], before[..., 1] + 1.0, atol=1e-5)
    network.trunk[0].weight.zero_()
    assert (call(network, batch) != after).any(dim=(0, 1)).all()


# --- ast-mtl


def test_ast_mtl_convolves_and_attends(batch):
    network = small_network("ast-mtl")
    assert isinstance(network, ASTMTL)
    view = view_of(network, batch)
    weights = grid_weights("gaussian", SIDE).numpy() + np.eye(9)
    degree = np.diag(weights.sum(axis=1) ** -0.5)
    matrix = degree @ weights @ degree
    graphs = []
    for task in range(2):
        hidden = view.past[:, :, task].numpy()
        for layer in (network.first[task], network.second[task]):  # over all cells; only the target is kept
            hidden = np.maximum(np.einsum("ij,btjc,oc->btio", matrix, hidden, layer.weight) + layer.bias.numpy(), 0)
        graphs.append(torch.tensor(hidden[:, :, CENTRE]).float())
    common, _ = network.shared(torch.cat(graphs, dim=-1))
    forecasts = []
    for task, graph in enumerate(graphs):
        own, _ = network.encoders[task](graph)
        state = functional.scaled_dot_product_attention(common, own, own)[:, -1]  # Q shared, K and V the task's
        fed, steps = torch.zeros(4, 1), []
        for _ in range(HORIZON):
            state = network.decoders[task](torch.cat([fed, torch.zeros(4, 1)], dim=1), state)
            fed = network.heads[task](state)
            steps.append(fed[:, 0])
        forecasts.append(torch.stack(steps, dim=1))
    assert torch.allclose(network.forecast(view), torch.stack(forecasts, dim=-1), atol=1e-5)


# --- cslsl


def test_cslsl_is_a_chain_of_causes():
    services = ("internet", "call", "sms")
    batch = small_windows(services=services).batch([4 + 9 * 80])
    network = small_network("cslsl", services=services)
    assert network.config.chain == (1, 2, 0)
    before, reached = call(network, batch), {}
    for number, name in enumerate(services):
        values = batch.values.clone()
        values[:, -1, number] += 0.5
        values[:, 0, number] -= 0.5  # the level stays
        change = (call(network, batch._replace(values=values)) - before).abs().amax((0, 1))
        reached[name] = [other for other, size in zip(services, change, strict=True) if size > 1e-6]
    assert reached == {"internet": ["internet"], "call": ["internet", "call", "sms"], "sms": ["internet", "sms"]}
    other = small_network("cslsl", services=services, order=("sms", "internet", "call"))
    assert other.config.chain == (2, 0, 1)


def test_cslsl_constrains_by_the_laplacian(batch):
    network = small_network("cslsl", constraint=0.5, graph="rook")
    view = view_of(network, batch)
    weights = grid_weights("rook", SIDE).numpy()
    laplacian = np.diag(weights.sum(axis=1)) - weights
    cells = network.forecast_cells(view).numpy()
    form = np.einsum("bhki,ij,bhkj->bhk", cells, laplacian, cells).mean(axis=1)
    np.testing.assert_allclose(network.constraint(view, torch.tensor(cells)), 0.5 * 2 * form / 24, rtol=1e-4)


def test_the_penalty_joins_the_loss_in_training_alone(batch):
    network = small_network("cslsl", constraint=0.5)
    arguments = (*batch[:3], batch.memory, batch.target, "mae")
    with torch.no_grad():
        plain, (_, penalty) = task_losses(network, *arguments), network(*batch[:2], mask=batch.mask, penalty=True)
        assert torch.allclose(task_losses(network.train(), *arguments), plain + penalty.mean(0), atol=1e-6)
        apart = task_losses(network, *arguments, per_sample=True)
        assert torch.allclose(apart, task_losses(network.eval(), *arguments, per_sample=True) + penalty, atol=1e-6)
    assert (penalty > 0).all()
