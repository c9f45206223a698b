"""The shape of a simulated city on its grid."""

from __future__ import annotations

import numpy as np

from simmst.data.grids import load_grid
from simmst.errors import ConfigError
from simmst.simulation.config import CityConfig


def outline_mask(config: CityConfig) -> np.ndarray:
    """Return which cells lie inside a city's outline.

    Cells of the grid outside the outline are simulated but not published.

    Args:
        config: the city. The outline ``"rectangle"`` is the whole grid, ``"disc"`` the ellipse that touches its sides,
            and ``"trento"`` the official raster of the Trento province, scaled to the grid (unchanged on 98 x 117
            cells).

    Returns:
        bool ``(H, W)``, row 0 south.

    Raises:
        ConfigError: the outline is Trento's and the official grids file is missing, or no cell lies inside.

    Example:
        >>> outline_mask(CityConfig(height=3, width=5, outline="disc")).astype(int).tolist()
        [[0, 1, 1, 1, 0], [1, 1, 1, 1, 1], [0, 1, 1, 1, 0]]
    """
    shape = (config.height, config.width)
    if config.outline == "rectangle":
        return np.ones(shape, dtype=bool)
    row, column = ((np.arange(n) + 0.5) / n for n in shape)
    if config.outline == "disc":
        return np.add.outer((2 * row - 1) ** 2, (2 * column - 1) ** 2) <= 1.0
    grid = load_grid(config.outline)
    if not grid.official:
        raise ConfigError(
            f"outline {config.outline!r} needs the official grids file, which is not in the data folder; set "
            "SIMMST_DATA to the folder that holds it, or choose outline 'disc'"
        )
    rows, columns = (np.floor(part * n).astype(int) for part, n in zip((row, column), grid.mask.shape, strict=True))
    mask: np.ndarray = grid.mask[np.ix_(rows, columns)]
    if not mask.any():
        raise ConfigError(
            f"no cell of a {shape[0]} x {shape[1]} grid lies inside {config.outline!r}; give it more cells"
        )
    return mask
