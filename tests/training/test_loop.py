from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from training_city import CONFIG, sim_mst_net, tiny_net

from simmst.data import WindowSource
from simmst.errors import CheckpointError, DataError
from simmst.models import TaskWeights, task_losses
from simmst.training import NonFiniteLossError, RunFolder, load_checkpoint, train_stage
from simmst.training.mixing import MixedWindows


def validation_loss(model, windows):
    batch = windows.batch(np.arange(len(windows)))
    with torch.no_grad():
        return float(task_losses(model.eval(), *batch[:3], batch.memory, batch.target, CONFIG.loss).mean())


def equal(one, other):
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_training_learns_and_records_its_epochs(real):
    train, validation = real
    model = tiny_net()
    before = validation_loss(model, validation)
    config = dataclasses.replace(CONFIG, epochs=8, validation_samples=None)
    history = train_stage(model, train, validation, config, stage="real")
    assert [record["epoch"] for record in history.records] == list(range(1, 9))
    assert history.records[-1]["step"] == 8 * 6
    assert history.best_score < 0.5 * before
    # the best weights are the ones left in the model, and the recorded score is theirs
    assert validation_loss(model, validation) == pytest.approx(history.best_score, rel=1e-5)
    assert history.best_score == min(record["validation_loss"] for record in history.records)
    assert not model.training


def test_two_runs_are_bit_equal_and_leave_the_callers_generator_alone(real):
    models = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        models.append(tiny_net())
        train_stage(models[-1], *real, CONFIG, stage="real")
        assert torch.equal(torch.get_rng_state(), state)
    assert equal(*models)
    other = tiny_net()
    train_stage(other, *real, dataclasses.replace(CONFIG, seed=4), stage="real")
    assert not equal(models[0], other)


def test_the_data_order_depends_on_seed_and_epoch_alone(real):
    def order(seed, epoch):
        return torch.cat([b.index for b in real[0].batches(8, seed=seed, epoch=epoch, limit=40)])

    assert torch.equal(order(3, 2), order(3, 2))
    assert not torch.equal(order(3, 2), order(3, 3))
    assert not torch.equal(order(3, 2), order(4, 2))


class Worsening(nn.Module):
    """A network whose forecast moves away from the targets with every step."""

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.zeros(()))

    def forward(self, values, marks, *, mask=None):
        if self.training:
            return -self.level * torch.ones(len(values), 2, 2)
        return 5.0 + self.level.abs() * torch.ones(len(values), 2, 2)


def test_early_stopping_restores_the_best_weights(real):
    model = Worsening()
    config = dataclasses.replace(CONFIG, epochs=30, patience=2, learning_rate=0.5, warmup_steps=0, loss="mae")
    history = train_stage(model, *real, config, stage="real", keep_initial=True)
    assert history.stopped == "patience"
    assert len(history.records) < 30
    assert history.best_epoch == 0
    assert float(model.level.detach()) == 0.0


def test_without_a_validation_split_the_last_weights_stay(real):
    history = train_stage(tiny_net(), real[0], None, CONFIG, stage="real")
    assert history.best_epoch == CONFIG.epochs
    assert history.best_score is None
    assert "validation_loss" not in history.records[0]


def test_task_weights_follow_the_shares_of_the_losses(real):
    class Half(nn.Module):
        """A network that is right on one task and far off on the other."""

        def __init__(self):
            super().__init__()
            self.task_weights = TaskWeights(2)
            self.level = nn.Parameter(torch.zeros(()))

        def forward(self, values, marks, *, mask=None):
            far = torch.tensor([0.0, 100.0])
            return values[:, -1:, :, 1, 1].expand(-1, 2, -1) + far + self.level

    model = Half()
    history = train_stage(model, *real, dataclasses.replace(CONFIG, epochs=1), stage="real")
    weights = history.records[0]["task_weights"]
    assert weights["service 1"] > 0.98
    assert sum(weights.values()) == pytest.approx(1.0)
    model.task_weights = TaskWeights(2, "average")
    history = train_stage(model, *real, dataclasses.replace(CONFIG, epochs=1), stage="real")
    assert history.records[0]["task_weights"] == {"service 0": 0.5, "service 1": 0.5}


