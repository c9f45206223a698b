"""What a run refuses, and what it does when numbers diverge."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset

from sim2real.problems import half_square, linear
from simmst.errors import ConfigError, DataError
from simmst.sim2real import DivergedError, ReweightingConfig, TensorSamples, reweight
from simmst.sim2real.cutting_plane import CuttingPlane
from simmst.sim2real.problem import Problem
from simmst.sim2real.reweight import _Run

QUICK = ReweightingConfig(steps=12, derivative="forward")


def small(**changes):
    return linear(0, **{"features": 4, "simulated": 30, "real": 10, **changes})


def spoilt(pair, number, value=float("nan")):
    x, y = (part.clone() for part in pair)
    y[number] = value
    return x, y


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_sample_is_named(value):
    p = small()
    with pytest.raises(DataError, match=r"simulated sample 17 is not finite \(1 of 30 are not\)"):
        reweight(p.module, half_square, spoilt(p.simulated, 17, value), p.real, config=QUICK)
    with pytest.raises(DataError, match=r"real sample 3 is not finite"):
        reweight(p.module, half_square, p.simulated, spoilt(p.real, 3, value), config=QUICK)
    with pytest.raises(DataError, match=r"validation sample 2 is not finite"):
        reweight(p.module, half_square, p.simulated, p.real, validation=spoilt(p.test, 2, value), config=QUICK)


def rooted(module, batch):
    """A loss with a root that is 0 for a sample whose third number is 0, so the loss is finite and its gradient NaN."""
    return half_square(module, batch) + (batch[2] * module(batch[0]).squeeze(1)).square().sqrt()


def with_zero(pair, *numbers):
    inside = torch.ones_like(pair[1])
    inside[list(numbers)] = 0
    return *pair, inside


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize("solver", ["cutting-plane", "qp", "online", "joint"])
def test_a_sample_whose_gradient_is_not_finite_is_named(solver, chunk):
    p = small()
    nn.init.constant_(p.module.weight, 0.5)
    config = ReweightingConfig(steps=12, derivative="forward", chunk=chunk)
    for simulated, real, named in (
        (with_zero(p.simulated, 17, 22), with_zero(p.real), "simulated sample 17"),
        (with_zero(p.simulated), with_zero(p.real, 3), "real sample 3"),
        (with_zero(p.simulated, 29), with_zero(p.real, 0), "simulated sample 29"),
    ):
        with pytest.raises(DataError, match=f"the loss of {named} is finite, but its gradient is not; leave"):
            reweight(p.module, rooted, simulated, real, solver=solver, config=config)
    found = reweight(p.module, rooted, with_zero(p.simulated), with_zero(p.real), solver=solver, config=config)
    assert torch.isfinite(found.weights).all()


@pytest.mark.filterwarnings("ignore:step")
def test_a_gradient_that_is_not_finite_later_on_is_named():
    """The argument of the root is positive at first, and 0 once the model's result for the sample reaches a bound."""

    def bounded(module, batch):
        rest = batch[2] - module(batch[0]).squeeze(1)
        return half_square(module, batch) + (rest * (rest > 0)).sqrt()

    p = small()
    simulated, real = ((*pair, torch.full_like(pair[1], 1e6)) for pair in (p.simulated, p.real))
    number = int(p.real[1].argmax())
    real[2][number] = 0.05
    with pytest.raises(DataError, match=f"the loss of real sample {number} is finite, but its gradient is not"):
        reweight(p.module, bounded, simulated, real, config=ReweightingConfig(steps=300, derivative="forward"))


@pytest.mark.filterwarnings("ignore:step")
def test_a_run_that_diverges_blames_no_sample():
    p = small()
    config = ReweightingConfig(steps=300, inner_lr=1e6, derivative="forward")
    with pytest.raises(DivergedError, match="lower inner_lr"):
        reweight(p.module, half_square, p.simulated, p.real, config=config)


