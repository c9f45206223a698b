from __future__ import annotations

import io

import pytest

from simmst.foundation.progress import RichProgress, quiet

rich_console = pytest.importorskip("rich.console")


def test_quiet_prints_nothing(capsys):
    quiet("pretrain", 1, 2, {"loss": 1.0})
    assert capsys.readouterr() == ("", "")


def test_bars_show_the_task_its_count_and_its_numbers():
    stream = io.StringIO()
    console = rich_console.Console(file=stream, force_terminal=True, width=120)
    with RichProgress(console) as progress:
        progress("pretrain", 3, 7, {"loss": 0.25})
        progress("finetune", 2, 2)
    text = stream.getvalue()
    for part in ("pretrain", "3/7", "loss 0.25", "finetune", "2/2"):
        assert part in text
