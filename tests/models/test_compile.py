from __future__ import annotations

import dataclasses

import pytest
import torch
from model_windows import memory_of

from simmst.models import SimMSTNet, SimMSTNetConfig, masked_loss, tasks

CONFIG = SimMSTNetConfig(
    services=("call", "internet"),
    input_length=14,
    horizon=3,
    label_length=4,
    neighbourhood=3,
    num_marks=2,
    width=8,
    num_heads=2,
    encoder_layers=1,
    feedforward=12,
    factor=2,
    dropout=0.0,
)
# With this factor every query gets real attention, so the sampled keys, which the compiler may reorder, do not matter.
ALL_SELECTED = 14
ABOUT = ("csrc/core", "csrc/cpu", "simmst/core", "simmst/models", "simmst/native/cpu", "simmst/nn", "simmst/ops")
BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow(of=ABOUT))]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def model_and_inputs(config=CONFIG):
    torch.manual_seed(0)
    model = SimMSTNet(config).double()
    torch.nn.init.normal_(model.highway.coefficients, std=0.1)
    values, marks = torch.randn(5, 14, config.num_tasks, 3, 3).double(), torch.randn(5, 17, 2).double()
    values[0, 3:5] = float("nan")
    mask = torch.ones(5, 3, 3, dtype=torch.bool)
    mask[:, 0] = False
    return model, values, marks, mask


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_forecasts_are_the_eager_ones(backend):
    model, values, marks, mask = model_and_inputs()
    model.eval()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    memory = memory_of(CONFIG)
    with torch.no_grad():
        torch.testing.assert_close(compiled(values, marks, mask=mask), model(values, marks, mask=mask))
        known, wanted = (run(values, marks, mask=mask, memory=memory) for run in (compiled, model))
        torch.testing.assert_close(known, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_training_gives_the_eager_gradients(backend, monkeypatch):
    monkeypatch.setattr(tasks, "_UNNAMED_SHARE", 0.0)  # the compiler may change the order of this draw
    # One task that interacts with itself has every part, and inductor needs half the time.
    config = dataclasses.replace(CONFIG, services=("internet",), factor=ALL_SELECTED)
    model, values, marks, mask = model_and_inputs(config)
    model.train()

    def gradients(run):
        model.zero_grad()
        loss = masked_loss(run(values, marks, mask=mask), torch.zeros(5, 3, 1).double()).sum()
        loss.backward()
        return loss.detach(), {name: value.grad.clone() for name, value in model.named_parameters()}

    eager_loss, eager = gradients(model)
    compiled_loss, compiled = gradients(torch.compile(model, fullgraph=True, backend=backend))
    torch.testing.assert_close(compiled_loss, eager_loss)
    torch.testing.assert_close(compiled, eager)
