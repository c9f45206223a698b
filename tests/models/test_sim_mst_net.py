from __future__ import annotations

import dataclasses

import pytest
import torch
from model_windows import NAN, SMALL, build, inputs, memory_of, small

from simmst.errors import ConfigError
from simmst.models import SimMSTNet, STNet

# Shapes and bad input


@pytest.mark.parametrize("services", [("a",), ("a", "b"), ("call", "sms", "internet"), ("v", "w", "x.y", "y", "z")])
@pytest.mark.parametrize("neighbourhood", [1, 3, 5])
def test_any_number_of_tasks_and_any_odd_neighbourhood(services, neighbourhood):
    config = small(services=services, neighbourhood=neighbourhood)
    values, marks, mask = inputs(config, batch=2)
    forecast = build(config)(values, marks, mask=mask)
    assert forecast.shape == (2, 3, len(services))
    assert forecast.isfinite().all()
    torch.testing.assert_close(build(config)(values, marks), forecast, rtol=0, atol=0)  # no mask: all are inside


@pytest.mark.parametrize(
    "changes",
    [{"label_length": 0}, {"num_marks": 0}, {"horizon": 1, "label_length": 0}, {"input_length": 1, "label_length": 1},
     {"decoder_layers": 2, "encoder_layers": 2}, {"width": 8, "num_heads": 1}],
)  # fmt: skip
def test_the_smallest_sizes_work(changes):
    config = small(**changes)
    values, marks, mask = inputs(config, batch=1)
    assert build(config)(values, marks, mask=mask).shape == (1, config.horizon, 2)


def test_an_empty_batch_gives_an_empty_forecast():
    values, marks, mask = inputs(batch=0)
    assert build()(values, marks, mask=mask).shape == (0, 3, 2)


def test_shape_errors_name_what_came_and_what_was_wanted():
    model = build()
    values, marks, mask = inputs()
    with pytest.raises(ValueError, match=r"values are \(5, 14, 1, 3, 3\).*\(B, 14, 2, 3, 3\).*call, internet"):
        model(values[:, :, :1], marks, mask=mask)
    with pytest.raises(ValueError, match=r"values are \(14, 2, 3, 3\)"):
        model(values[0], marks, mask=mask)
    with pytest.raises(ValueError, match=r"marks are \(5, 16, 2\).*\(5, 17, 2\)"):
        model(values, marks[:, 1:], mask=mask)
    with pytest.raises(ValueError, match=r"mask is \(5, 3, 2\).*\(5, 3, 3\)"):
        model(values, marks, mask=mask[..., 1:])
    with pytest.raises(TypeError, match=r"mask is torch.float64"):
        model(values, marks, mask=mask.double())
    with pytest.raises(TypeError, match=r"values are torch.float32.*parameters are torch.float64"):
        model(values.float(), marks, mask=mask)
    memory = memory_of()
    with pytest.raises(ValueError, match=r"memory.days is \(5, 7, 17, 2\); the model expects \(5, 8, 17, 2\)"):
        model(values, marks, mask=mask, memory=memory._replace(days=memory.days[:, 1:]))
    with pytest.raises(ValueError, match=r"memory.context is \(4,\); the model expects \(5,\)"):
        model(values, marks, mask=mask, memory=memory._replace(context=memory.context[1:]))


# Every part matters


@pytest.mark.parametrize("highway", [True, False])
def test_marks_of_the_past_and_of_the_future_matter(highway):
    model = build(small(highway=highway))
    values, marks, mask = inputs()
    marks.requires_grad_()
    model(values, marks, mask=mask).square().sum().backward()
    steps = marks.grad.abs().sum((0, 2))
    assert (steps[: SMALL.input_length] > 0).any()
    assert (steps[SMALL.input_length :] > 0).all()


