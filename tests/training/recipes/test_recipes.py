from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from training_city import CONFIG, tiny_net

from simmst.distributed import ProcessGroup
from simmst.errors import ConfigError
from simmst.forecaster.config import ForecasterConfig
from simmst.training import RECIPES, Recipe, Result, RunFolder, solve, train_stage
from simmst.training.recipes import refuse_processes


def test_an_unknown_name_lists_those_that_exist(real):
    with pytest.raises(ConfigError, match="'magic'; there are: adapt, cutting-plane, joint, online, paper, pretrain"):
        solve("magic", tiny_net(), real_train=real[0], real_validation=real[1], config=CONFIG)


@pytest.mark.parametrize("name", ["joint", "pretrain-finetune"])
def test_a_solver_without_its_simulated_windows_says_so(real, name):
    with pytest.raises(ConfigError, match=f"'{name}' needs simulated windows and got none; .*real-only"):
        solve(name, tiny_net(), real_train=real[0], real_validation=real[1], config=CONFIG)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_solver_without_its_real_windows_says_so(simulated, name):
    with pytest.raises(ConfigError, match="needs real windows and got none"):
        solve(name, tiny_net(), real_train=None, real_validation=None, simulated=simulated, config=CONFIG)


@pytest.mark.parametrize(
    ("name", "stages"),
    [("real-only", ["real"]), ("joint", ["joint"]), ("pretrain-finetune", ["pretrain", "finetune"])],
)
def test_stages_and_scores(real, simulated, tmp_path, name, stages):
    run = RunFolder.create(tmp_path, {"solver": name})
    result = solve(
        name, tiny_net(), real_train=real[0], real_validation=real[1], simulated=simulated, config=CONFIG, run=run
    )
    assert [history.stage for history in result.histories] == stages
    assert result.chosen in stages
    assert result.best_score == result.histories[-1].best_score
    assert sorted(path.stem for path in run.checkpoints.iterdir()) == sorted(stages)
    assert run.metrics()[0]["stage"] == stages[0]


def test_a_recipe_is_a_function_and_a_line_in_the_table(real, monkeypatch):
    def train(model, windows, config, run, progress, processes):
        history = train_stage(
            model, windows.given("real"), windows.validation, config, stage="short", run=run, progress=progress
        )
        return Result((history,), "short")

    monkeypatch.setitem(RECIPES, "short", Recipe(train, ("real",)))
    result = solve("short", tiny_net(), real_train=real[0], real_validation=real[1], config=CONFIG)
    assert result.chosen == "short"
    assert ForecasterConfig(solver="short").solver == "short"
    with pytest.raises(ConfigError, match=r"'joint' needs simulated windows and got none; .*real-only, short"):
        solve("joint", tiny_net(), real_train=real[0], real_validation=real[1], config=CONFIG)
    with pytest.raises(ConfigError, match="'short' runs in one process, but 2 were started"):
        refuse_processes("short", ProcessGroup(0, 2))


class Recorder(nn.Module):
    """Records which windows it was trained on, by their first value."""

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.zeros(2, 2))
        self.seen = []

    def forward(self, values, marks, *, mask=None):
        if self.training:
            self.seen += values[:, 0, 0, 1, 1].tolist()
        return self.level.expand(len(values), 2, 2)


def values_of(windows):
    return set(windows.batch(np.arange(len(windows))).values[:, 0, 0, 1, 1].tolist())


def test_each_solver_trains_on_what_its_name_says(real, simulated):
    real_values, simulated_values = values_of(real[0]), values_of(simulated)
    share = {}
    for name in ("real-only", "joint", "pretrain-finetune"):
        model = Recorder()
        solve(name, model, real_train=real[0], real_validation=real[1], simulated=simulated, config=CONFIG)
        share[name] = np.array([value in real_values for value in model.seen])
        assert all(value in real_values or value in simulated_values for value in model.seen)
    assert share["real-only"].all()
    assert share["joint"].mean() == pytest.approx(CONFIG.real_share)
    steps = CONFIG.epochs * CONFIG.samples_per_epoch
    assert not share["pretrain-finetune"][:steps].any()
    assert share["pretrain-finetune"][steps:].all()


class Fragile(nn.Module):
    """A network that is good until it is trained on real windows, which makes it worse on the validation."""

    def __init__(self, real_values):
        super().__init__()
        self.level = nn.Parameter(torch.zeros(()))
        self.register_buffer("spoilt", torch.zeros(()))
        self.real_values = real_values

    def forward(self, values, marks, *, mask=None):
        if self.training and float(values[0, 0, 0, 1, 1]) in self.real_values:
            self.spoilt.fill_(50.0)
        return (self.level + self.spoilt).expand(len(values), 2, 2)


def test_the_validation_split_keeps_the_pretrained_model_when_finetuning_makes_it_worse(real, simulated):
    model = Fragile(values_of(real[0]))
    result = solve(
        "pretrain-finetune", model, real_train=real[0], real_validation=real[1], simulated=simulated, config=CONFIG
    )
    assert result.chosen == "pretrain"
    assert float(model.spoilt) == 0.0
    pretrained, finetuned = result.histories
    assert finetuned.best_epoch == 0
    assert result.best_score == pytest.approx(pretrained.best_score)


def test_finetuning_uses_its_own_epochs_and_a_lower_rate(real, simulated):
    config = dataclasses.replace(CONFIG, finetune_epochs=2, finetune_learning_rate=0.1, schedule="constant")
    result = solve(
        "pretrain-finetune",
        tiny_net(),
        real_train=real[0],
        real_validation=real[1],
        simulated=simulated,
        config=config,
    )
    pretrained, finetuned = result.histories
    assert [record["epoch"] for record in finetuned.records] == [0, 1, 2]
    assert finetuned.records[0]["validation_loss"] == pytest.approx(pretrained.best_score)
    assert pretrained.records[-1]["learning_rate"] == pytest.approx(0.01)
    assert 0 < finetuned.records[-1]["learning_rate"] <= 0.001 + 1e-9


def test_adapting_keeps_what_was_there_unless_it_gains_a_twentieth(real):
    learned = tiny_net()
    solve("real-only", learned, real_train=real[0], real_validation=real[1], config=CONFIG)
    before = {name: tensor.clone() for name, tensor in learned.state_dict().items()}
    gently = dataclasses.replace(CONFIG, adapt_learning_rate=1e-6, adapt_epochs=1)
    result = solve("adapt", learned, real_train=real[0], real_validation=real[1], config=gently)
    assert result.chosen == "pretrained"
    assert all(torch.equal(tensor, before[name]) for name, tensor in learned.state_dict().items())
    untrained = tiny_net()
    before = {name: tensor.clone() for name, tensor in untrained.state_dict().items()}
    boldly = dataclasses.replace(CONFIG, adapt_learning_rate=CONFIG.learning_rate, adapt_epochs=5)
    result = solve("adapt", untrained, real_train=real[0], real_validation=real[1], config=boldly)
    assert result.chosen == "adapt"
    assert result.best_score < 0.95 * result.histories[0].records[0]["validation_loss"]
    assert not all(torch.equal(tensor, before[name]) for name, tensor in untrained.state_dict().items())
