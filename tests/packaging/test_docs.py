"""Every example of the documentation runs, and the command accepts every command line in it."""

from __future__ import annotations

import re
import shlex
import sys
import types
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from simmst.commands.main import parse

ROOT = Path(__file__).resolve().parents[2]
MADE = [ROOT / "docs" / "results" / name for name in ("quick", "full")]  # tables that a command writes
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if not any(made in page.parents for made in MADE)),
]
FENCE = re.compile(r"^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run\b[^>]*-->\s*\Z")
# The reader's own files, which no test has.
READERS_FILES = re.compile(r'"data/')


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).with_suffix("").as_posix()


class Block(NamedTuple):
    line: int  # line number of its first line of code
    code: str
    run: bool


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        if match["language"] == language:
            run = not NOT_RUN.search(text[: match.start()]) and not READERS_FILES.search(match["code"])
            found.append(Block(text.count("\n", 0, match.start("code")) + 1, match["code"], run))
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=page_name)
def test_python_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("examples")
    monkeypatch.setitem(sys.modules, "examples", module)  # where dataclasses look for the types that they name
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for block in blocks(page, "python"):
            # Empty lines above the code give tracebacks the line numbers of the page.
            compiled = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
            if block.run:
                exec(compiled, module.__dict__)


def test_marked_blocks_are_not_run(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```python\n1\n```\n\n<!-- not run: takes hours -->\n```python\n2\n```\n\n"
        '```python\nload("data/mine.npz")\n```\n\n```python\n3\n```\n',
        encoding="utf-8",
    )
    assert blocks(page, "python") == [
        Block(2, "1\n", run=True),
        Block(7, "2\n", run=False),
        Block(11, 'load("data/mine.npz")\n', run=False),
        Block(15, "3\n", run=True),
    ]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_command_lines_are_accepted(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in blocks(page, "yaml"):
        name = re.match(r"# (\S+\.yaml)\n", block.code)
        assert name, f"{page}:{block.line}: the first line of a YAML block names its file, as in '# milan.yaml'"
        Path(name[1]).write_text(block.code, encoding="utf-8")
    for block in blocks(page, "sh"):
        for command in re.split(r"\n|&&", block.code):
            words = shlex.split(command)
            if words and Path(words[0]).name == "simmst":
                parse(words[1:])


def test_getting_started_repeats_the_commands_of_the_readme():
    commands = [block.code for block in blocks(ROOT / "README.md", "sh") if ".venv/bin/pip install" in block.code]
    assert len(commands) == 2
    shown = [block.code for block in blocks(ROOT / "docs" / "guides" / "getting-started.md", "sh")]
    assert set(commands) <= set(shown)
