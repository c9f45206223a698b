"""Combination of a network's forecasts with forecasts learned from the last days of the series itself."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from simmst.baselines.memory_features import Features, concat_features, memory_features
from simmst.data import TrafficDataset, Windows
from simmst.evaluation import ModelPredictor, believed_stretch, stretch_of
from simmst.forecaster.companions import CombinedPredictor, Companions, DaysBefore, LatestSlots, join
from simmst.forecaster.covariate_effect import CovariateEffect, refuse_missing
from simmst.forecaster.recent_slots import FEWEST_SLOTS, LATEST, Autoregression
from simmst.forecaster.weighing import DAYS_BEFORE, LATEST_SLOTS, weigh
from simmst.foundation.modes import evaluating
from simmst.foundation.threads import in_threads

CONTEXT_DAYS = 28
_WINDOWS = (4096, 16384)  # most windows that the companions learn from, for long horizons and for short ones
_STEPS = 49_152  # steps ahead in these windows, of all services, between the two
_LEARNED = 4096  # most windows that the autoregression learns from
_JUDGED = 2048  # most windows that it is judged on
_LEVELS = (0.1, 0.5, 0.9)

Floats = npt.NDArray[np.float32]


class InContextPredictor(ModelPredictor):
    """A network whose forecasts each call combines with companions learned from the days before the first origin.

    The companions learn nothing from slots at or after the first origin. The prior favours the network: the fewer days
    there are, the closer the combination stays to its forecast (Bates & Granger 1969, with a prior). Arguments and
    attributes are those of `ModelPredictor`; single windows are forecast by the network alone.

    Example:
        >>> from simmst.forecaster.zero_shot import ZeroShotPredictor
        >>> from simmst.pretrained import load_pretrained
        >>> hours = np.arange(96) * 3600
        >>> city = TrafficDataset.from_arrays(np.ones((96, 2, 2)), hours, services=["internet"])
        >>> alone = ZeroShotPredictor(load_pretrained(), 3).alone(city, range(96))
        >>> InContextPredictor(alone.model, alone.scaler, alone.spec).predict(city, np.array([96])).shape
        (1, 4, 3, 1)
    """

    def on(self, dataset: TrafficDataset, origins: npt.NDArray[np.int64]) -> ModelPredictor:
        """Return the predictor of a data set, with companions learned before the first origin."""
        self._check_services(dataset)
        return combined(self, dataset, known_before(dataset, origins, self.context_days), calibrate=False)

    def _predict(
        self, dataset: TrafficDataset, origins: npt.NDArray[np.int64], levels: tuple[float, ...] | None
    ) -> Floats:
        refuse_missing(dataset, origins, self.spec.horizon)
        found = self.on(dataset, origins)
        alone = found is self
        forecast = (super()._predict if alone else found._predict)(dataset, origins, levels)
        return with_covariates(self, dataset, origins, forecast)


def known_before(dataset: TrafficDataset, origins: npt.NDArray[np.int64], context_days: int | None) -> range:
    """Return the slots before the first origin that a forecast may use, at most `context_days` days."""
    first = min(int(np.min(origins, initial=dataset.num_steps)), dataset.num_steps)
    days = CONTEXT_DAYS if context_days is None else context_days
    return range(max(first - days * dataset.steps_per_day, 0), max(first, 1))


def with_covariates(
    network: ModelPredictor,
    dataset: TrafficDataset,
    origins: npt.NDArray[np.int64],
    forecast: Floats,
    *,
    companions: bool = True,
) -> Floats:
    """Correct a forecast by the effect of the covariates; return it unchanged without covariates or with few days.

    The slots before the first origin are cut in two halves. Companions learn from the earlier half; the effect of the
    covariates is learned from the errors that the network with these companions makes on the later half.

    Args:
        network: predictor without companions.
        dataset: series in raw units.
        origins: int64 (n,), origins of the forecasts.
        forecast: float32 (n, C, T_out, K, L), raw units.
        companions: whether companions are used.
    """
    known = known_before(dataset, origins, network.context_days)
    half = known.start + len(known) // 2
    if dataset.covariates is None or len(forecast) == 0 or half - known.start < dataset.steps_per_day:
        return forecast
    if known.stop - half < network.spec.horizon + 1:
        return forecast
    earlier = combined(network, dataset, range(known.start, half), calibrate=False, companions=companions)
    learned = CovariateEffect.learn(earlier, dataset, range(half, known.stop))
    return learned.add(dataset, np.asarray(origins, dtype=np.int64), forecast)


def combined(
    network: ModelPredictor, dataset: TrafficDataset, known: range, *, calibrate: bool, companions: bool = True
) -> ModelPredictor:
    """Return a network with companions learned from some slots; return the network alone where these are too few.

    For less than a day and a half of slots the companion is an autoregression: see `with_autoregression`. Otherwise the
    companions learn from the earlier half of the slots. The errors of the companions and of the network on the later
    half give the weights. Then the companions learn again from all slots.

    Args:
        network: predictor of the network; without quantiles it is returned unchanged.
        dataset: series in raw units.
        known: consecutive slots to learn from.
        calibrate: whether to measure the stretch of the intervals on the later half. Fewer days keep it closer to 1,
            and it narrows the intervals only a little, because errors on few days look too small. Otherwise the stretch
            stays the network's.
        companions: whether to use companions; without them only the intervals of the network are calibrated.
    """
    per_day, horizon = dataset.steps_per_day, network.spec.horizon
    start = max(per_day, len(known) // 2)
    if not network.has_quantiles:
        return network
    if len(known) - start < max(horizon, per_day // 2, 4):
        return with_autoregression(network, dataset, known) if companions else network
    seen = _gather(network, dataset.slice_steps(known.start, known.stop), start, all_of_them=companions)
    judged = seen.judged
    low, forecast, high = np.moveaxis(seen.quantiles[judged], -1, 0)
    below, above = forecast - low, high - forecast
    found = network
    if companions:
        median = seen.quantiles[..., 1]
        cut = [_cut(one, seen.origin, start) for one in seen.features]
        earlier = DaysBefore.learn(cut, median, seen.origin, per_day)
        rivals = earlier.from_features([_taken(one, judged) for one in seen.features], forecast)
        together = join(forecast, rivals)
        weights = weigh(network.scaler, together, seen.raw, len(known) - start, DAYS_BEFORE)
        learned = DaysBefore.learn(seen.features, median, seen.origin, per_day)
        found = CombinedPredictor(network, Companions(learned, weights))
        forecast = (together * weights).sum(-1, dtype=np.float32)
    if calibrate:
        truth = seen.target[judged]
        spread = (np.where(truth < forecast, below, above) / network.stretch).astype(np.float32)
        measured = stretch_of(truth - forecast, spread)
        days = (len(known) - start) / per_day
        found.stretch = believed_stretch(measured, days)
    return found


def with_autoregression(network: ModelPredictor, dataset: TrafficDataset, known: range) -> ModelPredictor:
    """Return a network combined with an autoregression; return the network alone with fewer than 24 slots to judge on.

    Within the first day no slot has been seen on another day, but fine slots already show how noisy the series is. The
    autoregression learns from the earlier half of the slots, is judged on the later half, and then learns from all.

    Args:
        network: predictor of the network.
        dataset: series in raw units.
        known: consecutive slots to learn from.
    """
    horizon, start = network.spec.horizon, len(known) // 2
    if min(start - LATEST, len(known) - start) - horizon + 1 < FEWEST_SLOTS:
        return network
    past = dataset.slice_steps(known.start, known.stop)
    steps = range(past.num_steps + horizon - 1)
    windows = Windows(past, network.spec, network.scaler, steps=steps, context_days=network.context_days)
    origin = windows.origins[np.arange(len(windows)) // windows.num_cells]
    rng = np.random.default_rng(0)

    def drawn(first: int, stop: int, most: int) -> npt.NDArray[np.int64]:
        there = np.flatnonzero((origin >= first) & (origin + horizon <= stop))
        return np.sort(rng.choice(there, most, replace=False)) if len(there) > most else there

    judged = drawn(start, past.num_steps, _JUDGED)
    earlier = LatestSlots(Autoregression.learn(windows.batch(drawn(LATEST, start, _LEARNED))))
    chunks = [judged[first : first + network.batch_size] for first in range(0, len(judged), network.batch_size)]

    def part(some: npt.NDArray[np.int64]) -> Floats:
        batch = windows.batch(some)
        median = network.forecast_batch(batch, (0.5,))[..., 0]
        return join(median, earlier.forecast(batch, median))

    with evaluating(network.model):
        together = np.concatenate(in_threads(part, chunks, network.device))
    weights = weigh(network.scaler, together, windows.raw_target(judged), len(known) - start, LATEST_SLOTS)
    learned = LatestSlots(Autoregression.learn(windows.batch(drawn(LATEST, past.num_steps, _LEARNED))))
    return CombinedPredictor(network, Companions(learned, weights))


class _Seen(NamedTuple):
    """Windows of known slots, forecast by the network.

    Attributes:
        origin: int64 (N,), origins of the windows.
        features: features by service.
        target: float32 (N, T_out, K), on the scaler's scale.
        quantiles: float32 (N, T_out, K, 3), the network's.
        judged: int64 (J,), places of the windows that judge.
        raw: float32 (J, T_out, K), targets of these in raw units.
    """

    origin: npt.NDArray[np.int64]
    features: list[Features]
    target: Floats
    quantiles: Floats
    judged: npt.NDArray[np.int64]
    raw: Floats


def _gather(network: ModelPredictor, past: TrafficDataset, start: int, *, all_of_them: bool) -> _Seen:
    """Draw windows of known slots, and forecast them with the network.

    The windows hold the memory of a whole city, so they are gone when this returns.

    Args:
        network: predictor of the network.
        past: the known slots.
        start: first origin of the windows that judge.
        all_of_them: whether windows that do not judge are wanted.
    """
    steps = range(past.num_steps + network.spec.horizon - 1)
    windows = Windows(past, network.spec, network.scaler, steps=steps, context_days=network.context_days)
    rng, total = np.random.default_rng(0), len(windows)
    services = range(past.num_services)
    most = int(np.clip(_STEPS // (network.spec.horizon * len(services)), *_WINDOWS))
    drawn = np.sort(rng.choice(total, most, replace=False)) if total > most else np.arange(total)
    judged = np.flatnonzero(windows.origins[drawn // windows.num_cells] >= start)
    if not all_of_them:
        drawn, judged = drawn[judged], np.arange(len(judged))

    def part(some: npt.NDArray[np.int64]) -> tuple[list[Features], Floats, Floats]:
        batch = windows.batch(some)
        features = [memory_features(batch, k) for k in services]
        return features, batch.target.numpy(), network.forecast_batch(batch, _LEVELS)

    chunks = [drawn[first : first + network.batch_size] for first in range(0, len(drawn), network.batch_size)]
    with evaluating(network.model):
        features, targets, quantiles = zip(*in_threads(part, chunks or [drawn], network.device), strict=True)
    return _Seen(
        windows.origins[drawn // windows.num_cells],
        [concat_features([one[k] for one in features]) for k in services],
        np.concatenate(targets),
        np.concatenate(quantiles),
        judged,
        windows.raw_target(drawn[judged]),
    )


def _taken(features: Features, index: npt.NDArray[np.int64]) -> Features:
    return Features(*(array[index] for array in features))


def _cut(features: Features, origin: npt.NDArray[np.int64], stop: int) -> Features:
    """Return features whose targets from slot `stop` on are NaN."""
    slot = origin[:, None] + np.arange(features.target.shape[1])
    return features._replace(target=np.where(slot < stop, features.target, np.float32(np.nan)))
