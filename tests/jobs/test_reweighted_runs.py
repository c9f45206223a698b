"""``simmst train`` with a solver that weights simulated windows, in one process and in two."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from simmst import jobs
from simmst.distributed import ProcessGroup
from simmst.errors import CheckpointError, ConfigError
from simmst.forecaster.config import ForecasterConfig
from simmst.sim2real import ReweightingConfig
from simmst.simulation import surrogate_city
from simmst.training import RECIPES, TrainingConfig, load_checkpoint, stage

pytest.importorskip("pandas")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("safetensors")

CONFIG = ForecasterConfig(
    horizon=2,
    neighbourhood=3,
    start="scratch",
    recent=6,
    solver="cutting-plane",
    network={"width": 8, "encoder_layers": 1, "feedforward": 8, "label_length": 2},
    training=TrainingConfig(
        epochs=1,
        samples_per_epoch=24,
        batch_size=24,
        validation_samples=24,
        device="cpu",
        samples_per_city=6,
        reweighting=ReweightingConfig(
            steps=4, simulated_batch=8, real_batch=8, chunk=8, inner_lr=0.1, checkpoint_every=2, validate_every=2
        ),
    ),
)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    city = surrogate_city(0, height=3, width=3, days=6, services=["internet"])
    return city.save(tmp_path_factory.mktemp("data") / "city.npz")


@pytest.fixture(scope="module")
def alone(file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "alone"
    return folder, jobs.train(file, folder, CONFIG, simulated=3)


def test_the_run_folder_tells_which_cities_are_believed_in(alone):
    folder, outcome = alone
    values = json.loads((folder / "weights.json").read_text())
    assert len(values["cities"]) == 3
    assert values["num_samples"] == 18
    names = {parameter["name"] for parameter in values["parameters"]}
    assert "carrier_ghz" in names
    assert "internet.rate_per_user_hour" in names
    assert {path.name for path in outcome.files} >= {"weights.json", "weights.png"}
    assert outcome.weights.to_dict() == values
    assert sorted(path.stem for path in (folder / "checkpoints").iterdir()) == ["finetune", "pretrain", "reweight"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("start", ["anew", "where one process was killed"])
def test_two_processes_write_the_run_of_one(alone, file, tmp_path, monkeypatch, start):
    folder, settings = tmp_path / "two", tmp_path / "settings.yaml"
    if start != "anew":
        original = stage.save_checkpoint

        def save_and_die(*what):
            original(*what)
            raise Killed

        monkeypatch.setattr(stage, "save_checkpoint", save_and_die)
        with pytest.raises(Killed):
            jobs.train(file, folder, CONFIG, simulated=3)
        assert load_checkpoint(folder / "checkpoints" / "reweight.safetensors").state["numbers"]["done"] == 2
    settings.write_text(json.dumps({"data": str(file), "simulated": 3, "forecaster": CONFIG.to_dict()}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "simmst", "train", "--config", str(settings), "--out", str(folder), "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("weights of 18 simulated windows of 3 cities") == 1, "reported once"
    one, two = (json.loads((path / "weights.json").read_text()) for path in (alone[0], folder))
    weights = [{city["name"]: city["weight"] for city in values["cities"]} for values in (one, two)]
    assert weights[0] == pytest.approx(weights[1], abs=1e-5)
    assert (folder / "summary.json").is_file()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2 + 1 + 2  # fine-tuning records its start


def test_a_solver_with_work_for_one_process_is_refused_in_several(file, tmp_path, monkeypatch):
    import dataclasses

    monkeypatch.setitem(RECIPES, "joint", dataclasses.replace(RECIPES["joint"], distributed=False))
    config = dataclasses.replace(CONFIG, solver="joint")
    with pytest.raises(ConfigError, match="'joint' runs in one process, but 2 were started; start it without torchrun"):
        jobs.train(file, tmp_path / "run", config, simulated=1, processes=ProcessGroup(0, 2))
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_told(alone, file, tmp_path):
    import shutil

    shutil.copytree(alone[0], tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    path = tmp_path / "run" / "checkpoints" / "reweight.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        jobs.train(file, tmp_path / "run", CONFIG, simulated=3)
