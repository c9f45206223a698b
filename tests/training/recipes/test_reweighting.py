"""The solvers that weight simulated windows, on a city of nine cells and a network of a thousand parameters."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from training_city import CONFIG, SPEC, city_windows, sim_mst_net, tiny_net

from simmst.data import ConcatWindows, Scaler, StreamedWindows, TrafficDataset, Windows
from simmst.errors import CheckpointError, ConfigError, DataError
from simmst.sim2real import ReweightingConfig
from simmst.training import REWEIGHTING, RunFolder, TrainingConfig, load_checkpoint, solve
from simmst.training.chosen_windows import choose_windows
from simmst.training.validation import validation_losses
from simmst.training.weighing import per_sample_loss

FEW = ReweightingConfig(
    steps=12, simulated_batch=16, real_batch=16, chunk=16, inner_lr=0.1, checkpoint_every=4, validate_every=4
)
QUICK = dataclasses.replace(CONFIG, epochs=1, reweighting=FEW, samples_per_city=20, weights="sample")


@pytest.fixture(scope="module")
def cities():
    return ConcatWindows([city_windows(seed, range(96)) for seed in (1, 2, 3)])


def train(name, real, cities, config=QUICK, run=None, model=None):
    model = model or tiny_net()
    result = solve(name, model, real_train=real[0], real_validation=real[1], simulated=cities, config=config, run=run)
    return model, result


@pytest.mark.parametrize("name", REWEIGHTING)
def test_every_solver_weighs_the_chosen_windows(real, cities, name):
    _, result = train(name, real, cities)
    given = result.window_weights
    assert [history.stage for history in result.histories] == ["reweight", "pretrain", "finetune"]
    assert given.weights.shape == (60,)
    assert np.bincount(given.cities).tolist() == [20, 20, 20]
    assert np.isfinite(given.weights).all()
    assert len(set(given.weights.tolist())) > 10, "every window has its own weight"
    assert given.by_city() == pytest.approx([given.weights[given.cities == c].mean() for c in range(3)])


def test_weights_tied_by_city(real, cities):
    _, result = train("cutting-plane", real, cities, dataclasses.replace(QUICK, weights="city"))
    given = result.window_weights
    for city in range(3):
        assert len(set(given.weights[given.cities == city].tolist())) == 1
    assert len(set(given.weights.tolist())) == 3


PARAMETERS = [{"tilt_deg": tilt, "scenario": name} for tilt, name in ((2.0, "UMa"), (4.0, "UMi"), (9.0, "UMa"))]


def test_weights_tied_by_parameter_are_a_function_of_the_parameters(real, cities):
    config = dataclasses.replace(QUICK, weights="parameter", after_reweighting="nothing")
    given = {
        number: solve(
            "cutting-plane",
            tiny_net(),
            real_train=real[0],
            real_validation=real[1],
            simulated=cities,
            parameters=parameters,
            config=config,
        ).window_weights.by_city()
        for number, parameters in enumerate((PARAMETERS, [PARAMETERS[0], PARAMETERS[2], PARAMETERS[2]]))
    }
    assert len(set(given[0])) == 3
    assert given[1][0] != given[1][1] == given[1][2], "two cities with the same parameters have the same weight"
    with pytest.raises(ConfigError, match=r"weights by parameter need the parameters of all 3 .* are not known"):
        train("cutting-plane", real, cities, config)


def test_a_model_that_has_learned_is_adapted_and_keeps_its_highway(real, cities):
    model = sim_mst_net(real[0])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.learned = True
    still = dataclasses.replace(QUICK, weights="city", adapt_epochs=1, adapt_learning_rate=1e-12)
    _, result = train("cutting-plane", real, cities, still, model=model)
    assert [history.stage for history in result.histories] == ["reweight", "adapt"]
    assert result.chosen == "pretrained"
    assert result.window_weights.weights.shape == (60,)
    for name, tensor in model.state_dict().items():
        if not name.startswith("task_weights"):
            torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


@pytest.mark.parametrize(("after", "stages"), [("nothing", ["reweight"]), ("finetune", ["reweight", "finetune"])])
def test_what_follows(real, cities, after, stages):
    _, result = train("online", real, cities, dataclasses.replace(QUICK, after_reweighting=after))
    assert [history.stage for history in result.histories] == stages
    assert result.chosen in stages


IDLE = dataclasses.replace(QUICK, learning_rate=1e-9)


def test_training_again_starts_from_the_untrained_model(real, cities):
    model, _ = train("cutting-plane", (real[0], None), cities, IDLE)
    for found, untrained in zip(model.parameters(), tiny_net().parameters(), strict=True):
        torch.testing.assert_close(found, untrained, rtol=0, atol=1e-6)


def test_the_model_of_the_weighing_is_kept_where_later_ones_are_worse(real, cities):
    model, result = train("cutting-plane", real, cities, IDLE)
    assert result.chosen == "reweight"
    assert result.best_score < 0.9 * result.histories[-1].best_score
    losses = validation_losses(model, real[1], IDLE, where="here")
    assert result.best_score == pytest.approx(losses.mean())


def test_kinks_are_left_to_training(real, cities):
    """The weights for absolute errors are those for Huber's, because the solver takes a second derivative."""
    config = dataclasses.replace(QUICK, after_reweighting="nothing")
    found = [train("cutting-plane", real, cities, dataclasses.replace(config, loss=loss)) for loss in ("mae", "huber")]
    assert np.array_equal(*(result.window_weights.weights for _, result in found))


