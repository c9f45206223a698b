"""``import simmst`` needs only torch and numpy, and is fast."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import simmst

OPTIONAL = (
    "pandas",
    "polars",
    "matplotlib",
    "rich",
    "sklearn",
    "scipy",
    "holidays",
    "safetensors",
    "jsonargparse",
    "yaml",
    "triton",
)


def run_python(code: str) -> str:
    # away from the sources, which would be imported in place of the installed package
    elsewhere = tempfile.gettempdir()
    return subprocess.run(
        [sys.executable, "-c", code], cwd=elsewhere, capture_output=True, text=True, check=True
    ).stdout


def test_importing_every_room_needs_torch_and_numpy_alone():
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {OPTIONAL!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
import torch
sys.meta_path.insert(0, Refuse())
import simmst
from simmst import Forecaster, TrafficDataset
for room in ('ops', 'reference', 'nn', 'models', 'baselines', 'simulation', 'data', 'training', 'evaluation'):
    __import__('simmst.' + room)
import simmst.jobs.installation, simmst.commands.main
print('fine')
"""
    assert run_python(code).strip() == "fine"


def test_every_room_is_an_attribute():
    rooms = [path.parent.name for path in Path(simmst.__file__).parent.glob("*/__init__.py")]
    assert len(rooms) > 10
    assert set(rooms) <= set(dir(simmst))
    assert run_python("import simmst; print(simmst.sim2real.__name__)").strip() == "simmst.sim2real"


def test_a_missing_extra_is_named():
    from simmst.errors import MissingExtraError
    from simmst.foundation.extras import import_extra

    with pytest.raises(MissingExtraError, match=r"pip install 'simmst\[forecast\]'"):
        import_extra("a_package_nobody_has", extra="forecast")


def test_import_takes_under_half_a_second_beyond_torch():
    code = """
import json, time, torch, numpy
start = time.process_time()  # the wall clock also counts what else the machine does
import simmst
from simmst import Forecaster, TrafficDataset, ops, nn
print(json.dumps(time.process_time() - start))
"""
    seconds = sorted(json.loads(run_python(code)) for _ in range(5))[0]
    assert seconds < 0.5


def test_optional_packages_are_not_imported_with_simmst():
    code = f"""
import sys, torch
before = set(sys.modules)
import simmst
from simmst import Forecaster, ops, nn
print(sorted(set({OPTIONAL!r}) & (set(sys.modules) - before)))
"""
    assert run_python(code).strip() == "[]"


def test_a_forecast_imports_no_compiler():
    code = """
import sys, torch
from simmst.nn import ProbSparseAttention
with torch.no_grad():
    ProbSparseAttention(8, 2).eval()(torch.zeros(1, 40, 8))
print([name for name in ('torch._dynamo', 'torch._inductor') if name in sys.modules])
"""
    assert run_python(code).strip() == "[]"  # importing them takes more than a second
