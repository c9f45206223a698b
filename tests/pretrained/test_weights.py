"""The shipped weights: the networks built from them, and the errors if they are damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import simmst.pretrained
from simmst.errors import CheckpointError, ConfigError
from simmst.pretrained import load_pretrained, save_pretrained
from simmst.training import load_checkpoint, save_checkpoint

pytest.importorskip("safetensors")

SHIPPED = Path(simmst.pretrained.__file__).parent


@pytest.fixture
def folder(tmp_path):
    """Return a copy of the shipped weights and their record."""
    for name in ("weights.safetensors", "weights.json"):
        shutil.copy(SHIPPED / name, tmp_path / name)
    return tmp_path


def changed(folder, change):
    """Change the state in the weights, and write the weights and their record again."""
    checkpoint = load_checkpoint(folder / "weights.safetensors")
    change(checkpoint.state)
    save_checkpoint(folder / "weights.safetensors", checkpoint.tensors, checkpoint.state)


def test_they_are_small_enough_to_ship():
    assert sum((SHIPPED / name).stat().st_size for name in ("weights.safetensors", "weights.json")) < 5_000_000


def test_a_copy_is_as_good(folder, tmp_path):
    here, there = load_pretrained(), load_pretrained(folder)
    assert here.config == there.config
    assert all(torch.equal(tensor, there.tensors[name]) for name, tensor in here.tensors.items())
    again = load_pretrained(save_pretrained(tmp_path / "again", there).parent)
    assert again.record == here.record
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in here.tensors.items())


def test_networks_of_any_services_and_horizon():
    pretrained = load_pretrained()
    network = pretrained.network(("video", "internet"), 3, dropout=0.1)
    assert (network.config.services, network.config.horizon, network.config.dropout) == (("video", "internet"), 3, 0.1)
    with pytest.raises(ConfigError, match="the shipped weights cannot serve another width; set start='scratch'"):
        pretrained.network(("sms",), 3, width=64)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.json"])
def test_one_that_is_absent(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"^{name} is not in .*; install simmst again, or train with start="):
        load_pretrained(folder)


def test_all_absent_from_the_package(folder, monkeypatch):
    monkeypatch.setattr("simmst.pretrained.weights.__file__", str(folder / "nowhere" / "weights.py"))
    load_pretrained.cache_clear()
    with pytest.raises(CheckpointError, match=r"^the weights that ship with simmst are not in .*nowhere"):
        load_pretrained()


@pytest.mark.parametrize("length", [0, 7, 5000, -100])
def test_cut_short(folder, length):
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is (damaged|no|not)"):
        load_pretrained(folder)


def test_one_bit_is_another(folder):
    path = folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is not the file that weights\.json describes; copy the folder again"):
        load_pretrained(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sha256": ', "\x00"])
def test_a_record_that_is_none(folder, text):
    (folder / "weights.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"weights\.json is no record of weights \(.*\); copy the folder again"):
        load_pretrained(folder)


def test_a_record_that_is_no_text(folder):
    (folder / "weights.json").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"weights\.json is no record of weights"):
        load_pretrained(folder)


def test_a_record_of_other_weights(folder):
    record = json.loads((folder / "weights.json").read_text())
    (folder / "weights.json").write_text(json.dumps({**record, "sha256": "0" * 64}))
    with pytest.raises(CheckpointError, match=r"is not the file that weights\.json describes"):
        load_pretrained(folder)


def test_a_checkpoint_of_another_format(folder, monkeypatch):
    shipped = load_pretrained()
    monkeypatch.setattr("simmst.training.checkpoint.VERSION", 99)
    save_pretrained(folder, shipped)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format version '99', this simmst reads version 1"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state["config"].update(depth=3), r"is of another version of simmst \(.*depth.*\); make the"),
        (lambda state: state["config"].update(width=9), r"is of another version of simmst \(width is 9"),
        (lambda state: state.pop("config"), r"is of another version of simmst \('config' is missing\)"),
        (lambda state: state.pop("record"), r"is of another version of simmst \('record' is missing\)"),
        (lambda state: state["config"].update(width=64), r"another version of simmst \(.* does not fit\); install"),
    ],
)
def test_weights_of_another_version(folder, change, message):
    import hashlib

    changed(folder, change)
    digest = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    (folder / "weights.json").write_text(json.dumps({"sha256": digest}))
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(folder).network(("internet",), 2)


def test_a_checkpoint_of_another_kind(folder):
    changed(folder, lambda state: state.update(kind="forecaster"))
    with pytest.raises(CheckpointError, match=r"is not the file that weights\.json describes"):
        load_pretrained(folder)
