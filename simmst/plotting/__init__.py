"""Pictures of a run: matplotlib figures and one HTML page.

Every ``plot_`` function returns a new figure that pyplot does not manage; ``figure.savefig("map.png")`` writes it.
"""

from __future__ import annotations

from simmst.plotting.curves import plot_errors, plot_losses, plot_task_weights
from simmst.plotting.maps import plot_error_map, plot_map
from simmst.plotting.page import Page, write_page
from simmst.plotting.series import plot_forecast, plot_series
from simmst.plotting.weights import plot_weights

__all__ = [
    "Page",
    "plot_error_map",
    "plot_errors",
    "plot_forecast",
    "plot_losses",
    "plot_map",
    "plot_series",
    "plot_task_weights",
    "plot_weights",
    "write_page",
]