def test_missing_targets_are_masked_in_training_and_validation(real):
    class Holes(WindowSource):
        """Windows in which the second service and a tenth of the first were never observed."""

        def __init__(self, windows):
            self.windows = windows

        def __len__(self):
            return len(self.windows)

        def batch(self, indices):
            batch = self.windows.batch(indices)
            target = batch.target.clone()
            target[..., 1] = math.nan
            target[::10] = math.nan
            return batch._replace(target=target)

    model = tiny_net()
    history = train_stage(model, Holes(real[0]), Holes(real[1]), CONFIG, stage="real")
    assert history.records[-1]["validation_losses"]["service 1"] is None
    assert math.isfinite(history.best_score)
    assert all(torch.isfinite(p).all() for p in model.parameters())

    class Nothing(Holes):
        def batch(self, indices):
            batch = self.windows.batch(indices)
            return batch._replace(target=torch.full_like(batch.target, math.nan))

    with pytest.raises(DataError, match="no observed target at all"):
        train_stage(tiny_net(), real[0], Nothing(real[1]), CONFIG, stage="real")


class Exploding(nn.Module):
    def __init__(self, at, gradient_only=False):
        super().__init__()
        self.level = nn.Parameter(torch.ones(()))
        self.calls, self.at, self.gradient_only = 0, at, gradient_only

    def forward(self, values, marks, *, mask=None):
        out = self.level * torch.ones(len(values), 2, 2)
        if self.training:
            self.calls += 1
            if self.calls == self.at:
                # the square root of 0 has the value 0 and an infinite slope
                out = out + torch.sqrt(self.level - self.level.detach()) if self.gradient_only else out * math.nan
        return out


@pytest.mark.parametrize("gradient_only", [False, True])
def test_a_loss_that_is_not_finite_stops_with_its_place(real, tmp_path, gradient_only):
    model = Exploding(at=8, gradient_only=gradient_only)
    run = RunFolder.create(tmp_path, {})
    with pytest.raises(NonFiniteLossError) as caught:
        train_stage(model, *real, CONFIG, stage="real", run=run)
    message = str(caught.value)
    for part in ("stage 'real'", "epoch 2", "step 8", "real.safetensors (epoch 1)", "learning_rate"):
        assert part in message
    assert ("gradient" in message.split(";")[0]) == gradient_only
    assert torch.isfinite(model.level)
    assert load_checkpoint(run.checkpoint_path("real")).state["epoch"] == 1


def test_without_a_checkpoint_the_message_says_so(real):
    with pytest.raises(NonFiniteLossError, match="no checkpoint was written"):
        train_stage(Exploding(at=1), *real, CONFIG, stage="real")


def test_small_steps_take_one_thread_and_large_ones_all(real):
    before, used = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        for batch_size in (64, 128):
            model = tiny_net()
            model.net.register_forward_pre_hook(
                lambda module, _, size=batch_size: used.append((size, module.training, torch.get_num_threads()))
            )
            model.register_parameter("heavy", nn.Parameter(torch.zeros(198_000)))
            config = dataclasses.replace(CONFIG, epochs=1, batch_size=batch_size)
            train_stage(model, *real, config, stage="train")
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert {team for size, training, team in used if training and size == 64} == {1}
    assert {team for size, training, team in used if training and size == 128} == {2}


def test_the_optimiser_makes_one_call_for_all_weights(real):
    calls = []

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            calls.append(str(function))
            return function(*args, **(kwargs or {}))

    with Calls():
        history = train_stage(tiny_net(), *real, dataclasses.replace(CONFIG, epochs=1), stage="real")
    fused = [call for call in calls if "_fused_adamw_" in call]
    assert len(fused) == 2 * history.records[-1]["step"]  # one for the weights that decay, and one for the others


def test_gradients_are_clipped(real):
    class Steep(nn.Module):
        def __init__(self):
            super().__init__()
            self.level = nn.Parameter(torch.zeros(()))

        def forward(self, values, marks, *, mask=None):
            return 1e4 * self.level * torch.ones(len(values), 2, 2)

    norms = []

    class Recorder(torch.optim.AdamW):
        def step(self, closure=None):
            norms.append(abs(float(self.param_groups[0]["params"][0].grad)))
            return super().step(closure)

    original = torch.optim.AdamW
    torch.optim.AdamW = Recorder
    try:
        train_stage(Steep(), *real, dataclasses.replace(CONFIG, gradient_clip=0.5, loss="mae"), stage="real")
        assert max(norms) <= 0.5 + 1e-4
        norms.clear()
        train_stage(Steep(), *real, dataclasses.replace(CONFIG, gradient_clip=None, loss="mae"), stage="real")
        assert max(norms) > 10
    finally:
        torch.optim.AdamW = original


