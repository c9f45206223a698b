"""``python docs/figures/model.py``: the parts of Sim-MSTNet and what passes between them, as `model.png`."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from simmst.foundation.pictures import COLOURS, new_figure, save_picture

BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY = COLOURS
INPUT, TIME, SPACE, TASKS, OUTPUT = "#555555", BLUE, GREEN, PURPLE, ORANGE


def box(axes: Axes, x: float, y: float, width: float, text: str, colour: str, height: float = 0.9) -> None:
    """Draw a box of one part."""
    shape = {"boxstyle": "round,pad=0.02,rounding_size=0.12", "linewidth": 1.4}
    axes.add_patch(FancyBboxPatch((x, y), width, height, edgecolor=colour, facecolor=f"{colour}18", **shape))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8.5, linespacing=1.25)


def arrow(axes: Axes, *points: tuple[float, float]) -> None:
    """Draw what passes from one part to another, along the points."""
    line = {"color": "#333333", "lw": 1.1}
    axes.plot(*zip(*points[:-1], strict=True), solid_joinstyle="round", **line)
    axes.annotate("", xy=points[-1], xytext=points[-2], arrowprops={"arrowstyle": "-|>", "shrinkA": 0, **line})


def draw() -> Figure:
    """Draw the figure."""
    figure = new_figure(9.2, 5.4, dpi=150)
    axes = figure.add_subplot()
    axes.set(xlim=(0, 12.4), ylim=(0, 7.3), aspect="equal")
    axes.axis("off")

    box(axes, 0.1, 5.9, 2.4, "window\n24 slots, K services", INPUT)
    box(axes, 0.1, 3.9, 2.4, "window of the\nneighbours, 5 x 5 cells", INPUT)
    box(axes, 0.1, 1.9, 2.4, "memory\nthe same slots of\n28 days before", INPUT, 1.1)
    box(axes, 0.1, 0.1, 2.4, "calendar", INPUT)

    box(axes, 3.2, 5.9, 2.5, "embedding, encoder:\nProbSparse attention", TIME)
    box(axes, 3.2, 3.9, 2.5, "convolutions,\nspatial attention", SPACE)
    box(axes, 3.2, 2.0, 2.5, "day attention", TIME)

    box(axes, 6.4, 5.9, 2.5, "task interaction\nover time", TASKS)
    box(axes, 6.4, 3.9, 2.5, "task interaction\nover places", TASKS)
    box(axes, 6.4, 2.0, 2.5, "highway:\nlinear autoregression", TIME)

    box(axes, 9.6, 4.9, 2.6, "fusion and decoder:\nProbSparse\ncross-attention", TASKS, 1.1)
    box(axes, 9.6, 3.3, 2.6, "quantiles that\ncannot cross", OUTPUT)
    box(axes, 9.6, 1.6, 2.6, "+ highway + mean of\nthe days before", OUTPUT)
    box(axes, 9.6, 0.1, 2.6, "forecast\nall slots, all services", OUTPUT)

    for points in (
        ((2.5, 6.35), (3.2, 6.35)),
        ((2.5, 4.35), (3.2, 4.35)),
        ((2.5, 2.45), (3.2, 2.45)),
        ((5.7, 6.35), (6.4, 6.35)),
        ((5.7, 4.35), (6.4, 4.35)),
        ((5.7, 2.45), (6.4, 2.45)),
        ((8.9, 6.35), (9.25, 6.35), (9.25, 5.75), (9.6, 5.75)),
        ((8.9, 4.35), (9.05, 4.35), (9.05, 5.45), (9.6, 5.45)),
        ((5.7, 2.7), (6.05, 2.7), (6.05, 3.4), (9.25, 3.4), (9.25, 5.15), (9.6, 5.15)),
        ((8.9, 2.45), (9.25, 2.45), (9.25, 2.05), (9.6, 2.05)),
        ((10.9, 4.9), (10.9, 4.2)),
        ((10.9, 3.3), (10.9, 2.5)),
        ((10.9, 1.6), (10.9, 1.0)),
        ((2.5, 2.75), (2.85, 2.75), (2.85, 6.1), (3.2, 6.1)),
        ((2.85, 4.1), (3.2, 4.1)),
    ):
        arrow(axes, *points)
    axes.text(2.65, 0.55, "enters every embedding and the decoder", fontsize=8, va="center", color=INPUT)
    return figure


if __name__ == "__main__":
    save_picture(draw(), Path(__file__).with_suffix(".png"))
