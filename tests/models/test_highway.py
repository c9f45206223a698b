"""The linear autoregression beside the network."""

from __future__ import annotations

import pytest
import torch
from model_windows import NAN, SMALL, build, inputs, memory_of, small

from simmst.errors import ConfigError
from simmst.models import SimMSTNet, masked_loss
from simmst.models.highway import Highway


class NoDecoder(torch.nn.Module):
    """Forecasts no difference, so only the highway has an effect."""

    def forward(self, fused, context, recalled, marks, ahead, task):
        return fused.new_zeros(*ahead.shape[:2], 13)


def highway_alone(config=SMALL, dtype=torch.float64) -> SimMSTNet:
    torch.manual_seed(0)
    model = SimMSTNet(config).to(dtype).eval()
    model.decoder = NoDecoder()
    return model


def test_the_untrained_highway_is_the_mean_of_the_days_before():
    model = highway_alone()
    values, marks, mask = inputs()
    memory = memory_of()
    days = memory.days[:, :, SMALL.input_length :]
    near = memory._replace(days=memory.days.clamp(-0.5, 0.5), level=memory.level.clamp(-1, 1))
    wanted = days.clamp(-0.5, 0.5).nanmean(1)
    torch.testing.assert_close(model(values, marks, mask=mask, memory=near), wanted)
    # in which a day far from the others counts no more than one at a bounded distance from their median
    far = near._replace(days=near.days.clone())
    far.days[:, 0] = -4.0
    others = far.days[:, :, SMALL.input_length :]
    median = others.nanmedian(1).values
    robust = median + (others - median[:, None]).clamp(-1, 1).nanmean(1)
    torch.testing.assert_close(model(values, marks, mask=mask, memory=far), robust)
    # and the level of the window if there are none
    level = values[..., 1, 1].mean(1, keepdim=True)
    torch.testing.assert_close(model(values, marks, mask=mask), level.expand(-1, 3, -1))


def test_the_untrained_network_stays_near_the_highway():
    torch.manual_seed(0)
    model = SimMSTNet(small(width=32, feedforward=64)).double().eval()
    values, marks, mask = inputs(batch=64)
    memory = memory_of(batch=64)
    before = model(values, marks, mask=mask, memory=memory)
    model.decoder = NoDecoder()
    assert (before - model(values, marks, mask=mask, memory=memory)).abs().mean() < 0.15


def test_the_fitted_highway_finds_a_linear_law_at_every_distance():
    config = small(input_length=6, label_length=2, services=("a", "b"), spatial=False)
    model = highway_alone(config)
    values, marks, mask = inputs(config, batch=400)
    values = values.clamp(-2, 2)
    memory = memory_of(config, batch=400)
    memory = memory._replace(level=memory.level.clamp(-1, 1))
    series = (values[..., 1, 1] - memory.level[:, None, :, 1, 1]).transpose(1, 2)  # (B, K, T_in)
    ahead = torch.arange(1.0, 4.0, dtype=torch.float64)
    fading, growing = (-(ahead - 1) / 2).exp2(), ahead / 24
    change = (
        0.3 * series[..., -1:] * fading - 0.5 * series[..., -4:-3] + 2.0 * series[..., :1] * growing + 0.2
    ).transpose(1, 2) + 0.4 * marks[:, -3:, :1]
    law = model(values, marks, mask=mask, memory=memory) + change
    target = law.clone()
    target[::7, 0] = NAN
    target[:, 2, 1] = NAN  # never observed: its coefficients are shared with the others
    model.fit_highway(values, marks, target, memory=memory, ridge=1e-12)
    torch.testing.assert_close(model(values, marks, mask=mask, memory=memory), law, atol=1e-5, rtol=0)


def test_nothing_observed_leaves_the_highway_alone():
    model = highway_alone()
    values, marks, _ = inputs()
    model.fit_highway(values, marks, torch.full((5, 3, 2), NAN, dtype=torch.float64))
    assert (model.highway.coefficients == 0).all()


def test_fitting_the_highway_lowers_the_error_on_windows_of_their_own_scale():
    config = small(spatial=False)
    model = highway_alone(config, dtype=torch.float32)
    values, marks, mask = inputs(config, batch=600, dtype=torch.float32)
    values = 0.5 * values + 2
    target = values[:, [-1, -1, -1], :, 1, 1]
    before = masked_loss(model(values, marks, mask=mask), target, "mse")
    model.fit_highway(values, marks, target)
    assert (masked_loss(model(values, marks, mask=mask), target, "mse") < 0.02 * before).all()


def test_what_cannot_be_fitted_is_refused():
    values, marks, _ = inputs()
    with pytest.raises(ValueError, match=r"target is \(5, 2, 2\).*\(5, 3, 2\)"):
        build().fit_highway(values, marks, torch.zeros(5, 2, 2))
    with pytest.raises(ConfigError, match="highway is False"):
        build(small(highway=False)).fit_highway(values, marks, torch.zeros(5, 3, 2))


def test_one_set_of_coefficients_serves_any_horizon():
    shapes = {tuple(Highway(small(horizon=horizon), 10).coefficients.shape) for horizon in (1, 6, 24)}
    assert len(shapes) == 1
