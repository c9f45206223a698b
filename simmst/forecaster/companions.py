"""Forecasts that are learned from the last days of a series itself, and a network that is combined with them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simmst.baselines.memory_features import Features, memory_features
from simmst.baselines.ridge import RidgeOnLags
from simmst.data.batch import Batch
from simmst.evaluation import ModelPredictor
from simmst.forecaster.correction import Correction
from simmst.forecaster.recent_slots import Autoregression

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class DaysBefore:
    """Companions for a series of which earlier days are known: ridge, the mean of the slot, and corrected forecasts.

    None of them says anything about a kind of day (workday or day of rest) that it has not seen.

    Attributes:
        ridge: ridge regression on the memory.
        correction: trees that correct the network.
    """

    ridge: RidgeOnLags
    correction: Correction

    @classmethod
    def learn(
        cls, features: list[Features], network: Floats, origin: npt.NDArray[np.int64], per_day: int
    ) -> DaysBefore:
        """Learn from N windows.

        Args:
            features: features of each service; samples without a target are left out.
            network: float32 (N, T_out, K), the network's forecasts.
            origin: int64 (N,), origins of the windows.
            per_day: number of slots in a day.
        """
        ridge = RidgeOnLags().learn(features, origin, per_day)
        return cls(ridge, Correction.learn(features, network, origin, per_day))

    def forecast(self, batch: Batch, network: Floats) -> Floats:
        """Return the three forecasts of a batch, float32 (B, T_out, K, 3); NaN where there is none."""
        services = range(network.shape[-1])
        return self.from_features([memory_features(batch, k) for k in services], network)

    def from_features(self, features: list[Features], network: Floats) -> Floats:
        """Return the three forecasts of windows from the features of each service."""
        return np.stack([self._service(k, one, network[..., k]) for k, one in enumerate(features)], axis=-2)

    def _service(self, service: int, features: Features, network: Floats) -> Floats:
        """Return the three forecasts of one service, (N, T_out, 3).

        The mean of the slot is over days of the same kind, shrunk towards the mean over all days. Where the same
        weekday occurs at least twice, the mean over these days is used, shrunk towards the former.
        """
        kin, weekly = features.known_kin, features.known_namesakes
        usual = features.usual + (features.kin - features.usual) * kin / (kin + 1)
        usual += np.where(weekly > 1, (np.nan_to_num(features.namesake) - usual) * weekly / (weekly + 2), 0)
        corrected = self.correction.forecast(service, features, network)
        together = np.stack([self.ridge.forecast(service, features), usual, corrected], axis=-1)
        found: Floats = np.where(kin[..., None] > 0, together, np.float32(np.nan)).astype(np.float32, copy=False)
        return found


@dataclass(frozen=True, eq=False)
class LatestSlots:
    """The companion for a series of which no earlier day is known: an autoregression.

    Attributes:
        line: the autoregression.
    """

    line: Autoregression

    def forecast(self, batch: Batch, network: Floats) -> Floats:
        """Return the forecast of a batch, float32 (B, T_out, K, 1); NaN where there is none."""
        return self.line.forecast(batch)[..., None]


@dataclass(frozen=True, eq=False)
class Companions:
    """Forecasts that need only a few days of a series, with their weights in the combination.

    Attributes:
        learned: the companions.
        weights: float32 (T_out, K, 1 + companions), weights of the network and its companions; they are positive and
            add up to 1.
    """

    learned: DaysBefore | LatestSlots
    weights: Floats

    def combine(self, network: Floats, batch: Batch) -> Floats:
        """Combine the network's forecast of a batch with the others, float32 (B, T_out, K), on the scaler's scale.

        Where another forecast has no value, the network's value replaces it.
        """
        together = join(network, self.learned.forecast(batch, network))
        combined: Floats = (together * self.weights).sum(-1, dtype=np.float32)
        return combined


class CombinedPredictor(ModelPredictor):
    """A network with companions: its quantiles are shifted to the combined median.

    Args:
        network: predictor of a network that takes the memory.
        companions: companions learned from the series to forecast.
    """

    def __init__(self, network: ModelPredictor, companions: Companions) -> None:
        super().__init__(
            network.model,
            network.scaler,
            network.spec,
            batch_size=network.batch_size,
            precision=network.precision,
            stretch=network.stretch,
            context_days=network.context_days,
        )
        self.companions = companions

    def forecast_batch(self, batch: Batch, levels: tuple[float, ...] | None) -> Floats:
        """Forecast a batch on the scaler's scale, float32 (B, T_out, K, L)."""
        asked = (0.5,) if levels is None else levels
        known = sorted({*asked, 0.5})
        quantiles = super().forecast_batch(batch, tuple(known))
        median = quantiles[..., known.index(0.5)]
        moved = quantiles + (self.companions.combine(median, batch) - median)[..., None]
        return moved[..., [known.index(level) for level in asked]]


def join(network: Floats, companions: Floats) -> Floats:
    """Join the forecasts of the network (N, T_out, K) and, with gaps filled, of its companions (N, T_out, K, M)."""
    network = network[..., None]
    return np.concatenate([network, np.where(np.isnan(companions), network, companions)], axis=-1)
