"""``python docs/figures/forecast.py``: a week of forecasts of a real city that the shipped weights never saw.

Draws `forecast.png` from `milan_block5x5_internet_10min.npz` in the folder that SIMMST_DATA names.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from simmst import Forecaster
from simmst.data import load
from simmst.foundation.pictures import COLOURS, new_figure, panels, save_picture

FILE, KNOWN_DAYS, TESTED_DAYS, HORIZON, CELL = "milan_block5x5_internet_10min", 16, 7, 24, 12
START = "2013-11-15"  # two days before the first forecast


def draw() -> Figure:
    """Draw the figure."""
    city = load(FILE).resample(60)
    truth = city.series()[:, 0, CELL]
    first = KNOWN_DAYS * 24
    forecasts = []
    for origin in range(first, first + TESTED_DAYS * 24, HORIZON):
        frame = Forecaster.pretrained(horizon=HORIZON).predict(city.slice_steps(0, origin), levels=(80,))
        forecasts.append(frame[frame.unique_id == city.unique_ids()[CELL]])
    point, low, high = (
        np.concatenate([frame[name].to_numpy(float) for frame in forecasts])
        for name in ("y_hat", "y_hat-lo-80", "y_hat-hi-80")
    )

    figure = new_figure(8.6, 3.0, dpi=150)
    (axes,) = panels(figure, 1, 1)
    shown = np.arange(first - 48, first + len(point))
    ahead = np.arange(first, first + len(point))
    axes.fill_between(ahead, low, high, color=COLOURS[1], alpha=0.25, lw=0, label="80 % interval")
    axes.plot(shown, truth[shown], color="black", lw=1.1, label="truth")
    axes.plot(ahead, point, color=COLOURS[1], lw=1.5, label="forecast for the next 24 hours, made every midnight")
    axes.axvline(first, color="#555555", lw=0.8, ls="--")
    days = np.arange(first - 48, first + len(point) + 1, 24)
    names = [str(np.datetime64(START, "D") + day)[5:] for day in range(len(days))]
    axes.set_xticks(days, names)
    axes.set(xlim=(shown[0], ahead[-1]), ylabel="Internet activity", title="Milan, one cell, November 2013")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8.5, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    save_picture(draw(), Path(__file__).with_suffix(".png"))