def test_a_spoilt_module_is_not_blamed_on_the_samples():
    p = small()
    nn.init.constant_(p.module.weight, float("nan"))
    with pytest.raises(ConfigError, match="parameters are not all finite"):
        reweight(p.module, half_square, p.simulated, p.real, config=QUICK)


@pytest.mark.parametrize("empty", ["simulated", "real", "validation"])
def test_empty_data_are_refused(empty):
    p = small()
    data = {"simulated": p.simulated, "real": p.real, "validation": p.test}
    data[empty] = tuple(part[:0] for part in data[empty])
    with pytest.raises(DataError, match=f"the {empty} data hold no sample"):
        reweight(p.module, half_square, data["simulated"], data["real"], validation=data["validation"], config=QUICK)


def overlapping():
    p = small()
    x, y = p.real
    data = TensorDataset(x, y)
    whole = TensorSamples(x, y)
    return [
        (whole, whole, "sample 0 is real sample 0 as well .10 of 10"),
        (p.real, p.real, "10 of 10"),
        (p.real, (x[7:].clone(), y[7:].clone()), "sample 0 is real sample 7 as well .3 of 3"),
        ((x[:6], y[:6]), (x[5:], y[5:]), "sample 0 is real sample 5 as well .1 of 5"),
        (data, data, "10 of 10"),
        (Subset(data, [0, 1, 2]), Subset(data, [9, 2]), "sample 1 is real sample 2 as well .1 of 2"),
        (Subset(Subset(data, [4, 5, 6]), [1]), Subset(data, [7, 5]), "sample 1 is real sample 0 as well .1 of 2"),
        (data, Subset(data, [3]), "sample 0 is real sample 3 as well .1 of 1"),
    ]


@pytest.mark.parametrize("number", range(8))
def test_validation_samples_that_are_trained_on_are_refused(number):
    p = small()
    real, validation, message = overlapping()[number]
    with pytest.raises(DataError, match=message):
        reweight(p.module, half_square, p.simulated, real, validation=validation, config=QUICK)


