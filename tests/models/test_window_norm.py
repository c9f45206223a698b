from __future__ import annotations

import pytest
import torch

from simmst.models import WindowNorm
from simmst.models.window_norm import SMALLEST_SPREAD

NAN = float("nan")


def window_of(*steps: float) -> torch.Tensor:
    return torch.tensor(steps).reshape(1, -1, 1, 1, 1)


def test_observed_values_have_mean_zero_and_deviation_one():
    torch.manual_seed(0)
    values = 3 * torch.randn(4, 50, 2, 3, 3, dtype=torch.float64) + 7
    missing = torch.rand(values.shape) < 0.3
    window = WindowNorm()(values.masked_fill(missing, NAN))
    count = (~missing).sum(1)
    mean = window.values.sum(1) / count
    deviation = (window.values.square().sum(1) / count).sqrt()
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-12, rtol=0)
    torch.testing.assert_close(deviation, torch.ones_like(deviation), atol=0.01, rtol=0)
    restored = window.values * window.spread[:, None] + window.level[:, None]
    torch.testing.assert_close(restored[~missing], values[~missing])
    assert torch.equal(window.observed, (~missing).to(values.dtype))
    torch.testing.assert_close(window.features, torch.stack((window.level, window.spread.log()), 1))


def test_missing_steps_are_zero_and_change_no_statistic():
    window = WindowNorm()(window_of(1.0, NAN, 3.0))
    assert window.level.item() == 2.0
    assert window.spread.item() == pytest.approx((1 + SMALLEST_SPREAD**2) ** 0.5)
    assert window.values.flatten()[1] == 0


def test_a_window_with_nothing_observed_has_level_zero_and_spread_one():
    window = WindowNorm()(window_of(NAN, NAN))
    assert window.level.item() == 0
    assert window.spread.item() == 1
    assert window.values.flatten().tolist() == [0, 0]
    assert window.observed.flatten().tolist() == [0, 0]


def test_a_constant_window_stays_finite():
    window = WindowNorm()(window_of(5.0, 5.0))
    assert window.spread.item() == pytest.approx(SMALLEST_SPREAD)
    assert window.values.flatten().tolist() == [0, 0]


def test_cells_outside_the_city_count_as_missing():
    window = WindowNorm()(window_of(1.0, 3.0), torch.zeros(1, 1, 1, dtype=torch.bool))
    assert window.observed.sum() == 0
    assert window.level.item() == 0


def test_none_keeps_the_scale_of_the_input():
    norm = WindowNorm("none")
    window = norm(window_of(1.0, NAN, 3.0))
    assert window.values.flatten().tolist() == [1, 0, 3]
    assert (window.level.item(), window.spread.item()) == (0, 1)
    assert window.features.shape == (1, norm.num_features, 1, 1, 1)
    assert norm.num_features == 0


def test_gradients_of_a_window_with_missing_values_are_finite():
    values = window_of(1.0, NAN, 3.0, 3.0).requires_grad_()
    window = WindowNorm()(values)
    (window.values.square().sum() + window.features.sum()).backward()
    assert values.grad.isfinite().all()
    assert values.grad.flatten()[1] == 0