def test_positions_matter():
    model = build(small(highway=False, spatial=False, label_length=0, factor=100))  # attention from every step
    values, marks, mask = inputs()
    marks = marks[:, :1].expand_as(marks).contiguous()
    with torch.no_grad():
        model.decoder.target.latest.weight.zero_()  # it knows the positions of the input steps by itself
    order = torch.randperm(SMALL.input_length, generator=torch.Generator().manual_seed(0))
    before, permuted = model(values, marks, mask=mask), model(values[:, order], marks, mask=mask)
    assert (before - permuted).abs().max() > 1e-3
    with torch.no_grad():
        model.embedding.position.zero_()
    seen = [model.encoder(model.embedding(*args)) for args in _tokens(values, marks, order)]
    torch.testing.assert_close(seen[0][:, order], seen[1])  # a transformer without positions: the same, permuted


def _tokens(values, marks, order):
    """Return the arguments of the embedding for a series, and for the series with its steps in another order."""
    for steps in (torch.arange(SMALL.input_length), order):
        series = values[:, steps, 0, 1, 1]
        channels = torch.stack((series, 0 * series, torch.ones_like(series)), dim=-1)
        yield channels, marks[:, : SMALL.input_length], marks.new_zeros(5, 3), marks.new_zeros(5, SMALL.width)


def test_the_distance_alone_tells_the_steps_ahead_apart():
    model = build(small(highway=False))
    values, marks, mask = inputs()
    marks = marks[:, :1].expand_as(marks).contiguous()
    assert model(values, marks, mask=mask).diff(dim=1).abs().max() > 1e-3
    with torch.no_grad():
        distances = slice(-4, None)
        model.decoder.target.slot.weight[:, distances].zero_()
        model.day_attention.query.weight[:, distances].zero_()
    without = model(values, marks, mask=mask)
    # Next to the label, the self-attention of a later step has more equal tokens to attend to.
    model.decoder.layers[0].self_attention = torch.nn.Identity()
    without = model(values, marks, mask=mask)
    torch.testing.assert_close(without, without[:, :1].expand_as(without))


def test_the_label_values_reach_the_decoder():
    model = build(small(highway=False))
    values, marks, mask = inputs()
    memory = memory_of()
    values[0, -2, 0, 1, 1] = NAN
    label = []
    model.decoder.label.register_forward_hook(lambda _, args, __: label.append(args[0]))
    model(values, marks, mask=mask, memory=memory)
    centre = values[:, -4:, 0, 1, 1]
    wanted = torch.stack(
        (centre - memory.level[:, 0, 1, 1][:, None], centre - memory.usual[:, -4:, 0, 1, 1], centre.isnan()), dim=-1
    )
    wanted[..., 2] = 1 - wanted[..., 2]
    torch.testing.assert_close(label[0][::2], wanted.nan_to_num(0.0))


def test_the_decoder_sees_nothing_of_later_steps():
    model = build(small(highway=False, horizon=5))
    values, marks, mask = inputs(small(horizon=5))
    marks.requires_grad_()
    forecast = model(values, marks, mask=mask)
    for step in range(5):
        (gradient,) = torch.autograd.grad(forecast[:, step].sum(), marks, retain_graph=True)
        reach = gradient.abs().sum((0, 2))[SMALL.input_length :]
        assert (reach[step + 1 :] == 0).all()
        assert (reach[: step + 1] > 0).all()