def test_separate_parts_of_one_set_are_taken():
    p = small()
    x, y = p.real
    data = TensorDataset(x, y)
    for real, validation in (
        ((x[:6], y[:6]), (x[6:], y[6:])),
        (Subset(data, range(6)), Subset(data, range(6, 10))),
    ):
        found = reweight(p.module, half_square, p.simulated, real, validation=validation, config=QUICK)
        assert set(found.scores) == {"phi", "theta"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"solver": "newton"}, "there is no solver 'newton'; there are: cutting-plane"),
        ({"groups": torch.zeros(29)}, "each of the 30 simulated samples a number"),
        ({"groups": torch.full((30,), -1)}, "each of the 30 simulated samples a number"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    p = small()
    with pytest.raises(ConfigError, match=message):
        reweight(p.module, half_square, p.simulated, p.real, config=QUICK, **changes)


def test_exact_says_what_it_needs():
    p = small(dtype=torch.float32)
    with pytest.raises(ConfigError, match=r"module\.double\(\)"):
        reweight(p.module, half_square, p.simulated, p.real, solver="exact", config=QUICK)
    p = small()
    config = ReweightingConfig(simulated_batch=5)
    with pytest.raises(ConfigError, match="simulated_batch=None"):
        reweight(p.module, half_square, p.simulated, p.real, solver="exact", config=config)


@pytest.mark.filterwarnings("ignore:step")
def test_steps_that_are_too_large_are_halved_until_they_are_not():
    """eta is far greater than the curvature of the samples allows."""
    p = small()
    config = ReweightingConfig(steps=300, inner_lr=20.0, lr_model=0.05)
    found = reweight(p.module, half_square, p.simulated, p.real, config=config)
    assert len(found.history) == 300
    assert [record["step"] for record in found.history] == list(range(1, 301))
    assert torch.isfinite(found.weights).all()
    assert torch.isfinite(p.module.weight).all()


class Spiteful(CuttingPlane):
    """A solver that returns NaN at given steps, once at each."""

    def __init__(self, problem, fails):
        super().__init__(problem)
        self.fails, self.paces = list(fails), []

    def step(self, number):
        self.paces.append((number, self.pace))
        record = super().step(number)
        if self.fails and number == self.fails[0]:
            self.fails.pop(0)
            self.phi = self.phi * float("nan")
        return record


def spiteful_run(fails, **settings):
    p = small()
    config = ReweightingConfig(steps=40, derivative="forward", **settings)
    solver = Spiteful(Problem(p.module, half_square, p.simulated, p.real, config), fails)
    return solver, _Run("cutting-plane", solver, None, None)


def test_each_restore_goes_back_to_the_snapshot_and_halves_once():
    solver, run = spiteful_run([13, 13, 25])
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        run.steps(None)
    assert [str(w.message).split(" gave")[0] for w in warned] == ["step 14", "step 14", "step 26"]
    taken = [(number, pace) for number, pace in solver.paces]
    assert taken[:14] == [(number, 1.0) for number in range(14)]
    assert taken[14:18] == [(number, 0.5) for number in range(10, 14)]
    assert taken[18:34] == [(number, 0.25) for number in range(10, 26)]
    assert taken[34:] == [(number, 0.125) for number in range(20, 40)]
    assert len(run.history) == 40
    assert torch.isfinite(solver.phi).all()


def test_what_is_restored_is_the_snapshot():
    solver, run = spiteful_run([13])
    kept = {}
    load = solver.load_state_dict

    def watched(state):
        kept.update(state)
        load(state)
        assert all(torch.equal(part, state[name]) for name, part in solver.state_dict().items())

    solver.load_state_dict = watched
    with pytest.warns(UserWarning, match=r"step 14 gave a number that is not finite; continuing from step 10"):
        run.steps(None)
    clean, clean_run = spiteful_run([])
    clean.config = clean_run.config
    for number in range(10):
        clean.step(number)
    for name, part in clean.state_dict().items():
        assert torch.equal(part, kept[name]), name


@pytest.mark.filterwarnings("ignore:step")
def test_a_run_that_never_becomes_finite_ends_with_its_last_checkpoint():
    p = small()
    saved, state = [], {"calls": 0}

    def loss(module, batch):
        state["calls"] += 1
        losses = half_square(module, batch)
        return losses * float("nan") if state["calls"] > 300 else losses

    config = ReweightingConfig(steps=500, checkpoint_every=10, derivative="forward")
    with pytest.raises(DivergedError, match=r"after 8 restarts with ever smaller steps.*lower inner_lr"):
        reweight(p.module, loss, p.simulated, p.real, config=config, save=lambda *part: saved.append(part))
    assert saved
    for tensors, _ in saved:
        assert all(torch.isfinite(part).all() for part in tensors.values() if part.is_floating_point())


def test_planes_that_do_not_fit_into_memory():
    p = small()
    config = ReweightingConfig(max_planes=10**13)
    with pytest.raises(ConfigError, match="lower max_planes"):
        reweight(p.module, half_square, p.simulated, p.real, config=config)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"inner_lr": float("nan")}, {"ridge": -1.0}, {"storage": "sign"}])
def test_settings_out_of_range(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ReweightingConfig(**wrong)


@pytest.mark.parametrize("fails", [False, True])
def test_the_layers_train_or_evaluate_as_before(fails):
    p = small()
    module = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5).eval(), p.module)
    simulated = spoilt(p.simulated, 17) if fails else p.simulated
    seen = []

    def loss(module, batch):
        seen.append([layer.training for layer in module.modules()])
        return half_square(module, batch)

    if fails:
        with pytest.raises(DataError, match="17"):
            reweight(module, loss, simulated, p.real, config=QUICK)
    else:
        reweight(module, loss, simulated, p.real, config=QUICK)
    assert not any(map(any, seen))
    assert [layer.training for layer in module.modules()] == [True, True, False, True]
