"""The purpose of re-weighting: weights of corrupted samples fall and those of clean ones stay, for any form of data."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import TensorDataset

from sim2real.problems import half_square, linear
from simmst.errors import ConfigError
from simmst.sim2real import SOLVERS, ReweightingConfig, reweight
from simmst.sim2real.problem import Problem


def weighted_minimiser(small, weights, ridge=1e-3):
    x, y = small.simulated
    weighted = x * (weights.double()[:, None] / len(x))
    return torch.linalg.solve(weighted.T @ x + ridge * torch.eye(x.shape[1]).double(), weighted.T @ y)


def error_of(small, phi):
    return float((small.test[0] @ phi - small.test[1]).square().mean())


def shipped(solver, seed=7, **settings):
    small = linear(seed)
    found = reweight(
        small.module,
        half_square,
        small.simulated,
        small.real,
        solver=solver,
        config=ReweightingConfig(**{"steps": 600, **settings}),
    )
    return small, found


@pytest.mark.slow
def test_corrupted_samples_sink_and_the_error_with_them():
    exact, _ = shipped("exact", steps=100, lr_weights=0.2)
    unweighted = error_of(exact, weighted_minimiser(exact, torch.full((300,), 0.5)))
    for solver in ("cutting-plane", "qp"):
        small, found = shipped(solver)
        assert small.auc(found.weights) > 0.75
        recovery = (unweighted - small.error()) / (unweighted - exact.error())
        assert recovery > 0.95, solver


def test_weights_of_a_clean_simulation_stay_near_uniform():
    """The decay holds the weights; without it, they follow the noise of the few real samples."""
    small = linear(3, corrupted=0.0, gap=0.0, real=60)
    config = ReweightingConfig(steps=600, share_decay=0.5)
    validation = tuple(part[:60] for part in small.test)
    found = reweight(small.module, half_square, small.simulated, small.real, validation=validation, config=config)
    unweighted = error_of(small, weighted_minimiser(small, torch.full((300,), 0.5)))
    assert found.effective_sample_size > 0.9 * 300
    assert 0.25 < float(found.weights.quantile(0.05)) < float(found.weights.quantile(0.95)) < 0.75
    assert small.error() < 1.05 * unweighted


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_improves_on_the_start(solver):
    small = linear(5, features=6, simulated=80, real=30, corrupted=0.2)
    before = small.error()
    reweight(small.module, half_square, small.simulated, small.real, solver=solver, config=ReweightingConfig(steps=150))
    assert small.error() < 0.7 * before


def test_tied_weights_find_the_bad_groups():
    """Ten simulated cities of thirty samples; three of the cities follow another law."""
    small = linear(2, simulated=300, corrupted=0.0)
    x, y = small.simulated
    groups = torch.arange(300) // 30
    bad = groups < 3
    y = torch.where(bad, -y, y)
    config = ReweightingConfig(steps=300)
    found = reweight(small.module, half_square, (x, y), small.real, groups=groups, config=config)
    assert found.raw_weights.shape == (10,)
    assert found.weights.shape == (300,)
    expected = torch.sigmoid(found.raw_weights)[groups]
    torch.testing.assert_close(found.weights, expected, rtol=0, atol=1e-6)
    assert float(found.raw_weights[:3].max()) < float(found.raw_weights[3:].min())


def test_groups_of_one_are_weights_of_samples():
    results = []
    for groups in (None, torch.arange(60)):
        small = linear(2, features=5, simulated=60, real=20)
        config = ReweightingConfig(steps=40)
        results.append(
            reweight(small.module, half_square, small.simulated, small.real, groups=groups, config=config).weights
        )
    torch.testing.assert_close(*results)


class Batches:
    """An object with only `__len__` and `batch`."""

    def __init__(self, pair):
        self.pair = pair

    def __len__(self):
        return len(self.pair[0])

    def batch(self, indices):
        return tuple(part[torch.as_tensor(indices)] for part in self.pair)


def test_data_of_every_form_give_the_same():
    found = []
    for form in (tuple, lambda pair: TensorDataset(*pair), Batches, lambda pair: list(zip(*pair, strict=True))):
        small = linear(4, features=5, simulated=40, real=20)
        config = ReweightingConfig(steps=20, simulated_batch=16)
        found.append(
            reweight(small.module, half_square, form(small.simulated), form(small.real), config=config).weights
        )
    assert all(torch.equal(one, found[0]) for one in found)


def test_validation_chooses_and_is_never_trained_on():
    """Other validation samples change only the choice; the test samples are never passed in."""
    found = []
    for validation in (slice(0, 40), slice(40, 80), None):
        small = linear(6, features=8, simulated=80, real=20)
        held_out = None if validation is None else tuple(part[validation] for part in small.test)
        config = ReweightingConfig(steps=60, validate_every=10, refit_steps=30)
        found.append(
            reweight(small.module, half_square, small.simulated, small.real, validation=held_out, config=config)
        )
    one, other, without = found
    assert torch.equal(one.weights, other.weights)
    assert torch.equal(one.weights, without.weights)
    assert one.history == other.history == without.history
    assert set(one.scores) == {"phi", "theta", "refit"}
    assert one.scores != other.scores
    assert one.chosen == min(one.scores, key=one.scores.__getitem__)
    assert (without.chosen, without.chosen_step, without.scores) == ("phi", 60, {})


def test_the_chosen_model_is_the_one_that_scored():
    small = linear(6, features=8, simulated=80, real=20)
    validation = tuple(part[:40] for part in small.test)
    config = ReweightingConfig(steps=60, validate_every=10, refit_steps=30)
    found = reweight(small.module, half_square, small.simulated, small.real, validation=validation, config=config)
    with torch.no_grad():
        score = float(half_square(small.module, validation).mean())
    assert score == pytest.approx(found.scores[found.chosen], rel=1e-9)


def test_two_runs_are_bit_equal():
    weights = [shipped("cutting-plane", steps=30, simulated_batch=64)[1].weights for _ in range(2)]
    assert torch.equal(*weights)


def test_effective_sample_size():
    _, found = shipped("unweighted", steps=1)
    assert found.effective_sample_size == pytest.approx(300)


def test_weights_tied_by_features_follow_the_chain_rule():
    """psi's derivative by w agrees with a difference, and so does the derivative of the decay's penalty."""
    small = linear(5)
    groups = torch.arange(300) % 10
    features = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    config = ReweightingConfig(inner_steps=2, derivative="forward", share_decay=0.4, weight_decay=0.2)
    problem = Problem(small.module, half_square, small.simulated, small.real, config, groups, features=features)
    start = problem.model.flatten()
    w, direction = torch.tensor([0.3, -0.2, 0.5], dtype=start.dtype), torch.ones_like(start)

    def psi(w):
        return problem.inner.unroll(problem.spread(w), start, 0)

    found = problem.gather(problem.inner.pull_back(psi(w), problem.spread(w), direction))
    assert found.shape == (3,)
    for place in range(3):
        step = 1e-3 * torch.eye(3, dtype=start.dtype)[place]
        slope = direction @ (psi(w + step).end - psi(w - step).end) / 2e-3
        assert float(found[place]) == pytest.approx(-float(slope), rel=2e-2, abs=1e-5)

    v = w.clone().requires_grad_()
    tied = features.to(v.dtype) @ v
    (0.2 * tied.square() + 0.4 * (torch.sigmoid(tied) - 0.5).square()).mean().div(2).backward()
    torch.testing.assert_close(problem.decay(w), v.grad)


def test_features_without_groups_are_refused():
    small = linear(5)
    with pytest.raises(ConfigError, match="features must give each of the 0 groups"):
        reweight(small.module, half_square, small.simulated, small.real, features=torch.ones(3, 1))
    with pytest.raises(ConfigError, match=r"each of the 10 groups a row of finite numbers, got shape \(3, 1\)"):
        reweight(
            small.module,
            half_square,
            small.simulated,
            small.real,
            groups=torch.arange(300) % 10,
            features=torch.ones(3, 1),
        )
