"""``simmst evaluate --table`` and ``--figure``."""

from __future__ import annotations

import pytest

from simmst.commands.main import main
from simmst.simulation import surrogate_city

for package in ("pandas", "matplotlib", "rich", "safetensors", "jsonargparse", "scipy"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    made = surrogate_city(0, height=2, width=2, days=9, services=("internet", "call"))
    return str(made.save(tmp_path_factory.mktemp("data") / "town.npz"))


FAST = ["--systems", "persistence", "hour-of-week-mean", "--horizons", "1", "--seeds", "1", "--jobs", "1", "--quiet"]


def test_a_table_is_shown_and_written(file, tmp_path, capsys):
    assert main(["evaluate", "--table", "1", "--data", file, "--out", str(tmp_path / "out"), *FAST]) == 0
    shown = capsys.readouterr().out
    assert "SURROGATE Table 1" in shown
    assert "SURROGATE internet, 1 step of 60 min ahead" in shown
    assert "call" not in shown.split("bold")[0]  # table 1 has only Internet
    for suffix in ("md", "csv", "tex"):
        assert f"written: {tmp_path / 'out'}/table-1-surrogate-0-hourly.{suffix}" in shown


def test_the_figure_brings_its_table(file, tmp_path, capsys):
    assert main(["evaluate", "--figure", "2", "--data", file, "--out", str(tmp_path), *FAST]) == 0
    picture = tmp_path / "figure-2-table-1-surrogate-0-hourly.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"written: {picture}" in capsys.readouterr().out


def test_a_broken_cell_is_a_line_on_standard_error(file, tmp_path, capsys):
    command = ["evaluate", "--table=1", "--data", file, "--out", str(tmp_path), *FAST]
    assert main(command) == 0
    path = next((tmp_path / "cells").rglob("persistence*.json"))
    path.write_text("{")
    capsys.readouterr()
    assert main(command) == 0
    error = capsys.readouterr().err
    assert error.startswith(f"simmst: {path} is not a cell of a table")
    assert error.count("\n") == 1


def test_a_table_in_yaml_and_flags_of_the_file(file, tmp_path, capsys):
    settings = tmp_path / "table.yaml"
    settings.write_text("paper_table: 2\nseeds: 1\njobs: 1\nhorizons: [1]\nsystems: [persistence, ridge-lags]\n")
    options = ["--config", str(settings), "--data", file, "--out", str(tmp_path), "--quiet"]
    assert main(["evaluate", *options]) == 0
    assert "SURROGATE Table 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one of --run FOLDER"),
        (["--table", "1", "--run", "x"], "give only one of --run FOLDER"),
        (["--table", "5"], "table is 5; the paper has tables 1, 2, 3"),
        (["--figure", "1"], "figure is 1; only the paper's Figure 2 can be drawn"),
        (["--table", "1", "--protocol", "hurly"], "no protocol 'hurly'"),
        (["--table", "1", "--systems", "dcrn"], "has no system 'dcrn'; did you mean 'dcrnn'"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(file, tmp_path, capsys, words, message):
    assert main(["evaluate", "--data", file, "--out", str(tmp_path / "out"), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("simmst: ")
    assert message in error
    assert error.count("\n") == 1
