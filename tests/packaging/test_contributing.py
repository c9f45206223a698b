"""docs/developers/house.md agrees with the sources: the rooms, and the files and names of its walks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "developers"
PAGE = (PAGES / "house.md").read_text(encoding="utf-8")
STEP = re.compile(r"^\|(?:[^|]*\|)? `([^`|]+\.\w+)` \| ((?:`\w+`(?:, )?)+) \|", re.MULTILINE)


def test_every_step_of_the_walks_is_there() -> None:
    steps = STEP.findall(PAGE)
    assert len(steps) > 25
    for name, words in steps:
        text = (ROOT / name).read_text(encoding="utf-8")
        for word in re.findall(r"\w+", words):
            assert re.search(rf"\b{word}\b", text), f"{name} has no {word}"


@pytest.mark.parametrize("page", ["house", "adding"])
def test_every_path_that_a_page_names_is_there(page: str) -> None:
    adding = (PAGES / "adding.md").read_text(encoding="utf-8")
    added = set(re.findall(r"^```python\n# (\S+)", adding, re.MULTILINE))
    named = re.findall(
        r"`((?:simmst|csrc|kernels|tests|benchmarks|docs|\.ci)/[\w./]*)`",
        (PAGES / f"{page}.md").read_text(encoding="utf-8"),
    )
    assert named
    assert not [name for name in named if not (ROOT / name).exists() and name not in added]


def test_every_room_has_its_row() -> None:
    rooms = {path.name for path in (ROOT / "simmst").iterdir() if path.is_dir() and any(path.glob("*.py"))} - {
        "kernels"
    }
    alone = {path.name for path in (ROOT / "simmst").glob("*.py")} - {"__init__.py", "__main__.py"}
    rows = set(re.findall(r"^\| `simmst/(\w+(?:/|\.py))` \|", PAGE, re.MULTILINE))
    assert rows == {f"{room}/" for room in rooms} | alone
