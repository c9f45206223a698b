"""Every picture of the pages is drawn by a script that runs, is shown by a page, and is light."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from simmst.foundation.pictures import save_picture

DOCS = Path(__file__).resolve().parents[2] / "docs"
SCRIPTS = sorted((DOCS / "figures").glob("*.py"))
SMALL = {"simulator": {"SIDE": 30, "DAYS": 2}, "reweighting": {"STEPS": 10}}
MOST_BYTES = 150_000


def loaded(script: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"figure_{script.stem}", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_draw(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = loaded(script)
    for name, value in SMALL.get(script.stem, {}).items():
        assert hasattr(module, name)
        monkeypatch.setattr(module, name, value)
    picture = save_picture(module.draw(), tmp_path / "picture.png")
    assert picture.stat().st_size > 10_000


def test_every_picture_has_its_script_and_its_page() -> None:
    pictures = sorted((DOCS / "figures").glob("*.png"))
    assert [path.stem for path in pictures] == [path.stem for path in SCRIPTS]
    pages = "".join(page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md"))
    for picture in pictures:
        assert f"figures/{picture.name})" in pages
        assert picture.stat().st_size < MOST_BYTES
