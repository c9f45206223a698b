from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import torch

from simmst.errors import ConfigError
from simmst.training.config import TrainingConfig, learning_rate_at, resolve_device


def test_round_trip_through_json():
    config = TrainingConfig(epochs=3, gradient_clip=None, seed=7)
    assert TrainingConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("epochs", 2.5),
        ("epochs", True),
        ("samples_per_epoch", 0),
        ("batch_size", -1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", "fast"),
        ("weight_decay", -0.1),
        ("schedule", "linear"),
        ("gradient_clip", 0.0),
        ("patience", 0),
        ("loss", "l3"),
        ("real_share", 1.0),
        ("seed", -1),
        ("device", "tpu"),
        ("precision", "int8"),
        ("fit_highway", 1),
    ],
)
def test_a_bad_setting_is_named_with_its_value(field, value):
    with pytest.raises(ConfigError) as caught:
        TrainingConfig(**{field: value})
    assert field in str(caught.value)
    assert repr(value) in str(caught.value)


def test_an_unknown_setting_lists_those_that_exist():
    with pytest.raises(ConfigError, match="unknown training setting 'zzz'; known settings: epochs,"):
        TrainingConfig.from_dict({"zzz": 1})


def test_the_schedules():
    cosine = TrainingConfig(learning_rate=2.0, warmup_steps=4, schedule="cosine")
    rates = [learning_rate_at(cosine, step, 40) for step in range(40)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[4:]))
    assert 0 < rates[-1] < 0.1
    constant = dataclasses.replace(cosine, schedule="constant")
    assert learning_rate_at(constant, 39, 40) == 2.0


def test_warmup_leaves_room_in_a_short_run():
    config = TrainingConfig(learning_rate=1.0, warmup_steps=100)
    assert max(learning_rate_at(config, step, 10) for step in range(10)) == 1.0


def test_cuda_where_there_is_none():
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA GPU")
    with pytest.raises(ConfigError, match="no CUDA GPU"):
        resolve_device("cuda")
    assert resolve_device("auto") == torch.device("cpu")
