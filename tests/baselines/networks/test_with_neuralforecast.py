"""The networks with neuralforecast's weights make neuralforecast's forecasts, if it is installed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("neuralforecast", reason="comes with the extra nixtla")

from neuralforecast import models

from simmst.baselines.networks import NETWORKS, View

STEPS, HORIZON, MARKS, SIDE, WIDTH, BATCH = 24, 6, 8, 3, 16, 4
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
SIZES = {"encoder_layers": 2, "decoder_layers": 1, "hidden_size": WIDTH, "conv_hidden_size": 32}


@pytest.fixture(autouse=True)
def _quiet():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def ours(name, **settings):
    shape = {"input_length": STEPS, "horizon": HORIZON, "num_marks": MARKS, "neighbourhood": SIDE}
    config = NETWORKS[name].config_class(services=("internet",), **shape, **settings)
    return NETWORKS[name](config).eval()


def theirs(name, **settings):
    return getattr(models, name)(h=HORIZON, input_size=STEPS, **settings, **QUIET).eval()


def view():
    return View(
        torch.randn(BATCH, STEPS, 1, SIDE**2, 1),
        torch.zeros(BATCH, HORIZON, 1, 1),
        torch.randn(BATCH, STEPS, MARKS),
        torch.randn(BATCH, HORIZON, MARKS),
        torch.ones(BATCH, SIDE**2, dtype=torch.bool),
        torch.zeros(BATCH, HORIZON, 1),
        torch.zeros(BATCH, 28, HORIZON, 1),
    )


def asked(model, values, marks=None):
    return model({"insample_y": values, "futr_exog": marks, "hist_exog": None, "stat_exog": None})


def take(module, source):
    """Copy a linear map; a convolution over one step counts as one."""
    module.load_state_dict(
        {name: value.reshape(getattr(module, name).shape) for name, value in source.state_dict().items()}
    )


def take_attention(attention, source):
    for part, name in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "out")):
        take(getattr(attention, part), getattr(source, f"{name}_projection"))


def take_embedding(embedding, source):
    embedding.value = source.value_embedding.tokenConv  # theirs pads circularly, ours with zeros
    embedding.calendar = source.temporal_embedding.embed


def take_transformer(network, model):
    """Copy the weights of the encoder and the decoder, and the whole distilling layers, whose padding differs."""
    take_embedding(network.past_embedding, model.enc_embedding)
    take_embedding(network.future_embedding, model.dec_embedding)
    layers, distilling = [], list(model.encoder.conv_layers or ())
    for layer in network.encoder:
        if not hasattr(layer, "attention"):
            layer.convolution, layer.norm = distilling[0].downConv, distilling.pop(0).norm
        else:
            layers.append(layer)
    for layer, source in zip(layers, model.encoder.attn_layers, strict=True):
        take_attention(layer.attention, source.attention)
        take_rest(layer, source, [layer.first_norm, layer.second_norm])
    for layer, source in zip(network.decoder, model.decoder.layers, strict=True):
        take_attention(layer.self_attention, source.self_attention)
        take_attention(layer.cross_attention, source.cross_attention)
        take_rest(layer, source, layer.norms)
    take(network.encoder_norm, model.encoder.norm)
    take(network.decoder_norm, model.decoder.norm)
    take(network.head, model.decoder.projection)


def take_rest(layer, source, norms):
    take(layer.feed_forward.wide, source.conv1)
    take(layer.feed_forward.narrow, source.conv2)
    for number, norm in enumerate(norms, start=1):
        take(norm, getattr(source, f"norm{number}"))


def test_lstm():
    model = theirs("LSTM", encoder_hidden_size=WIDTH, encoder_n_layers=2, decoder_layers=1)
    network, seen = ours("lstm", width=WIDTH, layers=2), view()
    network.closeness.load_state_dict(model.hist_encoder.state_dict())
    values = seen.past[:, :, 0, SIDE**2 // 2]
    # Theirs maps the state of each of the last steps to a forecast, ours the last state to all; the last step agrees.
    hidden = network.closeness(network.centre_tokens(seen))[0][:, -1]
    assert torch.allclose(model.mlp_decoder(hidden), asked(model, values)[:, -1], atol=1e-5)
    last = list(model.mlp_decoder.modules())[-1]
    assert isinstance(last, nn.Linear)
    network.head.weight.copy_(last.weight.expand(HORIZON, -1))
    network.head.bias.copy_(last.bias.expand(HORIZON))
    for parameter in network.period.parameters():
        parameter.zero_()  # only ours has a branch of the days before
    assert torch.allclose(network.forecast(seen)[:, -1], asked(model, values)[:, -1], atol=1e-5)


def test_transformer():
    marks = [f"mark_{number}" for number in range(MARKS)]
    model = theirs("VanillaTransformer", n_head=4, futr_exog_list=marks, **SIZES)
    network, seen = ours("transformer", width=WIDTH, num_heads=4, feedforward=32, label_length=STEPS // 2), view()
    take_transformer(network, model)
    values, marks = seen.past[:, :, 0, SIDE**2 // 2], torch.cat((seen.past_marks, seen.future_marks), dim=1)
    # Version 3.3.0 masks no later step in its decoder unless the weights are asked for; the last step sees all anyway.
    assert torch.allclose(network.forecast(seen)[:, -1], asked(model, values, marks)[:, -1], atol=1e-4)
    model.decoder.layers[0].self_attention.inner_attention.output_attention = True
    assert torch.allclose(network.forecast(seen), asked(model, values, marks), atol=1e-4)


def test_informer_where_every_query_is_selected():
    marks = [f"mark_{number}" for number in range(MARKS)]
    model = theirs("Informer", n_head=1, factor=30, futr_exog_list=marks, **SIZES)  # theirs mixes heads and steps
    sizes = {"width": WIDTH, "num_heads": 1, "feedforward": 32, "label_length": STEPS // 2, "factor": 30}
    network, seen = ours("informer", **sizes), view()
    take_transformer(network, model)
    expected = asked(model, seen.past[:, :, 0, SIDE**2 // 2], torch.cat((seen.past_marks, seen.future_marks), dim=1))
    assert torch.allclose(network.forecast(seen), expected, atol=1e-4)


def test_itransformer():
    model = theirs("iTransformer", n_series=SIDE**2, hidden_size=WIDTH, n_heads=4, d_ff=32, e_layers=2)
    network, seen = ours("itransformer", width=WIDTH, num_heads=4, layers=2, feedforward=32), view()
    take(network.embedding, model.enc_embedding.value_embedding)
    for layer, source in zip(network.layers, model.encoder.attn_layers, strict=True):
        parts = [getattr(source.attention, f"{name}_projection") for name in ("query", "key", "value")]
        layer.in_proj.weight.copy_(torch.cat([part.weight for part in parts]))
        layer.in_proj.bias.copy_(torch.cat([part.bias for part in parts]))
        take(layer.out_proj, source.attention.out_projection)
        take(layer.wide, source.conv1)
        take(layer.narrow, source.conv2)
        take(layer.first_norm, source.norm1)
        take(layer.second_norm, source.norm2)
    take(network.norm, model.encoder.norm)
    take(network.head, model.projector)
    values = seen.past[:, :, 0, :, 0]
    found = network.forecast_variates(values[..., None], seen.past_marks[..., :0], seen.inside)
    assert torch.allclose(found, asked(model, values), atol=1e-4)
