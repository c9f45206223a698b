from __future__ import annotations

import subprocess
import sys


def test_data_and_baselines_need_torch_and_numpy_alone():
    code = (
        "import sys, simmst.data, simmst.baselines\n"
        "optional = {'pandas', 'polars', 'sklearn', 'holidays', 'matplotlib', 'pyarrow'}\n"
        "print(sorted(optional & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
