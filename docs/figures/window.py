"""``python docs/figures/window.py``: what the shipped weights see of a city that they never saw, as `window.png`."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from simmst import Forecaster
from simmst.foundation.pictures import COLOURS, new_figure, panels, save_picture
from simmst.simulation import surrogate_city

DAYS, SHOWN, HORIZON, CELL, SEED = 16, 5, 12, 12, 3
ORIGIN = (DAYS - 2) * 24 + 8


def draw() -> Figure:
    """Draw the figure."""
    city = surrogate_city(SEED, height=5, width=5, days=DAYS, services=("internet",))
    truth = city.series()[:, 0, CELL]
    known = city.slice_steps(0, ORIGIN)
    frame = Forecaster.pretrained(horizon=HORIZON).predict(known, levels=(80,))
    frame = frame[frame.unique_id == city.unique_ids()[CELL]]

    figure = new_figure(7.4, 3.6, dpi=180)
    (axes,) = panels(figure, 1, 1)
    first = ORIGIN - SHOWN * 24
    hours = range(first, ORIGIN + HORIZON)
    ahead = range(ORIGIN, ORIGIN + HORIZON)
    for day in range(1, SHOWN + 1):
        start, end = ORIGIN - day * 24, ORIGIN - day * 24 + HORIZON
        label = "memory: the same slots on days before" if day == 1 else None
        axes.axvspan(start + 0.5, end - 0.5, ymax=0.04, color=COLOURS[2], alpha=0.5, lw=0, label=label)
    axes.axvspan(ORIGIN - 24, ORIGIN, color=COLOURS[5], alpha=0.25, lw=0, label="window: the latest 24 slots")
    axes.axvline(ORIGIN, color="#555555", lw=1, ls="--")
    axes.plot(hours, truth[list(hours)], color="black", lw=1.2, label="truth")
    axes.plot(ahead, frame.y_hat, color=COLOURS[1], lw=1.8, label="forecast, no training")
    low, high = frame["y_hat-lo-80"].astype(float), frame["y_hat-hi-80"].astype(float)
    axes.fill_between(ahead, low, high, color=COLOURS[1], alpha=0.25, lw=0, label="80 % interval")
    axes.set(
        xlim=(first, ORIGIN + HORIZON - 1),
        xlabel="days before and after the origin",
        ylabel="Internet, one cell",
        title="SURROGATE: a simulated city that the model never saw",
    )
    axes.set_xticks(
        [ORIGIN + 24 * day for day in range(-SHOWN, 2)], [f"{day:+d}" if day else "origin" for day in range(-SHOWN, 2)]
    )
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8.5, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    save_picture(draw(), Path(__file__).with_suffix(".png"))
