"""``python docs/figures/reweighting.py``: noisy labels before and after re-weighting, as `reweighting.png`."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from simmst.foundation.pictures import new_figure, panels, save_picture
from simmst.sim2real import ReweightingConfig, reweight

STEPS = 500


def spirals(number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw points (n, 2) of two spirals, and which of them each is on."""
    label = torch.randint(0, 2, (number,), generator=generator)
    turn = 3 * torch.rand(number, generator=generator)
    angle = turn + torch.pi * label
    x = torch.stack([turn * angle.cos(), turn * angle.sin()], 1)
    return x + 0.1 * torch.randn(number, 2, generator=generator), label


def cross_entropy(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return one number a sample."""
    return nn.functional.cross_entropy(module(batch[0]), batch[1], reduction="none")


def draw() -> Figure:
    """Draw the figure: the guide's example, learned with equal and with learned weights."""
    generator = torch.Generator().manual_seed(0)
    x, label = spirals(300, generator)
    wrong = torch.rand(300, generator=generator) < 0.3
    noisy = torch.where(wrong, 1 - label, label)
    trusted, chooses, test = (spirals(number, generator) for number in (30, 30, 500))

    figure = new_figure(9.2, 3.5, dpi=140)
    edge = torch.linspace(-3.6, 3.6, 121)
    grid = torch.stack(torch.meshgrid(edge, edge, indexing="xy"), -1).reshape(-1, 2)
    rows = zip(panels(figure, 1, 2), ("unweighted", "cutting-plane"), strict=True)
    for axes, solver in rows:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
        config = ReweightingConfig(steps=STEPS, inner_lr=2.0)
        found = reweight(model, cross_entropy, (x, noisy), trusted, validation=chooses, solver=solver, config=config)
        with torch.no_grad():
            chance = model(grid).softmax(1)[:, 1].reshape(121, 121)
            accuracy = (model(test[0]).argmax(1) == test[1]).float().mean()
        axes.contourf(edge, edge, chance, levels=[0, 0.5, 1], colors=["#0072B2", "#D55E00"], alpha=0.15)
        weights = found.weights if solver == "cutting-plane" else torch.full((300,), 0.5)
        for value, colour in ((0, "#0072B2"), (1, "#D55E00")):
            on = noisy == value
            axes.scatter(*x[on].T, s=4 + 46 * weights[on], color=colour, alpha=0.75, lw=0)
        name = "all samples weigh the same" if solver == "unweighted" else "learned weights (size of the dots)"
        axes.set_title(f"{name}: {accuracy:.0%} right on test points", fontsize=9)
        axes.set(xlim=(-3.6, 3.6), ylim=(-3.6, 3.6), xticks=[], yticks=[])
    return figure


if __name__ == "__main__":
    save_picture(draw(), Path(__file__).with_suffix(".png"))
