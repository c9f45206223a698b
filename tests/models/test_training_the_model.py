"""The model trains in every supported way, and gives the same results however it is called."""

from __future__ import annotations

import pytest
import torch
from model_windows import NAN, build, inputs, memory_of, small
from torch.func import functional_call, jvp

from simmst.foundation.memory import Memory
from simmst.models import SimMSTNet, masked_loss, quantile_loss, task_losses

# Parts that compare days have no effect without any.
NEED_DAYS = {
    "day_attention.day.0.weight",
    "day_attention.day.0.bias",
    "day_attention.day.2.weight",
    "day_attention.day.2.bias",
    "day_attention.query.weight",
    "day_attention.query.bias",
    "day_attention.day_bias",
    "day_attention.same_day",
}


@pytest.mark.parametrize("neighbourhood", [1, 3])
@pytest.mark.parametrize("remembered", [True, False])
def test_gradients_reach_every_parameter(neighbourhood, remembered):
    services = ("call", "sms", "internet", "of another name")
    config = small(services=services, neighbourhood=neighbourhood, decoder_layers=2, dropout=0.1, memory_days=5)
    model = build(config).train()
    values, marks, mask = inputs(config)
    values[0, 2:4] = NAN
    memory = memory_of(config) if remembered else None
    torch.manual_seed(0)
    losses = task_losses(model, values, marks, mask, memory, torch.zeros(5, 3, 4, dtype=torch.float64), "quantile")
    model.task_weights.combine(losses).backward()
    for name, parameter in model.named_parameters():
        if not remembered and name in NEED_DAYS:
            assert parameter.grad is None or (parameter.grad == 0).all(), name
            continue
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
    memory = memory_of()
    together = model(values, marks, mask=mask, memory=memory)
    alone = [
        model(values[i : i + 1], marks[i : i + 1], mask=mask[i : i + 1], memory=Memory(*(x[i : i + 1] for x in memory)))
        for i in range(5)
    ]
    torch.testing.assert_close(together, torch.cat(alone))


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
    memory = Memory(*(tensor.float() for tensor in memory_of()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(values, marks, mask=mask, memory=memory, quantiles=True)
    assert half.dtype == torch.float32
    assert (half.diff(dim=-1) >= 0).all()
    assert (half - model(values, marks, mask=mask, memory=memory, quantiles=True)).abs().max() < 0.25
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
        options = {"mask": mask, "memory": memory_of(), "quantiles": True}
        forecast = functional_call(model, at, (values, marks), options)
        loss = quantile_loss(forecast, torch.zeros_like(forecast[..., 0]), values[:, 0, :, 1, 1], per_sample=True)
        return model.task_weights.combine(loss)

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
