"""Small re-weighting problems: simulated samples, some of which are corrupted, and a few real ones."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Small(NamedTuple):
    module: nn.Module
    simulated: tuple[Tensor, Tensor]
    real: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    corrupted: Tensor

    def error(self) -> float:
        """Return the mean squared error of the module on the test samples."""
        with torch.no_grad():
            return float((self.module(self.test[0]).squeeze(1) - self.test[1]).square().mean())

    def auc(self, weights: Tensor) -> float:
        """Return the chance that a clean sample has a larger weight than a corrupted one."""
        clean, bad = weights[~self.corrupted], weights[self.corrupted]
        above = (clean[:, None] > bad).double().mean() + 0.5 * (clean[:, None] == bad).double().mean()
        return float(above)


def half_square(module: nn.Module, batch: Any) -> Tensor:
    return (module(batch[0]).squeeze(1) - batch[1]).square() / 2


def linear(
    seed: int,
    *,
    features: int = 20,
    simulated: int = 300,
    real: int = 60,
    corrupted: float = 0.4,
    noise: float = 0.5,
    gap: float = 0.1,
    dtype: torch.dtype = torch.float64,
) -> Small:
    """Draw a linear law; corrupted simulated samples follow the opposite law, clean ones one with a small gap."""
    g = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=dtype)

    law = randn(features) * 2 / features**0.5
    x = randn(simulated, features)
    y = x @ (law + gap * randn(features) / features**0.5) + noise * randn(simulated)
    bad = torch.zeros(simulated, dtype=torch.bool)
    bad[torch.randperm(simulated, generator=g)[: round(corrupted * simulated)]] = True
    y[bad] = -x[bad] @ law + noise * randn(int(bad.sum()))
    x_real, x_test = randn(real, features), randn(4000, features)
    real_pair = x_real, x_real @ law + noise * randn(real)
    test_pair = x_test, x_test @ law + noise * randn(4000)
    module = nn.Linear(features, 1, bias=False).to(dtype)
    nn.init.zeros_(module.weight)
    return Small(module, (x, y), real_pair, test_pair, bad)


def curved(seed: int, *, simulated: int = 400, real: int = 40, hidden: int = 24, corrupted: float = 0.4) -> Small:
    """Draw a smooth law of eight features and a small network; corrupted samples follow its opposite and another."""
    g = torch.Generator().manual_seed(seed)
    features = 8

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    one, two = randn(features, 4) / features**0.5, randn(features, 4) / features**0.5

    def law(x: Tensor) -> Tensor:
        return torch.tanh(x @ one * 1.5).sum(1) + 0.5 * (x @ one[:, 0])

    x = randn(simulated, features)
    bad = torch.rand(simulated, generator=g, dtype=torch.float64) < corrupted
    clean_y = law(x) + 0.15 * torch.sin(x[:, 0])
    y = torch.where(bad, -law(x) + torch.tanh(x @ two).sum(1), clean_y) + 0.1 * randn(simulated)
    x_real = randn(real, features)
    y_real = law(x_real) + 0.1 * randn(real)
    x_test = randn(3000, features)
    module = nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, 1)).double()
    for layer in (module[0], module[2]):
        layer.weight.data = (randn(layer.in_features, layer.out_features) / layer.in_features**0.5).T.contiguous()
        nn.init.zeros_(layer.bias)
    return Small(module, (x, y), (x_real, y_real), (x_test, law(x_test)), bad)
