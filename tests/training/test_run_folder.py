from __future__ import annotations

import json

import pytest

from simmst.errors import CheckpointError, ConfigError
from simmst.training.run_folder import RunFolder

CONFIG = {"seed": 0, "model": {"width": 8, "services": ("call", "sms")}}


def test_the_folder_is_laid_out(tmp_path):
    run = RunFolder.create(tmp_path / "run", CONFIG)
    assert sorted(entry.name for entry in run.path.iterdir()) == [
        "checkpoints",
        "config.json",
        "environment.json",
        "figures",
    ]
    assert run.config()["model"] == {"width": 8, "services": ["call", "sms"]}
    environment = json.loads(run.environment_path.read_text())
    assert environment["packages"]["torch"]
    assert environment["threads"]["torch"] >= 1


def test_the_same_config_resumes_the_run(tmp_path):
    RunFolder.create(tmp_path, CONFIG).log({"stage": "real", "epoch": 1})
    assert RunFolder.create(tmp_path, CONFIG).metrics() == [{"stage": "real", "epoch": 1}]


def test_another_config_names_the_keys_and_the_remedy(tmp_path):
    RunFolder.create(tmp_path, CONFIG).log({"stage": "real", "epoch": 1})
    other = {"seed": 1, "model": {"width": 16, "services": ("call", "sms")}}
    with pytest.raises(ConfigError) as caught:
        RunFolder.create(tmp_path, other)
    message = str(caught.value)
    wanted = ("model.width was 8, now 16", "seed was 0, now 1", "choose another folder", "--overwrite")
    for part in (str(tmp_path), *wanted):
        assert part in message
    assert "services" not in message
    run = RunFolder.create(tmp_path, other, overwrite=True)
    assert run.metrics() == []
    assert run.config()["seed"] == 1


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("do not touch")
    with pytest.raises(ConfigError, match=r"holds files but no run .*thesis\.tex"):
        RunFolder.create(tmp_path, CONFIG, overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_finished_run_is_recognised(tmp_path):
    run = RunFolder.create(tmp_path, CONFIG)
    with pytest.raises(ConfigError, match="finished run"):
        run.summary()
    run.finish({"best_score": 0.5})
    assert RunFolder(tmp_path).finished
    assert RunFolder(tmp_path).summary() == {"best_score": 0.5}


def test_an_unfinished_last_line_is_left_out_and_dropped(tmp_path):
    run = RunFolder.create(tmp_path, CONFIG)
    for stage, epoch in (("pretrain", 1), ("pretrain", 2), ("finetune", 1), ("finetune", 2)):
        run.log({"stage": stage, "epoch": epoch})
    with run.metrics_path.open("a") as file:
        file.write('{"stage": "finetu')
    assert len(run.metrics()) == 4
    run.drop_metrics("finetune", after_epoch=1)
    assert [(r["stage"], r["epoch"]) for r in run.metrics()] == [("pretrain", 1), ("pretrain", 2), ("finetune", 1)]
    assert run.metrics("finetune") == [{"stage": "finetune", "epoch": 1}]
    assert run.metrics_path.read_text().endswith("}\n")


def test_a_damaged_line_is_named(tmp_path):
    run = RunFolder.create(tmp_path, CONFIG)
    run.metrics_path.write_text('{"stage": "a", "epoch": 1}\nnonsense\n{"stage": "a", "epoch": 2}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 2: not a JSON record: 'nonsense'"):
        run.metrics()


def test_values_json_cannot_hold_are_refused(tmp_path):
    with pytest.raises(TypeError, match="cannot hold"):
        RunFolder.create(tmp_path / "run", {"model": object()})
    assert not (tmp_path / "run").exists()
