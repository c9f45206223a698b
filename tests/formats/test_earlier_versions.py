"""This version reads what earlier versions wrote: a small file of every format, from each version since 0.1.0."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch

import simmst
from simmst import Forecaster, TrafficDataset
from simmst.data import CityShards
from simmst.simulation import DomainPrior, simulate_city
from simmst.training import RunFolder, load_checkpoint

for package in ("pandas", "pyarrow", "safetensors", "msgspec", "holidays"):
    pytest.importorskip(package)

VERSIONS = sorted(path.stem for path in Path(__file__).parent.glob("*.zip"))


@pytest.fixture(scope="module", params=VERSIONS)
def folder(request, tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("formats")
    with zipfile.ZipFile(Path(__file__).with_name(f"{request.param}.zip")) as archive:
        archive.extractall(made)
    return made


@pytest.fixture
def expected(folder) -> dict:
    return json.loads((folder / "expected.json").read_text())


def test_this_version_is_among_them():
    assert simmst.__version__ in VERSIONS, "run tests/formats/write.py before a version is released"


def test_a_data_set(folder, expected):
    city = TrafficDataset.from_npz(folder / "city.npz")
    assert city.activity.sum() == pytest.approx(expected["activity"], rel=1e-6)


def test_simulated_cities(folder):
    (city,) = CityShards(folder / "cities")
    assert city.activity.shape == (24, 3, 2, 2)
    assert json.loads((folder / "cities" / "manifest.json").read_text())["simmst"] in VERSIONS


def test_a_prior(folder):
    simulate_city(DomainPrior.from_yaml(folder / "prior.yaml").sample(0, 0, height=2, width=2, days=1))


def test_a_checkpoint(folder):
    checkpoint = load_checkpoint(folder / "checkpoint.safetensors")
    assert checkpoint.state == {"epoch": 3}
    assert torch.equal(checkpoint.tensors["weight"], torch.arange(4.0))


def test_a_run(folder):
    run = RunFolder(folder / "run")
    assert run.summary() == {"chosen": "real"}
    assert [line["epoch"] for line in run.metrics()] == [1]
    assert run.config() == {"job": "formats"}
    load_checkpoint(next(run.checkpoints.iterdir()))


def test_a_forecaster(folder, expected):
    """The network is the same; its companions are today's, and forecast a little differently."""
    forecast = Forecaster.load(folder / "run").predict()["y_hat"].tolist()
    assert forecast == pytest.approx(expected["forecast"], rel=0.01)
