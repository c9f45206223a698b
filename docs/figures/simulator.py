"""``python docs/figures/simulator.py``: the three stages of a simulated city, as `simulator.png`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from simmst.foundation.pictures import COLOURS, new_figure, save_picture
from simmst.simulation import CityConfig, SharedPresenceTraffic, StatisticalRadio, simulate_both
from simmst.simulation.streams import stream

SIDE, DAYS, CELL, SERVICE = 40, 4, 820, 2
FAULTS = {"dip_share": 1.0, "dip_hour": 4.0, "dip_level": 0.01, "spike_share": 0.01}


def draw() -> Figure:
    """Draw the figure."""
    config = CityConfig(
        seed=4, height=SIDE, width=SIDE, days=DAYS, faults=FAULTS, inter_site_distance_m=1200.0, shadowing_db=4.0
    )
    coverage = StatisticalRadio().coverage(config, stream(config.seed, config.index, "radio"))
    activity = SharedPresenceTraffic().simulate(config, coverage, stream(config.seed, config.index, "traffic"))
    both = simulate_both(config)  # draws the same radio and traffic
    serving = coverage.association.dense().argmax(0).reshape(SIDE, SIDE)

    figure = new_figure(9.2, 6.0, dpi=130)
    grid = figure.add_gridspec(2, 3, height_ratios=(1.15, 1))
    maps = (
        (serving * 7 % 20, "1. radio: the sector that serves a cell best", "tab20"),
        (np.log10(activity[:, SERVICE].mean(0) + 1), "2. traffic: log of mean events", "magma"),
        (np.log10(np.nanmean(both.reported.activity[:, SERVICE], 0) + 1), "3. reporting: what is published", "magma"),
    )
    for column, (values, title, colours) in enumerate(maps):
        axes = figure.add_subplot(grid[0, column])
        image = axes.imshow(values, origin="lower", cmap=colours)
        axes.set_title(title, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
        if column:
            figure.colorbar(image, ax=axes, shrink=0.8).ax.tick_params(labelsize=7)
    axes = figure.add_subplot(grid[1, :])
    hours = np.arange(DAYS * 24)
    clean, reported = (city.series()[:, SERVICE, CELL] for city in (both.clean, both.reported))
    wrong = both.wrong[:, SERVICE].reshape(len(hours), -1)[:, CELL]
    axes.plot(hours, clean, color=COLOURS[0], lw=1.5, label="clean")
    axes.plot(hours, reported, color="black", lw=1.0, label="reported")
    axes.plot(hours[wrong], reported[wrong], "o", color=COLOURS[1], ms=4, label="counter at fault")
    axes.set(xlim=(0, len(hours) - 1), ylabel="Internet, one cell", xlabel="hours", ylim=(0, None))
    axes.legend(fontsize=8, frameon=False, ncols=3, loc="upper right", bbox_to_anchor=(1.0, 1.16))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    save_picture(draw(), Path(__file__).with_suffix(".png"))
