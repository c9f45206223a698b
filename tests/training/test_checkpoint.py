from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from simmst.errors import CheckpointError
from simmst.training.checkpoint import (
    grouped,
    load_checkpoint,
    load_into,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)

safetensors_torch = pytest.importorskip("safetensors.torch")


@pytest.fixture
def saved(tmp_path):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    return model, save_checkpoint(tmp_path / "a.safetensors", grouped("model", model.state_dict()), {"epoch": 4})


def test_round_trip(saved):
    model, path = saved
    checkpoint = load_checkpoint(path)
    assert checkpoint.state == {"epoch": 4}
    other = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    load_into(other, checkpoint.group("model"), path=path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


def test_tensors_that_share_memory_or_have_gaps_are_stored(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    path = save_checkpoint(tmp_path / "a.safetensors", {"a": base, "b": base, "c": base.T, "d": base[:, ::2]}, {})
    tensors = load_checkpoint(path).tensors
    assert torch.equal(tensors["c"], base.T)
    assert torch.equal(tensors["d"], base[:, ::2])


@pytest.mark.parametrize("keep", [0, 5, 60, 0.5, 0.99])
def test_a_file_cut_short_is_named(saved, keep):
    _, path = saved
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=r"a\.safetensors is damaged or cut short: it has \d+ bytes.*train again"):
        load_checkpoint(path)


def test_a_pickle_is_not_executed(tmp_path):
    path = tmp_path / "a.safetensors"
    torch.save({"model": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_a_missing_file_lists_its_neighbours(saved):
    _, path = saved
    with pytest.raises(CheckpointError, match=r"no checkpoint .*b\.safetensors; its folder has: a\.safetensors"):
        load_checkpoint(path.with_name("b.safetensors"))


def test_another_version_is_refused(saved):
    _, path = saved
    metadata = {"format": "simmst-checkpoint", "version": "7", "state": "{}"}
    safetensors_torch.save_file({"a": torch.ones(1)}, str(path), metadata=metadata)
    with pytest.raises(CheckpointError, match=r"has format version '7', this simmst reads version 1; .*train again"):
        load_checkpoint(path)


def test_a_foreign_safetensors_file_is_refused(saved):
    _, path = saved
    safetensors_torch.save_file({"a": torch.ones(1)}, str(path))
    with pytest.raises(CheckpointError, match="not a simmst checkpoint: its metadata has format None"):
        load_checkpoint(path)


def test_shapes_and_names_that_do_not_fit_leave_the_model_alone(saved):
    _, path = saved
    wider = nn.Sequential(nn.Linear(5, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    before = {name: tensor.clone() for name, tensor in wider.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_into(wider, load_checkpoint(path).group("model"), path=path)
    message = str(caught.value)
    for part in (str(path), "2.weight is missing", "0.weight is (2, 3), wanted (2, 5)", "config stored"):
        assert part in message
    assert all(torch.equal(before[name], tensor) for name, tensor in wider.state_dict().items())


def test_another_dtype_is_refused(saved):
    model, path = saved
    with pytest.raises(CheckpointError, match=r"torch.float32, wanted torch.float64"):
        load_into(model.double(), load_checkpoint(path).group("model"), path=path)


def test_the_suffix_is_checked(tmp_path):
    with pytest.raises(CheckpointError, match=r"ends in \.safetensors"):
        save_checkpoint(tmp_path / "a.pt", {}, {})


def test_the_state_is_plain_json_in_the_metadata(saved):
    _, path = saved
    length = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + length])
    assert json.loads(header["__metadata__"]["state"]) == {"epoch": 4}


@pytest.mark.parametrize("fused", [False, True])
def test_the_optimiser_resumes_where_it_was(fused):
    def steps(model, optimizer, start, stop):
        for number in range(start, stop):
            optimizer.zero_grad()
            model(torch.full((4, 3), float(number + 1))).square().sum().backward()
            optimizer.step()

    def fresh():
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)

    whole, whole_optimizer = fresh()
    steps(whole, whole_optimizer, 0, 6)
    first, first_optimizer = fresh()
    steps(first, first_optimizer, 0, 3)
    kept = {name: tensor.clone() for name, tensor in optimizer_tensors(first, first_optimizer).items()}
    second, second_optimizer = fresh()
    second.load_state_dict(first.state_dict())
    restore_optimizer(second, second_optimizer, kept)
    steps(second, second_optimizer, 3, 6)
    assert torch.equal(second.weight, whole.weight)


@pytest.mark.parametrize(("fused", "where"), [(False, "cpu"), (True, "meta")])
def test_the_steps_of_a_fused_optimiser_are_counted_where_its_parameters_are(fused, where):
    model = nn.Linear(3, 2, device="meta")
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.defaults["fused"] = fused  # torch itself refuses it on this device
    restore_optimizer(model, optimizer, {"weight/step": torch.tensor(3.0), "weight/exp_avg": torch.ones(2, 3)})
    assert optimizer.state[model.weight]["step"].device.type == where
    assert optimizer.state[model.weight]["exp_avg"].device.type == "meta"


def test_optimiser_state_of_another_model_is_refused():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(CheckpointError, match="no such parameter"):
        restore_optimizer(model, optimizer, {"head.weight/exp_avg": torch.ones(2, 3)})
    with pytest.raises(CheckpointError, match=r"the parameter is \(2, 3\)"):
        restore_optimizer(model, optimizer, {"weight/exp_avg": torch.ones(2, 4)})
