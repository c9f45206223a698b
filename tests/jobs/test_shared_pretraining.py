"""``simmst pretrain`` in two processes gives the same weights as in one."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch

from simmst.distributed import ProcessGroup
from simmst.errors import ConfigError
from simmst.jobs.pretraining import PretrainingConfig, pretrain
from simmst.pretrained import load_pretrained
from simmst.training import TrainingConfig

pytest.importorskip("safetensors")

CONFIG = PretrainingConfig(
    cities=5,
    held_out=3,
    side=4,
    windows_per_city=12,
    origins_per_city=4,
    horizon=2,
    network={"width": 8, "num_heads": 2, "feedforward": 8, "spatial_steps": 2, "task_weights": "average"},
    training=TrainingConfig(
        epochs=2,
        samples_per_epoch=40,
        batch_size=9,
        learning_rate=3e-4,  # AdamW makes steps of this size even from gradients that are only rounding errors
        warmup_steps=2,
        patience=None,
        fit_highway=False,
        device="cpu",
    ),
)


@pytest.mark.slow
def test_two_processes_leave_the_weights_of_one(tmp_path):
    pretrain(tmp_path / "alone", CONFIG, workers=1)
    settings = tmp_path / "settings.yaml"
    settings.write_text(json.dumps({"pretraining": CONFIG.to_dict()}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "simmst"]
    command += ["pretrain", "--config", str(settings), "--out", str(tmp_path / "two"), "--quiet", "--workers", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written: ") == 2, "two files, by one process"
    one, other = (load_pretrained(tmp_path / name) for name in ("alone", "two"))
    for name, tensor in one.tensors.items():
        torch.testing.assert_close(other.tensors[name], tensor, rtol=0, atol=1e-5)
    assert other.record["validation_loss"] == pytest.approx(one.record["validation_loss"], abs=1e-5)
    assert other.record["settings"] == one.record["settings"]


def test_what_several_processes_cannot_share_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"4 processes share 5 cities and 3 held out; .* start at most 3"):
        pretrain(tmp_path / "run", CONFIG, processes=ProcessGroup(0, 4))
    fitted = dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, fit_highway=True))
    with pytest.raises(ConfigError, match="no process holds all the cities"):
        pretrain(tmp_path / "run", fitted, processes=ProcessGroup(0, 2))
    assert not (tmp_path / "run").exists()
