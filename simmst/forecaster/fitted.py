"""An immutable fitted forecaster: its predictor, and the series it was fitted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from simmst.baselines.networks import Network
from simmst.data import TrafficDataset, WindowSpec
from simmst.data.joining import with_services
from simmst.errors import DataError
from simmst.evaluation import ErrorQuantiles, ModelPredictor, Predictor, QuantilePredictor, WeightReport
from simmst.evaluation.intervals import checked_level
from simmst.forecaster.architectures import OWN, AnyNetwork
from simmst.forecaster.combination import InContextPredictor
from simmst.forecaster.config import ForecasterConfig
from simmst.forecaster.frame import prediction_frame
from simmst.forecaster.further import Bounds, forecast_further
from simmst.forecaster.further import Floats as Forecast
from simmst.models import SimMSTNet, SimMSTNetConfig, STNet
from simmst.training import Result

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class FitRecord:
    """Record of a fit: the inputs for fitting again, and the results of the training; `save` does not keep it.

    Attributes:
        cities: simulated cities that it learned from.
        city_notes: notes on services for which another one was simulated.
        validation_steps: requested number of slots to hold out.
        result: histories of the training; None for a naive baseline.
        weight_report: weights of the cities, after a solver that weights them.
    """

    cities: Sequence[TrafficDataset] = ()
    city_notes: tuple[str, ...] = ()
    validation_steps: int | None = None
    result: Result | None = None
    weight_report: WeightReport | None = None


@dataclass(frozen=True, eq=False)
class FittedForecaster:
    """A fitted forecaster.

    Attributes:
        config: the settings.
        dataset: series it was fitted on; only its end when loaded from a folder; None for the shipped weights.
        spec: windows of the predictor.
        predictor: predictor, as `simmst.evaluation.evaluate` takes it.
        errors: error quantiles for the prediction intervals of a predictor without quantiles.
        notes: notes on what had to be shrunk or replaced.
        record: record of the fit; None when loaded from a folder.
    """

    config: ForecasterConfig
    dataset: TrafficDataset | None
    spec: WindowSpec
    predictor: Predictor
    errors: ErrorQuantiles | None = None
    notes: tuple[str, ...] = ()
    record: FitRecord | None = None

    @property
    def name(self) -> str:
        """Name in tables: Sim-MSTNet, STNet, or the name of another network or baseline."""
        if self.config.model != OWN:
            return self.config.model
        return "STNet" if isinstance(self.network, STNet) else "Sim-MSTNet"

    @property
    def network(self) -> AnyNetwork | None:
        """The fitted network; None for a naive baseline."""
        model = self.predictor.model if isinstance(self.predictor, ModelPredictor) else None
        return model if isinstance(model, (SimMSTNet, Network)) else None

    def matched(self, dataset: TrafficDataset | None) -> TrafficDataset:
        """Return the series to forecast, with the services of the fitted series; None stands for the fitted series.

        A service that the series lacks is NaN, as is its forecast.

        Raises:
            DataError: the series has none of the services, or slots of another length.
        """
        if self.dataset is None:
            if dataset is None:
                raise DataError("this forecaster has no series of its own; give it the traffic to forecast")
            return dataset
        if dataset is None:
            return self.dataset
        if dataset.covariates is None and self.dataset.covariates is not None:
            dataset = dataset.with_(covariates=self.dataset.covariates)  # covariates have their own times
        if not set(self.dataset.services) <= set(dataset.services):
            dataset = with_services(dataset, self.dataset.services)
        return matched(dataset, self.dataset)

    def predict(
        self, dataset: TrafficDataset | None, levels: Sequence[float], horizon: int | None = None
    ) -> pandas.DataFrame:
        """Forecast the slots after the end of a series: see `Forecaster.predict`."""
        checked = [checked_level(level) for level in levels]
        dataset = self.matched(dataset)
        horizon = self.spec.horizon if horizon is None else horizon
        forecast, bounds = forecast_further(lambda known: self._block(known, checked), dataset, horizon)
        return prediction_frame(dataset, forecast, bounds)

    def _block(self, dataset: TrafficDataset, checked: Sequence[int]) -> tuple[Forecast, Mapping[int, Bounds]]:
        """Forecast `spec.horizon` slots (C, H, K), and their bounds by level."""
        origin = np.array([dataset.num_steps])
        if self.errors is not None or not checked:
            forecast = self.predictor.predict(dataset, origin)[0]  # (C, H, K)
            bounds = {} if self.errors is None else {one: self.errors.interval(forecast, one) for one in checked}
            return forecast, bounds
        assert isinstance(self.predictor, QuantilePredictor)  # noqa: S101 - a predictor without quantiles has errors
        tails = sorted({share for one in checked for share in (0.5 - one / 200, 0.5 + one / 200)} | {0.5})
        quantiles = self.predictor.quantiles(dataset, origin, tails)[0]  # (C, H, K, L)
        at = {share: quantiles[..., place] for place, share in enumerate(tails)}
        bounds = {one: (at[0.5 - one / 200], at[0.5 + one / 200]) for one in checked}
        return at[0.5], bounds


def predictor_class(config: ForecasterConfig) -> type[ModelPredictor]:
    """Return the predictor class of a network: with companions for Sim-MSTNet, unless the settings say otherwise."""
    memory = config.network.get("memory_days", SimMSTNetConfig().memory_days)
    return InContextPredictor if config.model == OWN and config.combine and memory else ModelPredictor


def matched(dataset: TrafficDataset, wanted: TrafficDataset) -> TrafficDataset:
    """Return a series with the services of another, in its order.

    Raises:
        DataError: a service is missing, or the slots have another length.
    """
    if dataset.step_minutes != wanted.step_minutes:
        raise DataError(
            f"{dataset.name} has slots of {dataset.step_minutes} minutes, wanted {wanted.step_minutes}; "
            f"call resample({wanted.step_minutes}) first"
        )
    return dataset if dataset.services == wanted.services else dataset.select_services(wanted.services)