def test_bfloat16_runs_the_network_under_autocast_and_the_loss_in_float32(real):
    seen = []

    class Probe(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6 * 2 * 9, 4)

        def forward(self, values, marks, *, mask=None):
            out = self.layer(values.nan_to_num().flatten(1)).reshape(-1, 2, 2)
            seen.append(out.dtype)
            return out

    model = Probe()
    train_stage(model, *real, dataclasses.replace(CONFIG, epochs=1, precision="bfloat16"), stage="real")
    assert set(seen) == {torch.bfloat16}
    assert model.layer.weight.dtype == torch.float32


def test_a_run_continues_after_it_stopped_in_the_middle(real, tmp_path):
    whole, whole_run = tiny_net(), RunFolder.create(tmp_path / "whole", {})
    expected = train_stage(whole, *real, CONFIG, stage="real", run=whole_run)

    class Stop(Exception):  # noqa: N818
        pass

    def stop_at(step):
        def progress(task, done, total, details=None):
            if done == step:
                raise Stop

        return progress

    run = RunFolder.create(tmp_path / "broken", {})
    for step in (4, 9, 17):
        with pytest.raises(Stop):
            train_stage(tiny_net(), *real, CONFIG, stage="real", run=run, progress=stop_at(step))
    model = tiny_net()
    history = train_stage(model, *real, CONFIG, stage="real", run=run)
    assert equal(model, whole)
    assert history == expected
    assert run.metrics_path.read_bytes() == whole_run.metrics_path.read_bytes()
    # a finished stage is loaded, not repeated
    again = tiny_net()
    assert train_stage(again, *real, CONFIG, stage="real", run=run, progress=stop_at(1)) == expected
    assert equal(again, whole)


def test_resume_false_starts_the_stage_again(real, tmp_path):
    run = RunFolder.create(tmp_path, {})
    run.log({"stage": "earlier", "epoch": 1})
    train_stage(tiny_net(), *real, CONFIG, stage="real", run=run)
    train_stage(tiny_net(), *real, CONFIG, stage="real", run=run, resume=False)
    assert [r["epoch"] for r in run.metrics("real")] == [1, 2, 3, 4]
    assert len(run.metrics("earlier")) == 1


def test_a_checkpoint_of_other_settings_or_data_is_refused(real, tmp_path):
    run = RunFolder.create(tmp_path, {})
    train_stage(tiny_net(), *real, CONFIG, stage="real", run=run)
    other = dataclasses.replace(CONFIG, learning_rate=0.5)
    with pytest.raises(CheckpointError, match=r"of another run: config learning_rate is 0\.01, wanted 0\.5; "):
        train_stage(tiny_net(), *real, other, stage="real", run=run)
    with pytest.raises(CheckpointError, match=r"train_windows is \d+, wanted \d+"):
        train_stage(tiny_net(), real[1], real[1], CONFIG, stage="real", run=run)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        train_stage(Worsening(), *real, CONFIG, stage="real", run=run)


def test_a_checkpoint_cut_short_is_refused(real, tmp_path):
    run = RunFolder.create(tmp_path, {})
    train_stage(tiny_net(), *real, CONFIG, stage="real", run=run)
    path = run.checkpoint_path("real")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"real\.safetensors is damaged or cut short"):
        train_stage(tiny_net(), *real, CONFIG, stage="real", run=run)


def test_metrics_hold_no_times_and_times_have_their_file(real, tmp_path):
    run = RunFolder.create(tmp_path, {})
    train_stage(tiny_net(), *real, CONFIG, stage="real", run=run)
    assert len(run.times_path.read_text().splitlines()) == CONFIG.epochs
    assert set(json.loads(run.metrics_path.read_text().splitlines()[0])) == {
        "stage",
        "epoch",
        "step",
        "learning_rate",
        "train_loss",
        "train_losses",
        "task_weights",
        "gradient_norm",
        "validation_loss",
        "validation_losses",
    }


