"""The examples run, say what they promise to say, and agree with their notebooks."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
NOTEBOOKS = EXAMPLES / "notebooks"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))


def run(name: str, folder: Path, *arguments: str) -> str:
    """Run a script as a reader does, in an empty folder, and return what it prints."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout


def numbers(pattern: str, text: str) -> list[float]:
    found = re.search(pattern, text)
    assert found, f"{pattern!r} is not in:\n{text}"
    return [float(number) for number in found.groups()]


def test_there_are_five() -> None:
    assert SCRIPTS == ["clean_labels", "compare_cities", "fine_tune", "forecast_csv", "swap_layers"]


def test_forecast_csv(tmp_path: Path) -> None:
    import pandas as pd

    assert "SURROGATE" in run("forecast_csv", tmp_path, "--horizon", "2")
    assert len(pd.read_csv(tmp_path / "forecast.csv")) == 9 * 2 * 2
    # The reader's own file, with other columns.
    own = pd.read_csv(tmp_path / "surrogate_city.csv").query("service == 'call'")
    own.rename(columns={"unique_id": "Cell", "ds": "Time", "y": "Calls"}).drop(columns="service").to_csv(
        tmp_path / "own.csv", index=False
    )
    assert "SURROGATE" not in run("forecast_csv", tmp_path, "own.csv", "--horizon", "3", "--out", "mine.csv")
    forecast = pd.read_csv(tmp_path / "mine.csv")
    assert len(forecast) == 9 * 3
    assert forecast.notna().all(axis=None)


def test_fine_tune(tmp_path: Path) -> None:
    said = run("fine_tune", tmp_path, "--horizon", "2")
    after, before = numbers(r"MAE of Sim-MSTNet: ([\d.]+)\nMAE of Sim-MSTNet, no training: ([\d.]+)\n", said)
    (least,) = numbers(r"least MAE: ([\d.]+) of", said)
    assert least <= min(after, before)
    assert after <= 1.05 * before  # the shipped weights are kept unless the adapted ones are better
    assert "SURROGATE" in said
    assert "seasonal-naive-week" in said


def test_swap_layers(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="comes with the extra huggingface")
    said = run("swap_layers", tmp_path, "--context", "48", "--width", "16")
    assert "4 layers swapped" in said
    theirs, exact, ours = numbers(r"loss: (\S+) with the library's layers, (\S+) with exact=True, (\S+) by", said)
    assert exact == pytest.approx(theirs, abs=2e-5)
    assert ours == pytest.approx(theirs, rel=0.2)
    assert "4 layers restored" in said


def test_clean_labels(tmp_path: Path) -> None:
    said = run("clean_labels", tmp_path, "--steps", "300")
    right, wrong = numbers(r"mean weight: (\S+) of right labels, (\S+) of wrong", said)
    assert right > 2 * wrong
    (suspects, found) = numbers(r"of the (\d+) lowest weights, (\d+) belong to wrong labels", said)
    assert found > 0.75 * suspects  # of all labels, three in ten are wrong


def test_compare_cities(tmp_path: Path) -> None:
    said = run("compare_cities", tmp_path, "--out", "report")
    assert "SURROGATE" in said
    (outside, of) = numbers(r"surrogate-1: (\d+) of (\d+) statistics lie outside the band", said)
    (comparison,) = json.loads((tmp_path / "report" / "realism.json").read_text(encoding="utf-8"))["files"]
    assert (outside, of) == (comparison["outside"], len(comparison["statistics"]))
    assert 0 <= outside < of
    assert (tmp_path / "report" / "realism.png").exists()


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_short_and_its_notebook_agrees(name: str) -> None:
    script = EXAMPLES / f"{name}.py"
    assert 40 <= len(script.read_text(encoding="utf-8").splitlines()) <= 120
    text_of = runpy.run_path(str(NOTEBOOKS / "write.py"))["text_of"]
    written = (NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8")
    assert written == text_of(script), "run `python examples/notebooks/write.py`"


@pytest.mark.parametrize("name", ["clean_labels", "forecast_csv"])
def test_a_notebook_runs_cell_by_cell(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(codes) >= 3
    assert not any(cell.get("outputs") for cell in cells)
    module = types.ModuleType("notebook")
    monkeypatch.setitem(sys.modules, "notebook", module)
    with torch.random.fork_rng(devices=[]):
        for number, code in enumerate(codes):
            exec(compile(code, f"{name}.ipynb, code cell {number}", "exec"), module.__dict__)
    said = capsys.readouterr().out
    assert ("lowest weights" if name == "clean_labels" else "forecasts are in") in said
