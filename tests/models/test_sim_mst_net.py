from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.func import functional_call, jvp

from simmst.errors import ConfigError
from simmst.models import SimMSTNet, SimMSTNetConfig, STNet, masked_loss

NAN = float("nan")
SMALL = SimMSTNetConfig(
    services=("call", "internet"),
    input_length=14,
    horizon=3,
    label_length=4,
    neighbourhood=3,
    num_marks=2,
    width=8,
    num_heads=2,
    encoder_layers=1,
    feedforward=12,
    factor=2,
    dropout=0.0,
)


def small(**changes) -> SimMSTNetConfig:
    return dataclasses.replace(SMALL, **changes)


def build(config: SimMSTNetConfig = SMALL, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> SimMSTNet:
    """An untrained model whose network speaks as loudly as its highway: the mix starts small by design."""
    torch.manual_seed(seed)
    model = SimMSTNet(config).to(dtype).eval()
    if model.highway is not None:
        torch.nn.init.ones_(model.highway.mix)
    return model


def inputs(config: SimMSTNetConfig = SMALL, *, batch: int = 5, seed: int = 1, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    side, steps = config.neighbourhood, config.input_length + config.horizon
    values = torch.randn(batch, config.input_length, config.num_tasks, side, side, generator=generator, dtype=dtype)
    marks = torch.randn(batch, steps, config.num_marks, generator=generator, dtype=dtype)
    return values, marks, torch.ones(batch, side, side, dtype=torch.bool)


# Shapes and bad input


@pytest.mark.parametrize("services", [("a",), ("a", "b"), ("call", "sms", "internet"), ("v", "w", "x.y", "y", "z")])
@pytest.mark.parametrize("neighbourhood", [1, 3, 5])
def test_any_number_of_tasks_and_any_odd_neighbourhood(services, neighbourhood):
    config = small(services=services, neighbourhood=neighbourhood)
    values, marks, mask = inputs(config, batch=2)
    forecast = build(config)(values, marks, mask=mask)
    assert forecast.shape == (2, 3, len(services))
    assert forecast.isfinite().all()
    torch.testing.assert_close(build(config)(values, marks), forecast, rtol=0, atol=0)  # no mask: all inside


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
    model = build(small(highway=False, spatial=False, label_length=0))
    values, marks, mask = inputs()
    # A transformer without positions gives permuted steps the same forecast.
    marks = marks[:, :1].expand_as(marks).contiguous()
    order = torch.randperm(SMALL.input_length, generator=torch.Generator().manual_seed(0))
    before, permuted = model(values, marks, mask=mask), model(values[:, order], marks, mask=mask)
    assert (before - permuted).abs().max() > 1e-3
    with torch.no_grad():
        for embedding in [*model.embeddings, *(decoder.embedding for decoder in model.decoders)]:
            embedding.position.zero_()
    without = model(values, marks, mask=mask)
    torch.testing.assert_close(without, without[:, :1].expand_as(without))  # nothing tells the steps ahead apart


def test_the_label_values_reach_the_decoder():
    model = build(small(highway=False))
    values, marks, mask = inputs()
    values.requires_grad_()
    label = []
    model.decoders[0].embedding.register_forward_hook(lambda _, args, __: label.append(args[0]))
    model(values, marks, mask=mask)
    wanted = model.window_norm(values).values[:, -4:, 0, 1, 1]
    torch.testing.assert_close(label[0][:, :4], wanted)
    assert (label[0][:, 4:] == 0).all()


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


@pytest.mark.parametrize("part", ["temporal", "spatial"])
def test_tasks_are_coupled_through_temporal_and_spatial_features(part):
    model = build()
    values, marks, mask = inputs()
    values.requires_grad_()
    # The other half of the interaction is cut: what remains must carry the gradient.
    other = "spatial" if part == "temporal" else "temporal"
    setattr(model.interaction, other, torch.nn.Identity())
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


def test_the_untrained_highway_is_persistence_and_stays_near_it_with_the_network():
    torch.manual_seed(0)
    model = SimMSTNet(small(services=("call", "sms", "internet"))).double().eval()
    values, marks, mask = inputs(small(services=("call", "sms", "internet")), batch=64)
    last = values[:, -1:, :, 1, 1]
    assert (model(values, marks, mask=mask) - last).abs().mean() < 0.15
    with torch.no_grad():
        model.highway.mix.zero_()
    torch.testing.assert_close(model(values, marks, mask=mask), last.expand(-1, 3, -1))
    assert (build(small(highway=False))(*inputs()[:2]) - inputs()[0][:, -1:, :, 1, 1]).abs().mean() > 0.15


def test_the_fitted_highway_finds_a_linear_law():
    config = small(input_length=6, label_length=2, services=("a", "b"), window_norm="none", spatial=False)
    model = build(config)
    with torch.no_grad():
        model.highway.mix.zero_()
    values, marks, mask = inputs(config, batch=400)
    series = values[..., 1, 1]
    law = (
        torch.stack(
            (0.5 * series[:, -1] - 0.3 * series[:, -4] + 0.2, series[:, -2] + 0.1 * series[:, -3], -series[:, -6]), 1
        )
        + 0.4 * marks[:, -3:, :1]
    )
    target = law.clone()
    target[::7, 0] = NAN
    target[:, 2, 1] = NAN  # never observed: persistence stays
    model.fit_highway(values, marks, target, ridge=1e-10)
    forecast = model(values, marks, mask=mask)
    torch.testing.assert_close(forecast[:, :2], law[:, :2], atol=1e-5, rtol=0)
    torch.testing.assert_close(forecast[:, 2, 0], law[:, 2, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(forecast[:, 2, 1], series[:, -1, 1])


def test_fitting_the_highway_lowers_the_error_on_windows_of_their_own_scale():
    config = small(spatial=False)
    model = build(config, dtype=torch.float32)
    values, marks, mask = inputs(config, batch=300, dtype=torch.float32)
    values = 0.5 * values + 2
    target = values[:, [0, 3, 5], :, 1, 1]
    with torch.no_grad():
        model.highway.mix.zero_()
    before = masked_loss(model(values, marks, mask=mask), target, "mse")
    model.fit_highway(values, marks, target)
    assert (masked_loss(model(values, marks, mask=mask), target, "mse") < 0.02 * before).all()
    with pytest.raises(ValueError, match=r"target is \(300, 2, 2\).*\(300, 3, 2\)"):
        model.fit_highway(values, marks, target[:, 1:])
    with pytest.raises(ConfigError, match="highway is False"):
        build(small(highway=False)).fit_highway(*inputs()[:2], torch.zeros(5, 3, 2))


def test_a_shift_of_the_log_window_shifts_the_forecast_but_for_the_level_features():
    model = build()
    values, marks, mask = inputs()
    shift = torch.tensor([1.5, -0.5], dtype=torch.float64)
    shifted = values + shift[:, None, None]
    told = model(shifted, marks, mask=mask) - model(values, marks, mask=mask)
    assert (told - shift).abs().max() > 1e-3  # the level is a feature
    with torch.no_grad():
        for embedding in [*model.embeddings, *(decoder.embedding for decoder in model.decoders)]:
            embedding.level.weight.zero_()
        for branch in model.spatial:
            branch.conv_in.weight[:, -2:].zero_()
        model.highway.level.zero_()
    untold = model(shifted, marks, mask=mask) - model(values, marks, mask=mask)
    torch.testing.assert_close(untold, shift.expand_as(untold))


def test_without_window_norm_the_scale_of_the_input_reaches_the_network():
    model = build(small(window_norm="none", highway=False))
    values, marks, mask = inputs()
    difference = model(values + 2, marks, mask=mask) - model(values, marks, mask=mask)
    assert (difference - 2).abs().max() > 0.1


def test_missing_values_are_masked_and_told():
    model = build()
    values, marks, mask = inputs()
    values[0, 3:6, 0] = NAN
    values[1, -1] = NAN
    values[2] = NAN
    forecast = model(values, marks, mask=mask)
    assert forecast.isfinite().all()
    # A missing step is not the same as a step observed at the window's mean.
    filled = torch.where(values.isnan(), model.window_norm(values).level[:, None], values)
    assert ((model(filled, marks, mask=mask) - forecast).abs().amax((1, 2))[:3] > 1e-6).all()
    torch.testing.assert_close(model(filled, marks, mask=mask)[3:], forecast[3:])


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("oInter", {"interaction"}),
        ("oSpatial", {"spatial", "interaction.spatial", "fusion.0.spatial", "fusion.1.spatial"}),
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


# Training and running


@pytest.mark.parametrize("neighbourhood", [1, 3])
@pytest.mark.parametrize("window_norm", ["standard", "none"])
def test_gradients_reach_every_parameter(neighbourhood, window_norm):
    config = small(neighbourhood=neighbourhood, window_norm=window_norm, decoder_layers=2, dropout=0.1)
    model = build(config).train()
    values, marks, mask = inputs(config)
    values[0, 2:4] = NAN
    torch.manual_seed(0)
    forecast = model(values, marks, mask=mask)
    model.task_weights.combine(masked_loss(forecast, torch.zeros_like(forecast))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_evaluation_is_deterministic_and_training_is_not():
    model = build(small(dropout=0.3))
    values, marks, mask = inputs()
    first = model(values, marks, mask=mask)
    torch.manual_seed(123)
    torch.testing.assert_close(model(values, marks, mask=mask), first, rtol=0, atol=0)
    model.train()
    assert (model(values, marks, mask=mask) - model(values, marks, mask=mask)).abs().max() > 0


def test_a_sample_is_forecast_alike_in_any_batch():
    model = build()
    values, marks, mask = inputs()
    together = model(values, marks, mask=mask)
    alone = torch.cat([model(values[i : i + 1], marks[i : i + 1], mask=mask[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone)


def test_state_dict_round_trip():
    model, other = build(seed=0), build(seed=1)
    model.task_weights.update(torch.tensor([1.0, 4.0]))
    values, marks, mask = inputs()
    assert (model(values, marks, mask=mask) - other(values, marks, mask=mask)).abs().max() > 0
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(values, marks, mask=mask), model(values, marks, mask=mask), rtol=0, atol=0)
    assert torch.equal(other.task_weights.weights, model.task_weights.weights)


def test_float32_and_bfloat16_autocast_follow_float64():
    model = build()
    values, marks, mask = inputs()
    wanted = model(values, marks, mask=mask).detach()
    model, values, marks = model.float(), values.float(), marks.float()
    single = model(values, marks, mask=mask)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), wanted, atol=1e-4, rtol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(values + 100, marks, mask=mask)
    assert half.dtype == torch.float32  # the level is added in the input's precision
    assert (half.double() - model(values + 100, marks, mask=mask)).abs().max() < 0.25
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        masked_loss(model(values, marks, mask=mask), wanted.float()).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_forward_mode_agrees_with_a_finite_difference():
    model = build(small(backend="reference"))
    values, marks, mask = inputs()
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    generator = torch.Generator().manual_seed(3)
    tangent = {k: torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in parameters.items()}

    def losses(at):
        forecast = functional_call(model, at, (values, marks), {"mask": mask})
        return model.task_weights.combine(masked_loss(forecast, torch.zeros_like(forecast), per_sample=True))

    _, derivative = jvp(losses, (parameters,), (tangent,))
    assert derivative.shape == (5,)
    step = 1e-6
    ahead = losses({k: v + step * tangent[k] for k, v in parameters.items()})
    behind = losses({k: v - step * tangent[k] for k, v in parameters.items()})
    torch.testing.assert_close(derivative, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-7)


def test_a_handful_of_windows_can_be_learned_by_heart():
    torch.manual_seed(0)
    model = SimMSTNet(small(width=16, feedforward=32)).train()
    values, marks, mask = inputs(batch=8, dtype=torch.float32)
    target = torch.randn(8, 3, 2)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    first = None
    for _ in range(120):
        loss = masked_loss(model(values, marks, mask=mask), target, "mse").mean()
        first = loss.item() if first is None else first
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.02 * first
