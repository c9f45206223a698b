"""The command on tables in the forms that people have."""

from __future__ import annotations

import gzip
import io
import re

import numpy as np
import pytest

from simmst.commands.main import main

pd = pytest.importorskip("pandas")
for package in ("rich", "safetensors", "jsonargparse", "holidays"):
    pytest.importorskip(package)


@pytest.fixture
def counters(tmp_path):
    times = pd.date_range("2013-11-01", periods=24 * 6, freq="h")
    day = 10 + 5 * np.sin(2 * np.pi * times.hour / 24)
    parts = [pd.DataFrame({"Time": times, "Cell Name": cell, "DL": day.round(2)}) for cell in ("0042", "0043")]
    frame = pd.concat(parts).assign(Time=lambda table: table.Time.dt.strftime("%d/%m/%Y %H:%M"))
    text = frame.to_csv(index=False, sep=";", decimal=",")
    (tmp_path / "kpi.csv.gz").write_bytes(gzip.compress(text.encode()))
    return str(tmp_path / "kpi.csv.gz")


def test_an_export_is_forecast_in_its_own_form(counters, capsys):
    assert main(["forecast", "--data", counters, "--horizon", "2", "--table.dayfirst", "true"]) == 0
    shown = capsys.readouterr()
    assert shown.err.splitlines()[0] == "note: 'Time' is taken as the time, 'Cell Name' as the cell, DL as the activity"
    frame = pd.read_csv(io.StringIO(shown.out), dtype={"Cell Name": str})
    assert frame.columns.tolist() == ["Cell Name", "Time", "service", "y_hat"]
    assert frame["Cell Name"].tolist() == ["0042"] * 2 + ["0043"] * 2
    assert frame.Time.tolist() == ["2013-11-07 00:00:00", "2013-11-07 01:00:00"] * 2
    assert frame.y_hat.between(5, 20).all()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            [],
            r"give dayfirst=True or .* \(here: --table\.dayfirst, --table\.time_format\)",
        ),
        (["--table.time_format", "%Y"], "it does not have the form '%Y'"),
        (
            ["--table.dayfirst", "true", "--table.id_col", "Cell"],
            "no column 'Cell'; did you mean 'Cell Name'",
        ),
        (["--table.dayfirst", "true", "--table.timezone", "Europe/Milano"], "unknown time zone 'Europe/Milano'"),
    ],
)
def test_what_is_open_is_asked_for_by_flag(counters, capsys, flags, message):
    assert main(["forecast", "--data", counters, *flags]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.fullmatch(rf"simmst: .*kpi\.csv\.gz: .*{message}.*\n", shown.err), shown.err
