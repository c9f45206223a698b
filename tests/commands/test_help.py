from __future__ import annotations

import re

import pytest

from simmst.commands.main import COMMANDS, main

pytest.importorskip("jsonargparse")


def helped(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("columns", [60, 140])
def test_every_width_is_kept_and_nothing_is_of_python(capsys, monkeypatch, name, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = helped(capsys, name, "--help")
    body = text.partition("\nexamples:")[0].splitlines()[1:]  # but for the usage, and lines to copy
    assert max(map(len, body)) <= min(columns, 100)
    assert not re.search(r"\bNone\b|\bFalse\b|\bTrue\b|==SUPPRESS==|<class|null|\{", text)


def test_the_overview_fits_a_narrow_terminal(capsys):
    lines = helped(capsys, "--help").splitlines()
    assert max(map(len, lines)) <= 61
    assert sum(re.match(r"  \w+ +[a-z]", line) is not None for line in lines) >= len(COMMANDS)


def test_the_general_options_come_last(capsys):
    text = helped(capsys, "train", "--help")
    places = [text.index(part) for part in ("--data FILE", "--forecaster.horizon", "--table.time_col", "--config FILE")]
    assert places == sorted(places)


def test_settings_are_few_unless_all_are_asked_for(capsys):
    short, full = helped(capsys, "train", "--help"), helped(capsys, "train", "--help_all")
    assert "--forecaster.training.reweighting.steps" not in short
    assert "--forecaster.training.reweighting.steps N" in full
    assert "settings under forecaster.training.reweighting:" in full
    assert not re.search(r"`|:math:|\bNone\b|\{", full)
    assert set(re.findall(r"--[\w.]+", short)) < set(re.findall(r"--[\w.]+", full))


def test_settings_that_the_short_help_leaves_out_are_printed(capsys):
    text = helped(capsys, "train", "--data", "a.npz", "--out", "b", "--print_config")
    assert "samples_per_epoch: 4096" in text
    assert "neighbourhood: 5" in text


def test_a_default_is_told_once(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    for name in COMMANDS:
        for line in helped(capsys, name, "--help").splitlines():
            assert line.count("default") <= 1, line


def test_the_paper_s_table_has_the_name_that_users_type(capsys):
    text = helped(capsys, "evaluate", "--help")
    assert "--table 1|2|3" in text
    assert "paper_table" not in text
