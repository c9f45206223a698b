"""Every example in a docstring runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re

import pytest

import simmst

# An editable install lists the package a second time, as simmst.simmst; __main__ runs the command when imported.
SKIPPED = re.compile(r"simmst\.(simmst\b|tests\b|benchmarks\b|_cpu$|_cuda$|__main__$)")
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(simmst.__path__, "simmst.", onerror=lambda name: None)
    if not SKIPPED.match(module.name) and not module.name.startswith("simmst.native.cuda.")  # they need a GPU
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    result = doctest.testmod(importlib.import_module(name), optionflags=flags)
    assert result.failed == 0
