"""The whole model on the compiled kernels learns as it does on plain PyTorch."""

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


def test_the_loss_curve_on_cpp_is_the_reference_s_where_every_query_is_selected():
    reference, compiled = loss_curve("reference", ALL_QUERIES), loss_curve("cpp", ALL_QUERIES)
    assert reference[-5:].mean() < 0.7 * reference[:5].mean()
    torch.testing.assert_close(compiled, reference, rtol=1e-3, atol=0)


def test_the_loss_curve_on_cpp_stays_with_the_reference_s_where_queries_are_selected():
    """Selection is discrete: a rounding can swap two queries of nearly equal measure and move a loss by a little."""
    reference, compiled = loss_curve("reference", 5), loss_curve("cpp", 5)
    torch.testing.assert_close(compiled[:10], reference[:10], rtol=0.02, atol=0)
    torch.testing.assert_close(compiled.view(5, 10).mean(1), reference.view(5, 10).mean(1), rtol=0.1, atol=0)


def test_forecasts_on_cpp_are_the_reference_s():
    torch.manual_seed(1)
    config = SimMSTNetConfig(services=("net",), input_length=12, horizon=3, label_length=6, backend="reference")
    plain = SimMSTNet(config).eval()
    compiled = SimMSTNet(SimMSTNetConfig(**{**config.to_dict(), "services": ("net",), "backend": "cpp"})).eval()
    compiled.load_state_dict(plain.state_dict())
    values, marks = torch.randn(5, 12, 1, 5, 5), torch.randn(5, 15, config.num_marks)
    torch.testing.assert_close(compiled(values, marks), plain(values, marks), rtol=1e-4, atol=1e-5)
