"""``python examples/notebooks/write.py``: every script of the folder above as a notebook, without outputs.

A script is divided by lines that begin with ``# %%``, the percent format that Jupytext and editors read. Cells with the
tag ``active-py`` belong to the script alone.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SCRIPTS = sorted(HERE.parent.glob("*.py"))
MARK = "# %%"
SCRIPT_ALONE = 'tags=["active-py"]'


def notebook(script: Path) -> dict[str, Any]:
    """Return the notebook of a script, in version 4.5 of the format."""
    head, *parts = f"\n{script.read_text(encoding='utf-8')}".split(f"\n{MARK}")
    said = ast.get_docstring(ast.parse(head)) or ""
    title, _, usage = said.partition("\n\n")
    cells = [_cell("markdown", f"# {title.rstrip('.')}"), _cell("markdown", usage)]
    for part in parts:
        options, _, text = part.partition("\n")
        if SCRIPT_ALONE in options:
            continue
        if "[markdown]" in options:
            lines = (line.removeprefix("#").removeprefix(" ") for line in text.strip().splitlines())
            cells.append(_cell("markdown", "\n".join(lines)))
        else:
            cells.append(_cell("code", text.strip()))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def text_of(script: Path) -> str:
    """Return the content of the notebook's file."""
    return json.dumps(notebook(script), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _cell(kind: str, text: str) -> dict[str, Any]:
    code: dict[str, Any] = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "id": "", "metadata": {}, "source": text.splitlines(keepends=True), **code}


if __name__ == "__main__":
    for script in SCRIPTS:
        (HERE / script.with_suffix(".ipynb").name).write_text(text_of(script), encoding="utf-8")
