"""No name means two things: training and the engine of re-weighting share no public name."""

from __future__ import annotations

import ast
from pathlib import Path

ROOMS = Path(__file__).resolve().parents[2] / "simmst"


def defined_in(room):
    """Return the public names that the modules of a room define at the top level."""
    names = set()
    for path in (ROOMS / room).rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                names.add(node.name)
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def test_training_and_the_engine_of_reweighting_share_no_name():
    assert len(defined_in("training")) > 40
    assert defined_in("training") & defined_in("sim2real") == set()
