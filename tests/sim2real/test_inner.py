"""The end of K weighted steps and its derivative by the weights, computed in three ways."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from sim2real.problems import half_square
from simmst.errors import ConfigError
from simmst.sim2real import ReweightingConfig, TensorSamples
from simmst.sim2real.flat_model import FlatModel
from simmst.sim2real.inner import Inner


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def data(dtype=torch.float64, number=11):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(number, 3, generator=generator, dtype=dtype), torch.randn(
        number, generator=generator, dtype=dtype
    )


def inner(module, samples, **settings):
    return Inner(FlatModel(module, half_square), TensorSamples(*samples), ReweightingConfig(**settings))


def pulled(derivative, steps, batch):
    problem = inner(network(), data(), inner_steps=steps, derivative=derivative, simulated_batch=batch, chunk=3)
    weights = torch.linspace(-1, 1, 11).double()
    start = problem.model.flatten()
    direction = torch.randn(start.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    path = problem.unroll(weights, start, step=3)
    return problem, path, weights, direction, problem.pull_back(path, weights, direction)


@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_three_ways_agree(steps, batch):
    forward = pulled("forward", steps, batch)[-1]
    backward = pulled("double-backward", steps, batch)[-1]
    difference = pulled("difference", steps, batch)[-1]
    assert forward.norm() > 1e-4
    torch.testing.assert_close(forward, backward, rtol=1e-9, atol=1e-12)
    # A central difference in float64 is accurate to about eps^(2/3) of the largest entry.
    torch.testing.assert_close(forward, difference, rtol=0, atol=1e-8 * float(forward.abs().max()))


@pytest.mark.parametrize("batch", [None, 4])
def test_products_are_the_slope_of_the_path(batch):
    """The only check that shares no code with the products: it moves a weight and measures how psi moves."""
    problem, path, weights, direction, found = pulled("forward", 2, batch)
    for number in range(len(weights)):
        change = torch.zeros_like(weights)
        change[number] = 1e-5
        ends = [problem.unroll(weights + sign * change, path.points[0], step=3).end for sign in (1, -1)]
        slope = float((ends[0] - ends[1]) @ direction) / 2e-5
        assert abs(slope + float(found[number])) < 1e-8
    seen = torch.cat(path.draws).unique()
    unseen = torch.tensor([number for number in range(len(weights)) if number not in seen.tolist()])
    assert (found[seen] != 0).all()
    assert batch is None or (len(unseen) > 0 and (found[unseen] == 0).all())


def test_minibatches_estimate_the_same_products():
    """The mean of a sample's products over all batches equals its product over the whole set."""
    whole = pulled("forward", 1, None)
    problem = inner(network(), data(), derivative="forward", simulated_batch=4)
    total = torch.zeros_like(whole[2])
    for step in range(1000):
        path = whole[1]._replace(draws=[problem.draws(step)])
        total += problem.pull_back(path, whole[2], whole[3])
    assert float((total / 1000 - whole[-1]).norm() / whole[-1].norm()) < 0.1


def test_chunks_change_nothing():
    ends = []
    for chunk in (2, 100):
        problem = inner(network(), data(), chunk=chunk)
        ends.append(problem.unroll(torch.zeros(11).double(), problem.model.flatten(), 0).end)
    torch.testing.assert_close(*ends, rtol=1e-13, atol=1e-13)


class Square(torch.autograd.Function):
    """A function without `jvp` and `setup_context`, like most custom functions."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient * ctx.saved_tensors[0]


class Squares(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x):
        return Square.apply(self.linear(x))


class WrongJvp(Square):
    @staticmethod
    def jvp(ctx, tangent):
        return 3 * tangent


class Wrong(Squares):
    def forward(self, x):
        return WrongJvp.apply(self.linear(x))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.linear = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, x):
        return self.linear(self.lstm(x.unsqueeze(-1))[0][:, -1])


@pytest.mark.parametrize(
    ("kind", "steps", "reason"),
    [
        (Squares, 1, "it fails"),
        (Squares, 2, "it fails"),
        (Recurrent, 1, "it fails"),
        (Wrong, 1, "differs from a finite difference"),
        (Wrong, 2, "differs from a finite difference"),
    ],
)
def test_falls_back_to_the_difference_with_a_warning(kind, steps, reason):
    torch.manual_seed(0)
    module = kind()
    problem = inner(module, data(torch.float32), inner_steps=steps)
    phi, weights = problem.model.flatten(), torch.zeros(11)
    with pytest.warns(UserWarning, match=reason):
        problem.check_derivative(phi)
    assert problem.derivative == "difference"
    found = problem.pull_back(problem.unroll(weights, phi, 0), weights, torch.ones_like(phi))
    if kind is Recurrent:  # has no double backward either
        expected = 0.5 * 0.25 / 11 * per_sample_slopes(problem, phi)
    else:
        exact = inner(module, data(torch.float32), inner_steps=steps, derivative="double-backward")
        expected = exact.pull_back(exact.unroll(weights, phi, 0), weights, torch.ones_like(phi))
    assert float((found - expected).norm() / expected.norm()) < 5e-3


def per_sample_slopes(problem, phi):
    leaf = phi.clone().requires_grad_()
    losses = problem.model.losses(leaf, problem.samples.batch(torch.arange(11)))
    return torch.stack([torch.autograd.grad(loss, leaf, retain_graph=True)[0].sum() for loss in losses])


def test_stays_with_forward_mode_where_it_works():
    for steps in (1, 2):
        problem = inner(network(), data(), inner_steps=steps)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            problem.check_derivative(problem.model.flatten())
        assert problem.derivative == "forward"


@pytest.mark.parametrize(
    ("module", "loss", "message"),
    [
        (nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), half_square, "BatchNorm1d"),
        (nn.Tanh(), half_square, "no trainable parameter"),
        (nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1).double()]), half_square, "several kinds"),
    ],
)
def test_refuses_modules_it_cannot_weigh(module, loss, message):
    with pytest.raises(ConfigError, match=message):
        FlatModel(module, loss)


def test_refuses_a_loss_that_is_averaged():
    model = FlatModel(network(), lambda module, batch: half_square(module, batch).mean())
    with pytest.raises(ConfigError, match=r"one number per sample"):
        model.losses(model.flatten(), data())
