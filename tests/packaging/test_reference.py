"""The reference names every option of every command and every environment variable that simmst reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from simmst.commands.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "reference"
# Settings of their own classes, which the API reference describes field by field.
CLASSES = ("--forecaster", "--pretraining.training", "--pretraining.network", "--city", "--pretraining")


def sections(page: str) -> dict[str, str]:
    text = (PAGES / page).read_text(encoding="utf-8")
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_is_described(name: str) -> None:
    page = sections("command-line.md")
    text = page[f"simmst {name}"] + page["Common to all commands"]
    parser = COMMANDS[name].parser()
    flags = {flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")}
    known = {flag for flag in flags if flag != "--help" and not flag.startswith(CLASSES)}
    assert known or name == "info"
    missing = {flag for flag in known if not re.search(rf"`{re.escape(flag)}[` =]", text)}
    assert missing == set()


def test_every_environment_variable_is_described() -> None:
    page = (PAGES / "configuration.md").read_text(encoding="utf-8")
    read = set()
    for room in ("simmst", "kernels", "csrc", "benchmarks", "tests"):
        for path in (ROOT / room).rglob("*.*"):
            if path.suffix in (".py", ".cpp"):
                read |= set(
                    re.findall(r"(?:environ(?:\.get)?[\[(]|getenv\()\"(\w+)\"", path.read_text(encoding="utf-8"))
                )
    ours = {name for name in read if name.startswith("SIMMST_")}
    assert {"SIMMST_CPU_ISA", "SIMMST_BACKEND"} <= ours
    assert {name for name in ours if f"`{name}`" not in page} == set()