def test_progress_hears_every_step(real):
    heard = []
    train_stage(
        tiny_net(),
        *real,
        CONFIG,
        stage="real",
        progress=lambda task, done, total, details=None: heard.append((task, done, total)),
    )
    assert heard[:2] == [("real", 1, 24), ("real", 2, 24)]
    assert heard[-1] == ("real", 24, 24)


def test_no_window_is_an_error(real):
    class Empty:
        def __len__(self):
            return 0

    with pytest.raises(DataError, match="'real' has no window to train on"):
        train_stage(tiny_net(), Empty(), real[1], CONFIG, stage="real")
    with pytest.raises(DataError, match="has no validation window"):
        train_stage(tiny_net(), real[0], Empty(), CONFIG, stage="real")


def test_mixed_batches_keep_their_proportion(real, simulated):
    mixed = MixedWindows(real[0], simulated, 0.25)
    batches = list(mixed.batches(8, seed=1, epoch=2, limit=80))
    assert len(batches) == 10
    index = torch.stack([batch.index for batch in batches])
    assert ((index < len(real[0])).sum(dim=1) == 2).all()
    again = torch.stack([batch.index for batch in mixed.batches(8, seed=1, epoch=2, limit=80)])
    assert torch.equal(index, again)
    # the values are those of the numbered windows
    first = batches[0]
    assert torch.equal(first.target[0], real[0].batch(first.index[:1]).target[0])
    assert torch.equal(first.target[-1], simulated.batch(first.index[-1:] - len(real[0])).target[0])


def test_every_real_window_comes_before_any_comes_twice(real, simulated):
    few = 40

    class Few(WindowSource):
        def __len__(self):
            return few

        def batch(self, indices):
            return real[0].batch(indices)

    mixed = MixedWindows(Few(), simulated, 0.5)
    index = torch.cat([batch.index for batch in mixed.batches(8, seed=1, epoch=1, limit=4 * few)])
    index = index[index < few]
    assert len(index) == 2 * few
    assert torch.equal(index[:few].sort().values, torch.arange(few))
    assert torch.equal(index[few:].sort().values, torch.arange(few))
    assert not torch.equal(index[:few], index[few:])


def test_the_highway_starts_at_its_least_squares_solution(real):
    model = sim_mst_net(real[0])
    before = validation_loss(model, real[1])
    config = dataclasses.replace(CONFIG, epochs=1, learning_rate=1e-9, validation_samples=None)
    started = train_stage(model, *real, config, stage="real", fit_highway=True)
    assert started.best_score < 0.8 * before
    other = sim_mst_net(real[0])
    plain = train_stage(other, *real, config, stage="real", fit_highway=False)
    assert plain.best_score == pytest.approx(before, rel=1e-3)


def test_few_windows_take_the_penalty_that_validation_prefers(real):
    class Few(WindowSource):
        def __len__(self):
            return 10

        def batch(self, indices):
            batch = real[0].batch(indices)
            noise = torch.randn(len(real[0]), 2, 2, generator=torch.Generator().manual_seed(0))
            return batch._replace(target=noise[batch.index])

    scores = []
    for ridge in (1e-3, 1e-1, 10.0):
        model, batch = sim_mst_net(real[0]), Few().batch(range(10))
        model.fit_highway(batch.values, batch.marks, batch.target, ridge=ridge)
        scores.append(validation_loss(model, real[1]))
    assert min(scores) < 0.9 * scores[0], "equal scores would compare nothing"
    config = dataclasses.replace(CONFIG, epochs=1, learning_rate=1e-9, validation_samples=None)
    started = train_stage(sim_mst_net(real[0]), Few(), real[1], config, stage="real", fit_highway=True)
    assert started.best_score == pytest.approx(min(scores), rel=1e-3)


def test_the_whole_model_trains_with_its_own_task_weights(real):
    model = sim_mst_net(real[0])
    history = train_stage(model, *real, dataclasses.replace(CONFIG, epochs=2), stage="real")
    assert set(history.records[0]["task_weights"]) == {"call", "sms"}
    assert history.best_score < validation_loss(sim_mst_net(real[0]), real[1])
