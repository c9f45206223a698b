"""Weights of a network and its companions, from how they would have forecast known slots."""

from __future__ import annotations

import itertools
import warnings
from functools import cache

import numpy as np
import numpy.typing as npt

from simmst.data import Scaler

# The prior puts all weight on the network. A companion must gain this much log likelihood for a weight of one.
DAYS_BEFORE = (0.0, 9.0, 9.0, 4.0)  # the network, ridge, the mean of the slot, the corrected forecast
LATEST_SLOTS = (0.0, 12.0)  # the network, the autoregression
_TELLING = 2.0  # independent observations that one slot counts as, one step ahead
_MOST_TELLING = 0.25  # most independent observations that one window counts as

Floats = npt.NDArray[np.float32]


def weigh(scaler: Scaler, together: Floats, raw: Floats, slots: int, reluctance: tuple[float, ...]) -> Floats:
    """Return weights by step and service, float32 (T_out, K, M).

    The weights are the posterior mean over a grid (Bates & Granger 1969, with a prior). The likelihood of a grid point
    comes from its absolute errors on the raw scale, taken as Laplacian and, one step ahead, independent between the
    `slots` judged; further ahead they count less. Each step also uses the errors of the steps shortly before it but of
    none after it, so that the weights of a short horizon are the start of those of a long one.

    Args:
        scaler: scaler of the forecasts.
        together: forecasts of N windows on the scaler's scale, (N, T_out, K, M).
        raw: truth in raw units, (N, T_out, K); NaN where unknown.
        slots: number of slots that the windows are spread over.
        reluctance: log likelihood that each forecast must gain for a weight of one.
    """
    horizon, services = raw.shape[1:]
    grid = _grid(together.shape[-1])
    prior = grid @ np.array(reluctance)
    errors = np.empty((horizon, len(grid), services))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=RuntimeWarning)  # a service without known values
        for step in range(horizon):
            blends = np.einsum("nkm,gm->ngk", together[:, step], grid)
            forecast = scaler.inverse(blends, axis=-1)
            errors[step] = np.nanmean(np.abs(forecast - raw[:, None, step]), axis=0)
    told = min(_TELLING * slots, _MOST_TELLING * len(raw))
    weights = np.empty((horizon, services, grid.shape[1]), dtype=np.float32)
    for step in range(horizon):
        near = errors[int(step * 0.75) : step + 1].mean(axis=0)  # (G, K)
        for k in range(services):
            doubt = np.log(near[:, k] + 1e-12) * told / np.sqrt(step + 1)
            belief = -np.nan_to_num(doubt) - prior
            share = np.exp(belief - belief.max())
            weights[step, k] = share @ grid / share.sum()
    return weights


@cache
def _grid(number: int) -> Floats:
    """Return the grid of candidate weights, float32 (G, number): all tenths that add up to 1."""
    tenths = [one for one in itertools.product(range(11), repeat=number) if sum(one) == 10]
    return np.array(tenths, dtype=np.float32) / np.float32(10)
