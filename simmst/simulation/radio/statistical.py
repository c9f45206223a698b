"""The radio stage: which sectors serve which cells, and how well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from simmst.simulation.config import CityConfig
from simmst.simulation.fields import fast_length, gaussian_fields
from simmst.simulation.radio.association import Association
from simmst.simulation.radio.path_loss import line_of_sight_probability, path_loss_db

SECTORS_PER_SITE = 3
USER_HEIGHT_M = 1.5
NOISE_FIGURE_DB = 9.0
ANTENNA_GAIN_DBI = 8.0  # TR 38.901 Table 7.3-1, like the next two
BEAMWIDTH_DEG = 65.0
SIDE_LOBE_DB = 30.0
# In the standard the vertical beam of a single element is 65 degrees too; macro sites use columns of elements, with a
# beam of about 10 degrees.
VERTICAL_BEAMWIDTH_DEG = 10.0
LATTICE_REACH = 3  # a cell hears the 7 x 7 sites around it
MAX_SERVING = 8  # sectors that share a cell, at most
MIN_SHARE = 1e-3  # of the strongest sector's share
SHADOW_FIELDS = 16
UNHEARD_DBM = -300.0
CHUNK_CELLS = 1024


@dataclass(frozen=True, eq=False)
class Coverage:
    """Result of the radio stage for the later stages.

    Attributes:
        association: shares of sectors in cells; the shares of each cell sum to one.
        sinr_db: float32 ``(cells,)``, signal to interference and noise of the strongest sector at full load, in dB.
            Cells are in row-major order, row 0 south.
    """

    association: Association
    sinr_db: np.ndarray


class RadioModel(Protocol):
    """Anything that turns a configuration into coverage: statistics here, ray tracing elsewhere."""

    def coverage(self, config: CityConfig, rng: np.random.Generator) -> Coverage:
        """Return the coverage of a city, drawing only from ``rng``."""
        ...


@dataclass(frozen=True, eq=False)
class Sites:
    """A jittered hexagonal lattice; rows and columns reach ``LATTICE_REACH`` sites beyond the grid."""

    position_m: np.ndarray  # (rows, columns, 2), x east and y north of the grid's south-west corner
    azimuth_rad: np.ndarray  # (rows, columns), of the first sector
    origin_m: np.ndarray  # (2,), of the lattice point (LATTICE_REACH, LATTICE_REACH)


class SiteTracing(Protocol):
    """Anything that computes a received power to use in place of the statistical one."""

    def __call__(self, config: CityConfig, sites: Sites) -> np.ndarray:
        """Return the received power in dBm, ``(sites, 3, cells)``, NaN where it is unknown."""
        ...


class StatisticalRadio:
    """Three-sector sites on a jittered hexagonal lattice, with the path loss of 3GPP TR 38.901.

    Every cell hears the 49 sites around it. Line of sight is drawn per link from the standard's probability. Shadowing
    is log-normal, with an exponential correlation in space and a correlation of one half between sites. Sectors have
    the standard's antenna pattern with a downward tilt. A sector that is received ``d`` dB below the strongest gets a
    share of a cell in proportion to :math:`2^{-d / s}`, with ``s`` the handover softness; the shares of the strongest
    sectors, at most eight, sum to one.

    Source:
        3GPP TR 38.901 v17, Tables 7.3-1, 7.4.1-1 and 7.4.2-1, section 7.4.4.

    Example:
        >>> coverage = StatisticalRadio().coverage(CityConfig(height=4, width=5), np.random.default_rng(0))
        >>> coverage.sinr_db.shape, coverage.association.num_cells
        ((20,), 20)
    """

    def coverage(self, config: CityConfig, rng: np.random.Generator, *, tracing: SiteTracing | None = None) -> Coverage:
        """Draw the sites and links of a city and associate its cells with sectors.

        Args:
            config: the city.
            rng: source of randomness.
            tracing: source of a power that replaces the statistical one in the cells where it is known; None uses the
                statistical power everywhere.

        Returns:
            The coverage, cells in row-major order.
        """
        sites = _draw_sites(config, rng)
        num_sites = sites.azimuth_rad.size
        cell_y, cell_x = np.divmod(np.arange(config.num_cells), config.width)
        shadow = _Shadowing(config, rng, num_sites)
        traced_dbm = None if tracing is None else tracing(config, sites)
        sector = np.empty((config.num_cells, MAX_SERVING), np.int64)
        share = np.empty((config.num_cells, MAX_SERVING), np.float32)
        sinr_db = np.empty(config.num_cells, np.float32)
        for first in range(0, config.num_cells, CHUNK_CELLS):
            part = slice(first, min(first + CHUNK_CELLS, config.num_cells))
            site, power_dbm = _received_power(config, rng, sites, shadow, cell_y[part], cell_x[part])
            if traced_dbm is not None:
                power_dbm = _prefer_traced(power_dbm, traced_dbm[:, :, part], site)
            sector[part], share[part], sinr_db[part] = _associate(config, site, power_dbm)
        return Coverage(Association.from_shares(sector, share), sinr_db)


def _draw_sites(config: CityConfig, rng: np.random.Generator) -> Sites:
    """Draw a lattice that covers the grid with ``LATTICE_REACH`` sites to spare on every side."""
    distance = config.inter_site_distance_m
    row_m = distance * np.sqrt(3) / 2
    origin = -rng.random(2) * np.array([distance, row_m])
    columns = int(np.ceil((config.width * config.cell_m - origin[0]) / distance)) + 2 * LATTICE_REACH + 2
    rows = int(np.ceil((config.height * config.cell_m - origin[1]) / row_m)) + 2 * LATTICE_REACH + 2
    row, column = np.mgrid[:rows, :columns] - LATTICE_REACH
    position = np.stack([(column + 0.5 * (row % 2)) * distance, row * row_m], axis=-1) + origin
    position += config.site_jitter * distance * rng.standard_normal(position.shape)
    return Sites(position, rng.uniform(0, 2 * np.pi, (rows, columns)), origin)


class _Shadowing:
    """Shadowing of every site at every cell: cyclic shifts of a few fields on a torus, plus a part common to all sites.

    Drawing one field per site would cost far more than everything else. Shifted copies of a pool of fields have the
    same distribution for each site, and the sites are nearly independent.
    """

    def __init__(self, config: CityConfig, rng: np.random.Generator, num_sites: int) -> None:
        """Draw the pool and each site's shift."""
        correlation = config.shadowing_correlation_m / config.cell_m
        self.rows, self.columns = (fast_length(max(2 * n, 32)) for n in (config.height, config.width))
        count = SHADOW_FIELDS if config.num_cells <= 4 * CHUNK_CELLS else SHADOW_FIELDS // 4
        shape = (self.rows, self.columns)
        self.pool = gaussian_fields(rng, *shape, correlation, count=count, periodic=True)
        self.common = gaussian_fields(rng, config.height, config.width, correlation)[0]
        self.field = rng.integers(count, size=num_sites)
        self.shift_y = rng.integers(self.rows, size=num_sites)
        self.shift_x = rng.integers(self.columns, size=num_sites)
        self.std_db = config.shadowing_db

    def loss_db(self, site: np.ndarray, cell_y: np.ndarray, cell_x: np.ndarray) -> np.ndarray:
        """Return the loss in dB, ``(cells, candidates)``, with correlation one half between sites."""
        y = (cell_y[:, None] + self.shift_y[site]) % self.rows
        x = (cell_x[:, None] + self.shift_x[site]) % self.columns
        own = self.pool[self.field[site], y, x]
        loss: np.ndarray = self.std_db * np.sqrt(0.5) * (own + self.common[cell_y, cell_x][:, None])
        return loss