def test_sim_mst_net_is_differentiated_forward(real, cities, recwarn):
    model = sim_mst_net(real[0])
    _, result = train("cutting-plane", real, cities, model=model)
    assert not [warning for warning in recwarn if "forward-mode" in str(warning.message)]
    assert result.best_score < 1.0
    shares = result.histories[0].records[0]["task_weights"]
    assert set(shares) == {"call", "sms"}
    assert sum(shares.values()) == pytest.approx(1.0)


def test_few_simulated_windows_take_the_highways_penalty_that_validation_prefers(real):
    city = city_windows(1, range(96)).dataset
    lawless = city.with_(activity=np.random.default_rng(0).permutation(city.activity))
    few = Windows(lawless, SPEC, Scaler.fit(lawless, range(72)), steps=range(30, 36))
    batch, highways, scores = few.batch(range(len(few))), [], []
    for ridge in (1e-3, 1e-1, 10.0):
        model = sim_mst_net(real[0])
        model.fit_highway(batch.values, batch.marks, batch.target, ridge=ridge)
        highways.append(model.highway.state_dict())
        scores.append(validation_losses(model, real[1], QUICK, where="here").mean())
    assert min(scores) < 0.9 * scores[0], "equal scores would compare nothing"
    still = dataclasses.replace(FEW, steps=1, inner_lr=1e-9, lr_model=1e-9, simulated_batch=None)
    config = dataclasses.replace(QUICK, reweighting=still, after_reweighting="nothing", samples_per_city=len(few))
    model, _ = train("cutting-plane", real, few, config, model=sim_mst_net(real[0]))
    for name, tensor in model.highway.state_dict().items():
        torch.testing.assert_close(tensor, highways[int(np.argmin(scores))][name], rtol=0, atol=1e-4)


def test_a_model_bound_to_a_compiled_backend_is_refused(real, cities):
    model = sim_mst_net(real[0])
    model.config = dataclasses.replace(model.config, backend="cpu")
    with pytest.raises(ConfigError, match=r"bound to backend 'cpu'.*set backend to None"):
        train("cutting-plane", real, cities, model=model)


def test_streamed_cities_give_the_samples_that_they_number(real):
    cities = [city_windows(seed, range(96)).dataset for seed in (1, 2)]
    windows = StreamedWindows(cities, SPEC, per_city=15, keep=1)
    _, result = train("online", real, windows)
    assert np.bincount(result.window_weights.cities).tolist() == [15, 15]


def test_the_loss_of_a_window_leaves_missing_targets_out(real):
    batch = real[0].batch([0, 1])
    batch.target[0, 0, 0] = float("nan")
    batch.target[1] = float("nan")
    model = tiny_net().eval()
    shares = torch.tensor([0.3, 0.7])
    found = per_sample_loss(shares, "mae")(model, batch)
    error = (model(batch.values, batch.marks) - batch.target)[0].abs().detach()
    expected = 0.3 * error[1, 0] + 0.7 * error[:, 1].mean()
    assert found.tolist() == pytest.approx([float(expected), 0.0], rel=1e-5)


def test_windows_without_any_target_are_not_chosen():
    whole = city_windows(1, range(96))
    activity = whole.dataset.activity.copy()
    activity[60:] = np.nan
    city = whole.dataset.with_(activity=activity)
    windows = Windows(city, SPEC, Scaler.fit(city, range(60)), steps=range(96))
    chosen = choose_windows(windows, per_city=None, seed=0)
    assert 0 < len(chosen) < len(windows)
    assert not torch.isnan(chosen.batch(range(len(chosen))).target).all(dim=(1, 2)).any()
    late = Windows(city, SPEC, Scaler.fit(city, range(60)), steps=range(70, 96))
    with pytest.raises(DataError, match="has an observed target"):
        choose_windows(late, per_city=None, seed=0)


