"""Gaussian random fields on the grid, by fast Fourier transform."""

from __future__ import annotations

import numpy as np


def fast_length(minimum: int) -> int:
    """Return the smallest length of at least ``minimum`` whose only prime factors are 2, 3 and 5.

    Example:
        >>> fast_length(41), fast_length(7)
        (45, 8)
    """
    length = max(int(minimum), 1)
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 1


def gaussian_fields(
    rng: np.random.Generator,
    height: int,
    width: int,
    correlation_cells: float,
    *,
    count: int = 1,
    smoothness: float = 0.5,
    periodic: bool = False,
) -> np.ndarray:
    r"""Draw independent stationary Gaussian random fields of zero mean and unit variance.

    White noise is filtered by the square root of the Matern spectrum, :math:`(1 + (2 \pi \ell f)^2)^{-(\nu + 1)}`; with
    ``smoothness`` 1/2 the correlation falls as :math:`\exp(-r / \ell)`. The field is drawn on a torus of at least twice
    the size of the grid, more where the correlation is long. The grid is cut out, so opposite edges are unrelated.

    Args:
        rng: source of randomness.
        height: rows.
        width: columns.
        correlation_cells: correlation length :math:`\ell` in cells.
        count: number of fields.
        smoothness: the Matern parameter :math:`\nu`.
        periodic: return fields that live on a torus of ``(height, width)``.

    Returns:
        float32 ``(count, height, width)``. The variance is one over the ensemble, not within each field.

    Example:
        >>> gaussian_fields(np.random.default_rng(0), 20, 30, 5.0, count=2).shape
        (2, 20, 30)
    """
    rows, columns = height, width
    if not periodic:
        margin = int(min(4 * correlation_cells, 4 * max(height, width)))
        rows, columns = (fast_length(max(2 * size, size + margin)) for size in (height, width))
    squared = np.fft.fftfreq(rows)[:, None] ** 2 + np.fft.rfftfreq(columns)[None] ** 2
    amplitude = (1 + (2 * np.pi * correlation_cells) ** 2 * squared) ** (-(smoothness + 1) / 2)
    # Each column of the half spectrum stands for two frequencies, except the first and, for an even width, the last.
    weight = np.full(columns // 2 + 1, 2.0)
    weight[0] = 1.0
    if columns % 2 == 0:
        weight[-1] = 1.0
    amplitude *= np.sqrt(rows * columns / (weight * amplitude**2).sum())
    noise = rng.standard_normal((count, rows, columns), dtype=np.float32)
    spectrum = np.fft.rfft2(noise) * amplitude.astype(np.float32)
    field = np.fft.irfft2(spectrum, s=(rows, columns))
    return field[:, :height, :width].astype(np.float32)
