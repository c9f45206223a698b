"""Quantiles, and the loss that trains them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from model_windows import NAN, SMALL, build, inputs, memory_of, randomise
from torch.distributions import Normal

from simmst.models import LEVELS, MEDIAN, at_levels, quantile_loss, task_losses
from simmst.models.quantiles import QuantileHead


@pytest.mark.parametrize("size", [0.1, 1.0, 10.0])
def test_quantiles_never_cross(size):
    model = randomise(build(dtype=torch.float32), seed=3, size=size)
    values, marks, mask = inputs(batch=40, dtype=torch.float32)
    memory = memory_of(batch=40, dtype=torch.float32)
    for scale in (1.0, 1e4):
        forecast = model(scale * values, marks, mask=mask, memory=memory, quantiles=True)
        assert forecast.shape == (40, 3, 2, len(LEVELS))
        assert forecast.isfinite().all()
        assert (forecast.diff(dim=-1) >= 0).all()
        median = model(scale * values, marks, mask=mask, memory=memory)
        torch.testing.assert_close(median, forecast[..., MEDIAN], rtol=0, atol=0)


def test_the_head_leaves_a_gap_between_neighbours():
    quantiles = QuantileHead(8).double()(torch.randn(50, 8, dtype=torch.float64))
    assert (quantiles.diff(dim=-1) > 0).all()


def test_quantiles_at_their_own_levels_and_between_and_beyond():
    quantiles = torch.randn(6, len(LEVELS), dtype=torch.float64).cumsum(-1).sort(-1).values
    torch.testing.assert_close(at_levels(quantiles, LEVELS), quantiles)
    fine = tuple(np.linspace(0.001, 0.999, 400).tolist())
    assert (at_levels(quantiles, fine).diff(dim=-1) >= -1e-12).all()
    assert torch.equal(at_levels(quantiles, (0.25, 0.85))[..., 1], at_levels(quantiles, (0.85,))[..., 0])
    # for a normal distribution they are exact at every level
    normal = Normal(torch.tensor(2.0, dtype=torch.float64), torch.tensor(3.0, dtype=torch.float64))
    told = normal.icdf(torch.tensor(LEVELS, dtype=torch.float64))
    torch.testing.assert_close(at_levels(told, fine), normal.icdf(torch.tensor(fine, dtype=torch.float64)))


def direct_loss(quantiles, target, level) -> np.ndarray:
    """Return the mean over the observed targets of each (sample, task), one by one."""
    samples, steps, tasks = target.shape
    losses = np.zeros((samples, tasks))
    for b in range(samples):
        for k in range(tasks):
            found = []
            for h in range(steps):
                y = float(target[b, h, k])
                if np.isnan(y):
                    continue
                known = float(level[b, k])
                weight = 1.0 if np.isnan(known) else np.exp(0.5 * np.clip(y - known, -3, 3))
                total = shares = 0.0
                for q, level_q in enumerate(LEVELS):
                    share = 4.0 if q == MEDIAN else 1.0
                    error = y - float(quantiles[b, h, k, q])
                    total += share * (level_q * error if error > 0 else (level_q - 1) * error)
                    shares += share
                found.append(weight * 2 * total / shares)
            losses[b, k] = np.mean(found) if found else 0.0
    return losses


def test_the_loss_equals_a_direct_computation():
    generator = torch.Generator().manual_seed(0)
    quantiles = torch.randn(6, 4, 2, len(LEVELS), generator=generator, dtype=torch.float64).sort(-1).values
    target = 3 * torch.randn(6, 4, 2, generator=generator, dtype=torch.float64)
    level = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    level[1, 0] = NAN
    whole = quantile_loss(quantiles, target, level)
    np.testing.assert_allclose(whole, direct_loss(quantiles, target, level).mean(0))
    target[0, 1:] = NAN
    target[2, :, 1] = NAN
    per_sample = quantile_loss(quantiles, target, level, per_sample=True)
    np.testing.assert_allclose(per_sample, direct_loss(quantiles, target, level))
    # the loss of a batch is the mean of its parts' losses, weighted by their numbers of targets
    number = (~target.isnan()).sum(1)
    torch.testing.assert_close(quantile_loss(quantiles, target, level), (per_sample * number).sum(0) / number.sum(0))


def test_the_median_alone_is_the_absolute_error():
    same = torch.zeros(3, 2, 1, len(LEVELS), dtype=torch.float64)
    target = torch.tensor([[[2.0], [-1.0]]] * 3, dtype=torch.float64)
    unknown = torch.full((3, 1), NAN, dtype=torch.float64)
    torch.testing.assert_close(quantile_loss(same, target, unknown), torch.tensor([1.5], dtype=torch.float64))


def test_unknown_targets_have_no_gradient():
    quantiles = torch.randn(2, 3, 2, len(LEVELS), requires_grad=True)
    target = torch.randn(2, 3, 2)
    target[0, 1] = NAN
    target[1, :, 0] = NAN
    quantile_loss(quantiles, target, torch.tensor([[0.0, NAN], [NAN, 1.0]])).sum().backward()
    assert (quantiles.grad[target.isnan()] == 0).all()
    assert (quantiles.grad[~target.isnan()] != 0).all()
    nothing = quantile_loss(quantiles, torch.full_like(target, NAN), torch.zeros(2, 2))
    assert nothing.tolist() == [0.0, 0.0]


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"quantiles are \(1, 2, 1, 3\) and target \(1, 2, 1\)"):
        quantile_loss(torch.zeros(1, 2, 1, 3), torch.zeros(1, 2, 1), torch.zeros(1, 1))


@pytest.mark.parametrize("kind", ["quantile", "huber", "mae", "mse"])
def test_the_loss_of_a_model_is_that_of_its_forecast(kind):
    values, marks, mask = inputs()
    memory = memory_of()
    target = torch.randn(5, 3, 2, dtype=torch.float64)
    model = build()
    whole = task_losses(model, values, marks, mask, memory, target, kind)
    each = task_losses(model, values, marks, mask, memory, target, kind, per_sample=True)
    assert each.shape == (5, SMALL.num_tasks)
    torch.testing.assert_close(each.mean(0), whole)
    if kind == "quantile":
        forecast = model(values, marks, mask=mask, memory=memory, quantiles=True)
        torch.testing.assert_close(whole, quantile_loss(forecast, target, memory.level[..., 1, 1]))