def test_the_choice_is_the_same_every_time_and_kept_in_memory(cities):
    one, two = (choose_windows(cities, per_city=7, seed=4, keep=keep) for keep in (True, False))
    assert one.numbers.tolist() == two.numbers.tolist()
    for first, second in zip(one.batch([3, 20]), two.batch([3, 20]), strict=True):
        if first is None:
            assert second is None
        else:
            torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
    assert one.numbers.tolist() != choose_windows(cities, per_city=7, seed=5).numbers.tolist()


def test_the_test_split_is_never_read(cities):
    whole = city_windows(0, range(96)).dataset
    spoilt = whole.activity.copy()
    spoilt[84:] = np.nan

    def weights(activity):
        city = whole.with_(activity=activity)
        scaler = Scaler.fit(city, range(60))
        parts = (Windows(city, SPEC, scaler, steps=range(60)), Windows(city, SPEC, scaler, steps=range(60, 84)))
        model, result = train("cutting-plane", parts, cities)
        return result.window_weights.weights, model.net[1].weight.detach().clone()

    first, second = weights(whole.activity), weights(spoilt)
    assert np.array_equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("name", ["real-only", "cutting-plane"])
def test_a_validation_split_that_training_sees_is_refused(real, cities, name):
    overlapping = city_windows(0, range(60, 96))
    with pytest.raises(DataError, match="overlaps the training split: traffic has 12 slots in both"):
        train(name, (real[0], overlapping), cities)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("name", ["cutting-plane", "online"])
def test_killed_between_any_two_writes(tmp_path, real, cities, monkeypatch, name):
    """The process dies at the n-th write of a file, for every n; the next process resumes."""
    import simmst.foundation.files as files

    def whole_run(folder):
        run = RunFolder.create(folder, {"solver": name})
        _, result = train(name, real, cities, run=run)
        return run, result

    whole, wanted = whole_run(tmp_path / "whole")
    left = [0]
    original = files.os.fsync

    def fsync(handle):
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        original(handle)

    monkeypatch.setattr(files.os, "fsync", fsync)
    for number in range(1, 60):
        left[0] = number
        try:
            run, found = whole_run(tmp_path / "broken")
            break
        except Killed:
            continue
    left[0] = -1
    assert number > 6
    assert whole.metrics_path.read_bytes() == run.metrics_path.read_bytes()
    assert np.array_equal(wanted.window_weights.weights, found.window_weights.weights)
    for path in whole.checkpoints.iterdir():
        first, second = load_checkpoint(path), load_checkpoint(run.checkpoint_path(path.stem))
        assert first.state == second.state
        assert first.tensors.keys() == second.tensors.keys()
        for key, tensor in first.tensors.items():
            assert torch.equal(tensor, second.tensors[key]), key


def test_other_settings_are_refused_and_the_checkpoint_stays(tmp_path, real, cities):
    run = RunFolder.create(tmp_path, {})
    train("online", real, cities, run=run)
    before = run.checkpoint_path("reweight").read_bytes()
    other = dataclasses.replace(QUICK, reweighting=dataclasses.replace(FEW, lr_weights=0.5))
    with pytest.raises(CheckpointError, match=r"reweighting lr_weights is 0\.05, wanted 0\.5; resume with"):
        train("online", real, cities, other, run=run)
    assert run.checkpoint_path("reweight").read_bytes() == before


def test_settings_come_from_a_section():
    config = TrainingConfig.from_dict({"reweighting": {"steps": 7}, "weights": "city"})
    assert (config.reweighting.steps, config.reweighting.simulated_batch) == (7, 256)
    assert TrainingConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match="unknown reweighting setting 'step'; did you mean 'steps'"):
        TrainingConfig.from_dict({"reweighting": {"step": 7}})
    with pytest.raises(ConfigError, match="weights is 'cities'; it must be one of: sample, city"):
        TrainingConfig(weights="cities")


def test_a_window_that_is_not_finite_is_named(real):
    activity = city_windows(1, range(96)).dataset.activity.copy()
    city = TrafficDataset.from_arrays(activity, np.arange(96) * 3600, services=["call", "sms"], country=None)
    windows = Windows(city, SPEC, Scaler.fit(city, range(96)), steps=range(96))

    class Bad(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.level = torch.nn.Parameter(torch.zeros(()))

        def forward(self, values, marks, *, mask=None):
            return self.level + torch.full((len(values), 2, 2), float("inf"))

    with pytest.raises(DataError, match="the loss of simulated sample 0 is not finite"):
        train("cutting-plane", real, windows, model=Bad())
