"""Training flags are restored."""

import pytest
from torch import nn

from simmst.foundation.modes import evaluating


def test_every_layer_has_its_own_flag_back_after_an_error_too():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2).eval(), nn.Dropout()))
    model.append(model[0])  # shared
    before = [layer.training for layer in model.modules()]
    seen = []

    def fail():
        with evaluating(model):
            seen.extend(layer.training for layer in model.modules())
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert not any(seen)
    assert [layer.training for layer in model.modules()] == before == [True, True, True, False, True]
