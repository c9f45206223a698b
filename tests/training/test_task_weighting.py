"""Task weights by name: torchjd's methods in the training loop."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import nn
from training_city import CONFIG, city_windows, tiny_net

from simmst import Forecaster
from simmst.errors import ConfigError, MissingExtraError
from simmst.foundation.task_weights import GRADIENT_WEIGHTS, SCALARIZERS
from simmst.models import TaskWeights
from simmst.training import RunFolder, train_stage
from simmst.training.task_weighting import ScalarizedWeighting, set_gradient, task_gradients, task_weighting

CITY = city_windows(0, range(72)).dataset
SEEN = torch.tensor([True, True])


def weighting_of(mode, tasks=2, rate=0.1):
    pytest.importorskip("torchjd")
    return task_weighting(TaskWeights(tasks, mode), learning_rate=rate)


def weigh(weighting, *losses):
    return weighting.weigh(torch.tensor(losses), torch.ones(len(losses), dtype=torch.bool)).tolist()


def test_uncertainty_and_imtl_learn_to_weigh_the_larger_loss_less():
    for mode, start in (("uncertainty", 0.5), ("imtl-l", 1.0)):
        weighting = weighting_of(mode)
        assert weigh(weighting, 1.0, 4.0) == pytest.approx([start, start])
        for _ in range(200):
            found = weigh(weighting, 1.0, 4.0)
        # at the optimum a weight is one over its loss (half that in Kendall's sum)
        assert found == pytest.approx([start, start / 4], rel=0.02)


def test_dwa_weighs_by_how_slowly_losses_fall():
    weighting = weighting_of("dwa")
    for losses in ((4.0, 4.0), (2.0, 4.0)):
        assert weigh(weighting, *losses) == [1.0, 1.0]
        weighting.after_epoch()
    rates = np.exp(np.array([0.5, 1.0]) / 2.0)
    assert weigh(weighting, 1.0, 1.0) == pytest.approx((2 * rates / rates.sum()).tolist())


def test_stch_is_a_smooth_maximum():
    share = np.exp(np.array([0.2, 0.4]) / (2 * 0.1))
    assert weigh(weighting_of("stch"), 0.2, 0.4) == pytest.approx((share / share.sum() / 2).tolist())
    assert weigh(weighting_of("stch"), 1.0, 9.0) == pytest.approx([0.0, 0.5], abs=1e-6)


def test_famo_turns_to_the_task_that_falls_slowest():
    weighting = weighting_of("famo")
    before = weigh(weighting, 2.0, 2.0)
    for _ in range(20):
        weighting.after_step(lambda: torch.tensor([1.0, 1.9]))
        found = weigh(weighting, 2.0, 2.0)
    assert before == pytest.approx([0.5, 0.5])
    assert found[1] > 0.55


@pytest.mark.parametrize("mode", SCALARIZERS)
def test_a_task_without_targets_leaves_the_others_alone(mode):
    weighting = weighting_of(mode)
    weighting.weigh(torch.tensor([0.0, 3.0]), torch.tensor([False, True]))
    assert weighting.tasks.weights[1] > 0.1
    assert torch.isfinite(weighting.tasks.weights).all()


def test_gradient_weights():
    rows = torch.tensor([[4.0, 0.0], [-1.0, 1.0]])
    shortest = weighting_of("mgda").weigh_gradients(rows, SEEN)
    gamma = float((rows[1] - rows[0]) @ rows[1] / (rows[1] - rows[0]).square().sum())
    assert shortest.tolist() == pytest.approx([gamma, 1 - gamma], abs=1e-3)
    first = rows[0] - (rows[0] @ rows[1]) / (rows[1] @ rows[1]) * rows[1]
    second = rows[1] - (rows[1] @ rows[0]) / (rows[0] @ rows[0]) * rows[0]
    assert (weighting_of("pcgrad").weigh_gradients(rows, SEEN) @ rows).tolist() == pytest.approx(
        (first + second).tolist()
    )
    pytest.importorskip("qpsolvers")
    pytest.importorskip("quadprog")
    assert (rows @ (weighting_of("upgrad").weigh_gradients(rows, SEEN) @ rows) >= -1e-4).all()
    alone = weighting_of("mgda").weigh_gradients(torch.tensor([[0.0, 0.0], [-1.0, 1.0]]), torch.tensor([False, True]))
    assert alone.tolist() == [0.0, 1.0]


def test_gradients_are_those_of_each_task():
    model, inputs = nn.Linear(3, 2), torch.randn(5, 3)
    losses, parameters = model(inputs).square().mean(0), list(model.parameters())
    rows = task_gradients(losses, parameters)
    set_gradient(parameters, torch.tensor([0.25, 0.75]) @ rows)
    expected = torch.autograd.grad(model(inputs).square().mean(0) @ torch.tensor([0.25, 0.75]), parameters)
    for parameter, gradient in zip(parameters, expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-6)


def named(mode):
    model = tiny_net()
    model.task_weights = TaskWeights(2, mode)
    return model


class CutOffError(Exception):
    pass


@pytest.mark.parametrize("mode", [*SCALARIZERS, *GRADIENT_WEIGHTS])
def test_the_loop_trains_and_resumes_to_the_same_numbers(mode, real, tmp_path):
    pytest.importorskip("torchjd")
    if mode == "upgrad":
        pytest.importorskip("qpsolvers")
        pytest.importorskip("quadprog")
    unbroken = named(mode)
    history = train_stage(unbroken, *real, CONFIG, stage="real")
    assert history.records[-1]["train_loss"] < 0.7 * history.records[0]["train_loss"]

    def cut_off(_stage, step, _total, _details=None):
        if step == 20:
            raise CutOffError

    run, resumed = RunFolder.create(tmp_path, {}), named(mode)
    with pytest.raises(CutOffError):
        train_stage(resumed, *real, CONFIG, stage="real", run=run, progress=cut_off)
    train_stage(resumed, *real, CONFIG, stage="real", run=run)
    for name, tensor in unbroken.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_what_cannot_be_is_refused_before_anything_is_done(monkeypatch):
    settings = {"horizon": 2, "recent": 6, "model": "nlinear", "neighbourhood": 3, "validation_days": 1}
    with pytest.raises(ConfigError, match="task_weights is 'nash'; it must be one of loss_share, average, uncertainty"):
        Forecaster(**settings, network={"task_weights": "nash"})
    monkeypatch.setitem(sys.modules, "torchjd", None)
    monkeypatch.setitem(sys.modules, "torchjd.scalarization", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'simmst\[mtl\]'"):
        Forecaster(**settings, network={"task_weights": "dwa"}).fit(CITY, None)
    monkeypatch.undo()
    pytest.importorskip("torchjd")
    with pytest.raises(ConfigError, match="'dwa' changes the task weights at every step"):
        Forecaster(**settings, solver="online", network={"task_weights": "dwa"}).fit(CITY, [CITY])
    with pytest.raises(ConfigError, match="task_weights 'mgda' needs the gradient of each task in one process"):
        task_weighting(TaskWeights(2, "mgda"), learning_rate=0.1, world_size=2)


def test_the_moments_of_a_scalarizer_come_back():
    weighting = weighting_of("uncertainty")
    for _ in range(3):
        weigh(weighting, 1.0, 4.0)
    other = ScalarizedWeighting(TaskWeights(2, "uncertainty"), 0.1)
    other.restore({name: tensor.clone() for name, tensor in weighting.state().items()})
    assert weigh(other, 2.0, 1.0) == weigh(weighting, 2.0, 1.0)
    assert weigh(other, 2.0, 1.0) == weigh(weighting, 2.0, 1.0)