def test_cells_outside_the_city_contribute_nothing():
    model = build()
    values, marks, mask = inputs()
    mask[:, 0] = False
    mask[1] = torch.tensor([[0, 0, 0], [0, 1, 0], [0, 0, 0]]).bool()
    forecast = model(values, marks, mask=mask)
    for other in (values + 3, torch.full_like(values, NAN), torch.full_like(values, 1e30)):
        changed = torch.where(mask[:, None, None], values, other)
        torch.testing.assert_close(model(changed, marks, mask=mask), forecast, rtol=0, atol=0)
    inside = values.clone()
    inside[:, :, :, 2, 2] += torch.randn(5, 14, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    difference = (model(inside, marks, mask=mask) - forecast).abs().amax((1, 2))
    assert difference[1] == 0
    assert (difference[[0, 2, 3, 4]] > 0).all()
    assert (model(values, marks) - forecast).abs().max() > 0


@pytest.mark.parametrize("spatial", [True, False])
def test_the_spatial_branch_alone_sees_the_neighbours(spatial):
    model = build(small(spatial=spatial))
    values, marks, mask = inputs()
    values.requires_grad_()
    model(values, marks, mask=mask).square().sum().backward()
    reach = values.grad.abs().sum((0, 1, 2))
    assert reach[1, 1] > 0
    reach[1, 1] = 1.0 if spatial else 0.0
    assert ((reach > 0) == spatial).all()


class Alone(torch.nn.Module):
    """Replaces an interaction; every task keeps its own features."""

    def forward(self, x, key_padding_mask=None):
        return x


@pytest.mark.parametrize("part", ["temporal", "spatial"])
def test_tasks_are_coupled_through_temporal_and_spatial_features(part):
    model = build()
    values, marks, mask = inputs()
    values.requires_grad_()
    # The other half of the interaction is cut, so the remaining half must carry the gradient.
    other = "spatial" if part == "temporal" else "temporal"
    setattr(model.interaction, other, Alone())
    (gradient,) = torch.autograd.grad(model(values, marks, mask=mask)[..., 0].sum(), values)
    assert gradient[:, :, 1].abs().max() > 0


@pytest.mark.parametrize("interaction", [True, False])
def test_tasks_are_coupled_exactly_when_they_interact(interaction):
    model = build(small(services=("a", "b", "c"), interaction=interaction))
    values, marks, mask = inputs(small(services=("a", "b", "c")))
    values.requires_grad_()
    forecast = model(values, marks, mask=mask)
    for task in range(3):
        (gradient,) = torch.autograd.grad(forecast[..., task].square().sum(), values, retain_graph=True)
        reach = gradient.abs().sum((0, 1, 3, 4))
        for other in range(3):
            assert (reach[other] > 0) == (interaction or other == task)


def test_missing_values_are_masked_and_told():
    model = build()
    values, marks, mask = inputs()
    values[0, 3:6, 0] = NAN
    values[1, -1] = NAN
    values[2] = NAN
    forecast = model(values, marks, mask=mask)
    assert forecast.isfinite().all()
    # A missing step is not equal to a step observed at the window's mean.
    filled = torch.where(values.isnan(), values.nanmean(1, keepdim=True).nan_to_num(0.0), values)
    assert ((model(filled, marks, mask=mask) - forecast).abs().amax((1, 2))[:3] > 1e-6).all()
    torch.testing.assert_close(model(filled, marks, mask=mask)[3:], forecast[3:])


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("oInter", {"interaction"}),
        ("oSpatial", {"spatial", "interaction.spatial", "fusion.spatial"}),
        ("Average", set()),
    ],
)
def test_ablations_lack_exactly_what_they_name(name, gone):
    full = {key: value.shape for key, value in SimMSTNet(SMALL).named_parameters()}
    ablated = SimMSTNet(SMALL.ablation(name))
    wanted = {key: shape for key, shape in full.items() if not any(key.startswith(f"{part}.") for part in gone)}
    assert {key: value.shape for key, value in ablated.named_parameters()} == wanted
    assert len(wanted) < len(full) or name == "Average"
    ablated.task_weights.update(torch.tensor([1.0, 3.0]))
    assert ablated.task_weights.weights.tolist() == ([0.5, 0.5] if name == "Average" else [0.25, 0.75])


def test_the_highway_is_all_that_its_switch_removes():
    full, without = (set(dict(SimMSTNet(config).named_parameters())) for config in (SMALL, small(highway=False)))
    assert without < full
    assert all(key.startswith("highway.") for key in full - without)


# STNet


def test_stnet_is_the_single_task_case():
    single = SMALL.single_task("internet")
    torch.manual_seed(0)
    stnet = STNet(dataclasses.replace(single, interaction=True)).double().eval()
    assert not stnet.config.interaction
    assert stnet.interaction is None
    values, marks, mask = inputs(single)
    torch.testing.assert_close(stnet(values, marks, mask=mask).shape, torch.Size((5, 3, 1)))
    twin = build(single)
    twin.load_state_dict(stnet.state_dict())
    torch.testing.assert_close(twin(values, marks, mask=mask), stnet(values, marks, mask=mask), rtol=0, atol=0)
    with pytest.raises(ConfigError, match=r"services is \('call', 'internet'\); STNet forecasts one service"):
        STNet(SMALL)
