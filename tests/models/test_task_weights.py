from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from simmst.errors import ConfigError
from simmst.models import TaskWeights, masked_loss

NAN = float("nan")


@pytest.mark.parametrize("kind", ["huber", "mae", "mse"])
def test_masked_loss_is_torchs_where_everything_is_observed(kind):
    generator = torch.Generator().manual_seed(0)
    forecast, target = (3 * torch.randn(7, 4, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    oracle = {"huber": functional.huber_loss, "mae": functional.l1_loss, "mse": functional.mse_loss}[kind]
    wanted = torch.stack([oracle(forecast[..., k], target[..., k]) for k in range(2)])
    torch.testing.assert_close(masked_loss(forecast, target, kind), wanted)


def test_missing_targets_are_ignored_and_a_task_without_any_is_zero():
    forecast = torch.tensor([[[1.0, 5.0], [9.0, 5.0]]], requires_grad=True)
    target = torch.tensor([[[0.0, NAN], [NAN, NAN]]])
    loss = masked_loss(forecast, target, "mse")
    assert loss.tolist() == [1.0, 0.0]
    loss.sum().backward()
    assert forecast.grad.tolist() == [[[2.0, 0.0], [0.0, 0.0]]]


def test_per_sample_losses_keep_the_samples_apart():
    forecast, target = torch.zeros(2, 2, 1), torch.tensor([[[1.0], [NAN]], [[3.0], [5.0]]])
    assert masked_loss(forecast, target, "mae", per_sample=True).tolist() == [[1.0], [4.0]]


def test_a_nan_forecast_shows_in_the_loss():
    loss = masked_loss(torch.full((1, 1, 1), NAN), torch.zeros(1, 1, 1))
    assert loss.isnan().all()
    assert TaskWeights(1).combine(loss).isnan()


def test_masked_loss_refuses():
    with pytest.raises(ConfigError, match="loss is 'l3'; it must be one of huber, mae, mse"):
        masked_loss(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), "l3")
    with pytest.raises(ValueError, match=r"forecast is \(1, 2, 3\) and target \(1, 2, 1\)"):
        masked_loss(torch.zeros(1, 2, 3), torch.zeros(1, 2, 1))


def test_loss_share_is_the_share_of_each_loss():
    weights = TaskWeights(3)
    torch.testing.assert_close(weights.weights, torch.full((3,), 1 / 3))
    torch.testing.assert_close(weights.update(torch.tensor([1.0, 1.0, 2.0])), torch.tensor([0.25, 0.25, 0.5]))
    torch.testing.assert_close(weights.update(torch.tensor([1e-30, 3e-30, 0.0])), torch.tensor([0.25, 0.75, 0.0]))
    torch.testing.assert_close(weights.update(torch.tensor([1e38, 3e38, 0.0])), torch.tensor([0.25, 0.75, 0.0]))


def test_missing_losses_have_no_share_and_nothing_at_all_is_the_average():
    weights = TaskWeights(3)
    assert weights.update(torch.tensor([1.0, NAN, 3.0])).tolist() == [0.25, 0.0, 0.75]
    assert weights.update(torch.tensor([1.0, 0.0, float("inf")])).tolist() == [1.0, 0.0, 0.0]
    for nothing in (torch.zeros(3), torch.full((3,), NAN)):
        torch.testing.assert_close(weights.update(nothing), torch.full((3,), 1 / 3))


def test_average_never_moves():
    weights = TaskWeights(2, "average")
    assert weights.update(torch.tensor([1.0, 9.0])).tolist() == [0.5, 0.5]


def test_update_detaches_and_leaves_the_old_tensor_alone():
    weights = TaskWeights(2)
    old = weights.weights
    losses = torch.tensor([1.0, 3.0], requires_grad=True)
    combined = weights.combine(losses)
    new = weights.update(losses)
    assert new is not old
    assert not new.requires_grad
    assert old.tolist() == [0.5, 0.5]
    combined.backward()
    assert losses.grad.tolist() == [0.5, 0.5]


def test_combine_weighs_a_batch_sample_by_sample():
    weights = TaskWeights(2)
    weights.update(torch.tensor([1.0, 3.0]))
    assert weights.combine(torch.tensor([[4.0, 0.0], [0.0, 4.0]])).tolist() == [1.0, 3.0]


def test_weights_travel_with_the_state():
    trained = TaskWeights(2)
    trained.update(torch.tensor([1.0, 3.0]))
    fresh = TaskWeights(2)
    fresh.load_state_dict(trained.state_dict())
    assert fresh.weights.tolist() == [0.25, 0.75]


def test_task_weights_refuse():
    with pytest.raises(ConfigError, match="task_weights is 'dwam'"):
        TaskWeights(2, "dwam")
    with pytest.raises(ValueError, match="weights of mode 'dwa' are found by the training loop"):
        TaskWeights(2, "dwa").update(torch.ones(2))
    with pytest.raises(ValueError, match=r"losses are \(3,\); there are 2 tasks"):
        TaskWeights(2).combine(torch.zeros(3))
    with pytest.raises(ValueError, match="one loss a task"):
        TaskWeights(2).update(torch.zeros(4, 2))
