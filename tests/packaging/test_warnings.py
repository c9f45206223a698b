"""What other packages announce to change fails the suite where simmst is what uses it."""

from __future__ import annotations

import warnings

import pytest


@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning])
def test_a_warning_of_a_change_is_an_error_in_simmst_alone(category: type[Warning]) -> None:
    with pytest.raises(category, match="use another"):
        warnings.warn_explicit("use another", category, "api.py", 1, module="simmst.ops.prob_sparse_attention.api")
    with warnings.catch_warnings(record=True) as told:
        warnings.warn_explicit("use another", category, "api.py", 1, module="torch.compiler")
    assert len(told) == 1