def _received_power(
    config: CityConfig,
    rng: np.random.Generator,
    sites: Sites,
    shadow: _Shadowing,
    cell_y: np.ndarray,
    cell_x: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return each cell's candidate sites ``(cells, 49)`` and their sectors' power in dBm ``(cells, 49, 3)``."""
    columns = sites.azimuth_rad.shape[1]
    distance = config.inter_site_distance_m
    point = (np.stack([cell_x, cell_y], axis=-1) + 0.5) * config.cell_m
    row = np.rint((point[:, 1] - sites.origin_m[1]) / (distance * np.sqrt(3) / 2)).astype(np.int64)
    column = np.rint((point[:, 0] - sites.origin_m[0]) / distance - 0.5 * (row % 2)).astype(np.int64)
    window_y, window_x = (w.ravel() for w in np.mgrid[: 2 * LATTICE_REACH + 1, : 2 * LATTICE_REACH + 1])
    site = (row[:, None] + window_y) * columns + column[:, None] + window_x
    offset = point[:, None] - sites.position_m.reshape(-1, 2)[site]
    # A user is somewhere in the cell, so the distance is at least the shortest one in TR 38.901 (10 m).
    ground_m = np.maximum(np.hypot(offset[..., 0], offset[..., 1]), 10.0)
    sight = rng.random(ground_m.shape) < line_of_sight_probability(config.scenario, ground_m)
    loss_db = path_loss_db(
        config.scenario,
        ground_m,
        line_of_sight=sight,
        carrier_ghz=config.carrier_ghz,
        antenna_height_m=config.antenna_height_m,
        user_height_m=USER_HEIGHT_M,
        nlos_slope=config.nlos_slope,
    )
    loss_db = loss_db + shadow.loss_db(site, cell_y, cell_x)
    azimuth = np.arctan2(offset[..., 1], offset[..., 0]) - sites.azimuth_rad.ravel()[site]
    depression = np.degrees(np.arctan2(config.antenna_height_m - USER_HEIGHT_M, ground_m))
    sector_azimuth = np.arange(SECTORS_PER_SITE) * (2 * np.pi / SECTORS_PER_SITE)
    gain_db = antenna_gain_db(
        np.degrees(azimuth[..., None] - sector_azimuth), (depression - config.tilt_deg)[..., None]
    )
    return site, config.transmit_power_dbm + gain_db - loss_db[..., None]


def _prefer_traced(power_dbm: np.ndarray, traced_dbm: np.ndarray, site: np.ndarray) -> np.ndarray:
    """Use the traced power in cells that any ray reached; sectors whose rays did not reach such a cell are unheard."""
    cells = np.arange(len(site))[:, None, None]
    sector = np.arange(SECTORS_PER_SITE)
    traced = traced_dbm[site[..., None], sector, cells]  # (cells, 49, 3)
    reached = ~np.isnan(traced_dbm).all(axis=(0, 1))
    traced = np.where(np.isnan(traced), UNHEARD_DBM, traced)
    return np.where(reached[:, None, None], traced, power_dbm)


def antenna_gain_db(azimuth_deg: np.ndarray, elevation_deg: np.ndarray) -> np.ndarray:
    """Return the gain of a sector antenna in dBi.

    Args:
        azimuth_deg: horizontal angle off the main beam, of any size.
        elevation_deg: vertical angle off the main beam; broadcast against the azimuth.

    Returns:
        Gain of the broadcast shape: 8 dBi in the beam, 30 dB less behind it.

    Source:
        3GPP TR 38.901, Table 7.3-1, with a vertical beam of 10 degrees.

    Example:
        >>> antenna_gain_db(np.array([0.0, 32.5, 180.0]), np.zeros(3)).tolist()
        [8.0, 5.0, -22.0]
    """
    wrapped = (azimuth_deg + 180.0) % 360.0 - 180.0
    horizontal = np.minimum(12 * (wrapped / BEAMWIDTH_DEG) ** 2, SIDE_LOBE_DB)
    vertical = np.minimum(12 * (elevation_deg / VERTICAL_BEAMWIDTH_DEG) ** 2, SIDE_LOBE_DB)
    gain: np.ndarray = ANTENNA_GAIN_DBI - np.minimum(horizontal + vertical, SIDE_LOBE_DB)
    return gain


def _associate(
    config: CityConfig, site: np.ndarray, power_dbm: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return sector numbers and shares ``(cells, MAX_SERVING)`` and the SINR in dB ``(cells,)``."""
    cells = len(site)
    sector = (site[..., None] * SECTORS_PER_SITE + np.arange(SECTORS_PER_SITE)).reshape(cells, -1)
    power = power_dbm.reshape(cells, -1)
    chosen = np.argpartition(-power, MAX_SERVING, axis=1)[:, :MAX_SERVING]
    strongest = power.max(axis=1, keepdims=True)
    deficit_db = strongest - np.take_along_axis(power, chosen, axis=1)
    share = 2.0 ** (-deficit_db / config.handover_softness_db)
    share[share < MIN_SHARE] = 0.0
    share /= share.sum(axis=1, keepdims=True)
    # Relative to the strongest, so that faint cells do not underflow.
    interference = (10 ** ((power - strongest) / 10)).sum(axis=1) - 1.0
    noise_dbm = -174.0 + 10 * np.log10(config.bandwidth_mhz * 1e6) + NOISE_FIGURE_DB
    noise = 10 ** ((noise_dbm - strongest[:, 0]) / 10)
    return np.take_along_axis(sector, chosen, axis=1), share, -10 * np.log10(np.maximum(interference, 0.0) + noise)
