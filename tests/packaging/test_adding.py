"""The additions of docs/developers/adding.md are made to a copy of the package, as the page says, and used."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import simmst

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "developers" / "adding.md"
BLOCK = re.compile(r"^```(python|diff)\n# (simmst/\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def changed(text: str, diff: str) -> str:
    """Return the text with a diff applied, whose context lines say where."""
    lines = diff.splitlines()
    before, after = ("".join(f"{line[1:]}\n" for line in lines if line[:1] in kinds) for kinds in (" -", " +"))
    assert text.count(before) == 1, f"{text.count(before)} times in the file:\n{before}"
    return text.replace(before, after)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package and all additions of the page."""
    folder = tmp_path_factory.mktemp("copied")
    package = Path(simmst.__file__).parent
    shutil.copytree(package, folder / "simmst", ignore=shutil.ignore_patterns("__pycache__"))
    for language, name, content in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        path = folder / name
        if language == "python":
            assert not path.exists()
            path.parent.mkdir(exist_ok=True)
            path.write_text(content, encoding="utf-8")
        else:
            path.write_text(changed(path.read_text(encoding="utf-8"), content), encoding="utf-8")
    return folder


def run(copied: Path, code: str, *arguments: str, folder: Path | None = None) -> str:
    command = [sys.executable, "-c", f"import simmst\nassert simmst.__file__.startswith({str(copied)!r})\n{code}"]
    environment = {**os.environ, "PYTHONPATH": str(copied), "PYTHONWARNINGS": "error::DeprecationWarning:simmst"}
    done = subprocess.run(
        [*command, *arguments], cwd=folder or copied, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


CITY = """
import numpy as np
from simmst import Forecaster, TrafficDataset
def city(seed):
    rng = np.random.default_rng(seed)
    day = 20 + 10 * np.sin(np.arange(240) * np.pi / 12)[:, None, None]
    return TrafficDataset.from_arrays(day + rng.random((240, 3, 3)), np.arange(240) * 3600, country=None)
"""


def test_a_baseline(copied: Path) -> None:
    code = """
model = Forecaster(horizon=2, model="mean").fit(city(0), simulated=None)
assert np.allclose(model.predict().y_hat.astype(float), 20.5, atol=0.5), model.predict()
print([row.name for row in model.cross_validation(n_windows=2).rows])
"""
    assert "mean" in run(copied, CITY + code)


def test_a_network(copied: Path) -> None:
    code = """
small = {"epochs": 1, "samples_per_epoch": 64, "validation_samples": 64}
model = Forecaster(horizon=2, model="mlp", network={"width": 8, "memory": True}, training=small)
model.fit(city(0), simulated=None)
print(model.name, len(model.predict()), model.network.hidden.out_features)
"""
    assert run(copied, CITY + code).strip() == "mlp 18 8"


def test_a_recipe(copied: Path) -> None:
    code = """
small = {"training": {"epochs": 1, "batch_size": 64, "samples_per_epoch": 128}, "network": {"width": 8, "num_heads": 2}}
model = Forecaster(horizon=2, solver="simulated-only", **small).fit(city(0), simulated=[city(1)])
print(model.result.chosen, len(model.predict()))
try:
    Forecaster(horizon=2, solver="simulated-only", **small).fit(city(0), simulated=None)
except simmst.errors.ConfigError as error:
    print(error)
"""
    lines = run(copied, CITY + code).splitlines()
    assert lines[0] == "pretrain 18"
    assert "solver 'simulated-only' needs simulated cities" in lines[1]


def test_a_solver(copied: Path) -> None:
    code = """
import torch
from simmst.sim2real import ReweightingConfig, reweight
torch.manual_seed(0)
x, real = torch.randn(60, 1), torch.randn(20, 1)
def loss(module, batch): return (module(batch[0]).squeeze(1) - batch[1]).square() / 2
def weights(steps):
    samples = (x, x.squeeze(1)), (real, real.squeeze(1))
    config = ReweightingConfig(steps=steps)
    return reweight(torch.nn.Linear(1, 1), loss, *samples, solver="clean-start", config=config).raw_weights
print(bool(weights(30).any()))
"""
    assert run(copied, code).strip() == "True"


def test_a_reader(copied: Path, tmp_path: Path) -> None:
    whole = '{"start": "2013-11-01T00:00", "minutes": 60, "series": {"call": [1, 2, 3], "sms": [4, 5, 6]}}'
    (tmp_path / "place.json").write_text(whole)
    (tmp_path / "cut.json").write_text(whole[:40])
    code = """
place = simmst.data.load("place.json")
print(place.name, place.services, place.activity.shape)
try:
    TrafficDataset.from_json("cut.json")
except simmst.errors.DataError as error:
    print(error)
"""
    first, second = run(copied, f"import simmst.data\n{CITY}{code}", folder=tmp_path).splitlines()
    assert first == "place ('call', 'sms') (3, 2, 1, 1)"
    assert "cut.json is no series in JSON" in second


def test_a_command(copied: Path, tmp_path: Path) -> None:
    code = "import sys; from simmst.commands.main import main; sys.exit(main())"
    (tmp_path / "place.json").write_text('{"start": "2013-11-01T00:00", "minutes": 60, "series": {"call": [1, 2, 3]}}')
    found = run(copied, code, "head", "--data", "place.json", folder=tmp_path)
    assert found == "place: 1 cells, 3 slots of 60 min, call\n"
    assert "head" in run(copied, code, "--help")


def test_a_backend(copied: Path) -> None:
    code = """
import torch
from simmst import ops
planes, offsets, points = torch.randn(3, 4, 5), torch.randn(3, 4), torch.randn(3, 5)
found = []
for backend in ("reference", "einsum"):
    point = points.clone().requires_grad_()
    values = ops.cutting_plane_values(planes, offsets, point, backend=backend)
    found.append([values, *torch.autograd.grad(values.square().sum(), point)])
for one, other in zip(*found):
    torch.testing.assert_close(one, other)
def called(point): return ops.cutting_plane_values(planes, offsets, point, backend="einsum")
torch.testing.assert_close(torch.compile(called, backend="eager", fullgraph=True)(points), found[0][0])
try:
    ops.prob_sparse_attention(points[None], points[None], points[None], backend="einsum")
except simmst.errors.BackendUnavailableError as error:
    print(error)
from simmst.ops.backends import availability
print(sum(row.backend == "einsum" and row.available for row in availability()))
"""
    first, second = run(copied, code).splitlines()
    assert "cannot run prob_sparse_attention: it has no prob_sparse_attention" in first
    assert second == "1"


def test_what_is_added_keeps_to_the_arrows(copied: Path) -> None:
    pytest.importorskip("importlinter", reason="import-linter comes with the test extra")
    (copied / "simmst" / "kernels" / "__init__.py").touch()
    code = f"""
import sys
from importlinter.cli import lint_imports_command
sys.argv = ["lint-imports", "--no-cache", "--config", {str(ROOT / "pyproject.toml")!r}]
lint_imports_command()
"""
    assert "0 broken" in run(copied, code)
