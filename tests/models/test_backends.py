"""The whole model learns the same on the compiled kernels as on plain PyTorch."""

from __future__ import annotations

import pytest
import torch

from simmst.models import SimMSTNet, SimMSTNetConfig, masked_loss

pytest.importorskip("simmst._cpu", reason="the compiled module is not in this installation")

ALL_QUERIES = 24  # a factor at which every query is selected


def loss_curve(backend: str, factor: int, steps: int = 50) -> torch.Tensor:
    """Train for some steps on drawn windows with a pattern in them; return the loss of each step."""
    torch.manual_seed(0)
    config = SimMSTNetConfig(
        services=("call", "sms"),
        input_length=24,
        horizon=4,
        neighbourhood=3,
        width=16,
        dropout=0.1,
        factor=factor,
        backend=backend,
    )
    model = SimMSTNet(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(steps):
        phase = torch.rand(16, 1, 1, 1, 1) * 6.28
        time = torch.arange(28.0).view(1, -1, 1, 1, 1)
        series = torch.sin(0.26 * time + phase) + 0.1 * torch.randn(16, 28, 2, 3, 3)
        marks = torch.randn(16, 28, config.num_marks)
        loss = masked_loss(model(series[:, :24], marks), series[:, 24:, :, 1, 1], "huber").mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("factor", [5, ALL_QUERIES])
@pytest.mark.usefixtures("double")
def test_the_loss_curve_on_the_cpu_backend_is_the_reference_s(factor):
    """Training multiplies the first rounding by some 1e7 in 50 steps, which in float64 is still far below 1e-6."""
    reference, compiled = loss_curve("reference", factor), loss_curve("cpu", factor)
    assert reference[-5:].mean() < 0.7 * reference[:5].mean()
    torch.testing.assert_close(compiled, reference, rtol=1e-6, atol=0)


@pytest.mark.parametrize("factor", [5, ALL_QUERIES])
def test_the_loss_curve_in_float32_is_the_same_until_roundings_grow(factor):
    reference, compiled = loss_curve("reference", factor, 20), loss_curve("cpu", factor, 20)
    torch.testing.assert_close(compiled, reference, rtol=1e-3, atol=0)


def test_forecasts_on_the_cpu_backend_are_the_reference_s():
    torch.manual_seed(1)
    config = SimMSTNetConfig(services=("net",), input_length=12, horizon=3, label_length=6, backend="reference")
    plain = SimMSTNet(config).eval()
    compiled = SimMSTNet(SimMSTNetConfig(**{**config.to_dict(), "services": ("net",), "backend": "cpu"})).eval()
    compiled.load_state_dict(plain.state_dict())
    values, marks = torch.randn(5, 12, 1, 5, 5), torch.randn(5, 15, config.num_marks)
    torch.testing.assert_close(compiled(values, marks), plain(values, marks), rtol=1e-4, atol=1e-5)
