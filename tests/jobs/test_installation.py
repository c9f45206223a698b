from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from simmst.errors import ConfigError
from simmst.jobs import installation as info
from simmst.ops.backends import BACKENDS, OPERATORS

ROOT = Path(__file__).resolve().parents[2]


def shown(width=200):
    console = pytest.importorskip("rich.console").Console(file=io.StringIO(), width=width)
    info.show(console)
    return console.file.getvalue()


def test_facts_are_plain_data():
    facts = info.collect()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["versions"]["torch"]
    assert facts["threads"] >= 1


def test_every_operator_and_backend_has_a_row_and_a_reason():
    rows = info.collect()["backends"]
    assert [(row["operator"], row["backend"]) for row in rows] == [(o, b) for o in OPERATORS for b in BACKENDS]
    for row in rows:
        assert bool(row["reason"]) != row["available"], row
    assert all(row["available"] for row in rows if row["backend"] == "reference")


def test_the_table_shows_them():
    text = shown(width=300)
    rows = info.collect()["backends"]
    for operator in OPERATORS:
        cells = ["yes" if row["available"] else "-" for row in rows if row["operator"] == operator]
        assert re.search(rf"^ *{operator} +{' +'.join(cells)} *$", text, re.MULTILINE)
    for row in rows:
        reason = row["reason"].replace(row["operator"], "it")
        assert not reason or re.search(rf"^ *{row['backend']} .*{re.escape(reason)}", text, re.MULTILINE), row


def test_a_narrow_terminal_shows_whole_words():
    text = shown(width=60)
    assert max(map(len, text.splitlines())) <= 60
    assert "…" not in text
    assert "{'" not in text
    assert re.search(r"operator +reference +cpu +triton +cuda +chain", text)


def test_extras_follow_the_metadata(monkeypatch):
    extras = info.collect()["extras"]
    assert {"forecast", "test", "bench", "docs", "nixtla", "mtl", "raytracing"} <= set(extras)
    monkeypatch.setattr(info, "_installed", lambda package: None if package == "pandas" else "1.0")
    assert info.collect()["extras"]["forecast"] == ["pandas"]
    assert "missing: pandas" in shown()


def test_a_missing_native_module_is_told(monkeypatch):
    monkeypatch.setattr(info, "load_native", lambda name: (None, f"no {name} here"))
    native = info.collect()["native"]
    assert native == {"simmst._cpu": "no simmst._cpu here", "simmst._cuda": "no simmst._cuda here"}
    assert "no simmst._cuda here" in shown()


def test_a_wrong_instruction_set(monkeypatch):
    class Native:
        def build_info(self):
            return {"version": "0"}

        def instruction_sets(self):
            return ["portable"]

        def instruction_set(self):
            raise ValueError("SIMMST_CPU_ISA is 'z80'; this machine can run: portable")

    monkeypatch.setattr(info, "load_native", lambda name: (Native(), "") if name == "simmst._cpu" else (None, "no"))
    with pytest.raises(ConfigError, match="SIMMST_CPU_ISA is 'z80'"):
        info.collect()


def test_it_says_nothing_on_standard_error():
    pytest.importorskip("jsonargparse")
    run = subprocess.run(
        [sys.executable, "-W", "error", "-m", "simmst", "info"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "prob_sparse_attention" in run.stdout
