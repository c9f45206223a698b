"""The reporting stage: what an operator publishes about a city's activity."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from simmst.simulation.config import CityConfig
from simmst.simulation.radio.association import Association
from simmst.simulation.radio.statistical import Coverage


class ReportingModel(Protocol):
    """Anything that turns activity into published numbers."""

    def apply(
        self, config: CityConfig, activity: np.ndarray, coverage: Coverage, rng: np.random.Generator
    ) -> np.ndarray:
        """Return published numbers, float32 ``(T, K, H, W)``, NaN where missing, drawing only from ``rng``."""
        ...


class OperatorReporting:
    r"""Reporting of records that are summed by sector, spread over the sectors' coverage, rescaled, sometimes missing.

    .. math:: S_i(t) = \sum_v R_v(t) \, A_{vi} / A_v

    The spreading conserves the total (`spread_over_coverage`). The white noise of a cell's sums, the scale and the gaps
    are applied after it.

    Source:
        Barlacchi et al. 2015, "A multi-source dataset of urban life in the city of Milan and the Province of Trentino",
        Eq. 1.

    Example:
        >>> from simmst.simulation import StatisticalRadio
        >>> config, rng = CityConfig(height=4, width=5, days=1, missing_share=0.0), np.random.default_rng(0)
        >>> coverage = StatisticalRadio().coverage(config, rng)
        >>> published = OperatorReporting().apply(config, np.ones((24, 3, 4, 5)), coverage, rng)
        >>> published.shape, bool((published > 0).all())
        ((24, 3, 4, 5), True)
    """

    def apply(
        self, config: CityConfig, activity: np.ndarray, coverage: Coverage, rng: np.random.Generator
    ) -> np.ndarray:
        """Publish activity.

        Args:
            config: the city.
            activity: float ``(T, K, H, W)``, from the traffic stage.
            coverage: result of its radio stage.
            rng: source of randomness.

        Returns:
            float32 ``(T, K, H, W)`` in CDR-like units, NaN where missing.
        """
        published = spread_over_coverage(activity, coverage.association, config.coverage_spread)
        # The noise is white: a sum over n slots has 1/n of the relative variance, at any slot length.
        flicker = np.float32(config.habits.unrest * config.flicker_log_std / np.sqrt(config.step_h))
        for number, service in enumerate(config.services):
            series = published[:, number]
            series *= np.exp(flicker * rng.standard_normal(series.shape, dtype=np.float32) - flicker**2 / 2)
            series *= np.float32(service.units_per_event * config.reporting_scale)
        missing = draw_gaps(config, rng).reshape(config.num_steps, config.height, config.width)
        np.copyto(published, np.nan, where=missing[:, None])
        return published


def spread_over_coverage(activity: np.ndarray, association: Association, share: float) -> np.ndarray:
    """Sum a share of the activity by sector and spread it over the cells that the sectors cover, conserving totals.

    Args:
        activity: float ``(T, K, H, W)``.
        association: association of cells with sectors.
        share: fraction of the activity that is spread; the rest stays in its cell.

    Returns:
        float32 ``(T, K, H, W)``.
    """
    steps, services, height, width = activity.shape
    spread = np.empty((steps, services, height, width), np.float32)
    for number in range(services):
        cells = np.ascontiguousarray(activity[:, number].reshape(steps, -1).T, dtype=np.float32)
        booked = association.spread(association.gather(cells))
        booked *= np.float32(share)
        booked += np.float32(1 - share) * cells
        spread[:, number] = booked.T.reshape(steps, height, width)
    return spread


def draw_gaps(config: CityConfig, rng: np.random.Generator) -> np.ndarray:
    """Draw which slots of which cells are missing, bool ``(T, cells)``, the same for all services.

    Gaps start at random and last a geometric number of slots, with the configured mean duration or one slot if that is
    longer. Their rate allows for overlaps, so that the expected fraction of missing slots is the configured one.

    Example:
        >>> gaps = draw_gaps(CityConfig(missing_share=0.1), np.random.default_rng(0))
        >>> 0.07 < float(gaps.mean()) < 0.13
        True
    """
    steps, cells = config.num_steps, config.num_cells
    missing = np.zeros((steps, cells), bool)
    mean_length = max(config.missing_duration_h / config.step_h, 1.0)
    # The number of gaps that hit a slot is Poisson; the slot is missing when that number is not zero.
    hits = -np.log1p(-config.missing_share)
    count = int(rng.poisson(hits * steps * cells / mean_length))
    length = np.minimum(rng.geometric(1 / mean_length, count), steps)
    cell = np.repeat(rng.integers(cells, size=count), length)
    within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    # Wrapping around the end keeps every slot equally likely.
    slot = (np.repeat(rng.integers(steps, size=count), length) + within) % steps
    missing[slot, cell] = True
    return missing
