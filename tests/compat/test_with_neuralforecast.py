"""The whole Informer of neuralforecast, if it is installed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simmst.compat import restore, swap

pytest.importorskip("neuralforecast", reason="comes with the extra nixtla")

import numpy as np
import pandas as pd
from neuralforecast import NeuralForecast
from neuralforecast.models import Informer


def informer(**settings: Any) -> nn.Module:
    options = {"hidden_size": 16, "n_head": 2, "conv_hidden_size": 8, "factor": 1, "max_steps": 2, "dropout": 0.0}
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    return Informer(h=12, input_size=48, batch_size=2, windows_batch_size=4, **quiet, **(options | settings))


def run(model: nn.Module) -> Tensor:
    windows = {"insample_y": torch.randn(3, 48, 1, generator=torch.Generator().manual_seed(0)), "futr_exog": None}
    torch.manual_seed(4)
    return model(windows)


@pytest.mark.parametrize("training", [False, True])
def test_exact_gives_the_forecasts_of_the_library(training: bool) -> None:
    model = informer().train(training)
    expected = run(model)
    assert swap(model, exact=True) == 4
    torch.testing.assert_close(run(model), expected, rtol=0, atol=1e-5)


def test_the_layout_is_mended_by_default_and_kept_on_request() -> None:
    model = informer(factor=30).eval()  # every query is selected, so samples do not matter
    expected = run(model)
    swap(model, keep_layout=True)
    torch.testing.assert_close(run(model), expected, rtol=0, atol=1e-5)
    swap(model)
    assert (run(model) - expected).abs().max() > 1e-3
    restore(model)
    torch.testing.assert_close(run(model), expected)


def test_fits_and_predicts() -> None:
    hours = pd.date_range("2013-11-04", periods=120, freq="h")
    frame = pd.concat(
        pd.DataFrame({"unique_id": name, "ds": hours, "y": np.sin(np.arange(120) / 4 + phase)})
        for phase, name in enumerate(("a", "b"))
    )
    forecaster = NeuralForecast(models=[informer()], freq="h")
    assert swap(forecaster) == 4
    forecaster.fit(frame)
    assert sum(type(each).__name__ == "FastProbAttention" for each in forecaster.models[0].modules()) == 4
    first = forecaster.predict()
    assert len(first) == 24
    assert np.isfinite(first["Informer"]).all()
    pd.testing.assert_frame_equal(forecaster.predict(), first)
