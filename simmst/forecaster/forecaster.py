"""The high-level door: fit on a few days of traffic, forecast every cell, with the naive forecasts beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simmst.data import Split, TrafficDataset, WindowSpec
from simmst.data.joining import append
from simmst.data.library import as_traffic
from simmst.distributed import ALONE, ProcessGroup
from simmst.errors import ConfigError, DataError
from simmst.evaluation import Predictor, Report, WeightReport
from simmst.forecaster.architectures import OWN, AnyNetwork
from simmst.forecaster.config import ForecasterConfig
from simmst.forecaster.fitted import FittedForecaster
from simmst.forecaster.fitting import Simulated, fit_forecaster
from simmst.forecaster.saving import load_forecaster, save_forecaster
from simmst.forecaster.scoring import cross_validate, score_forecaster
from simmst.forecaster.zero_shot import ZeroShotPredictor
from simmst.foundation.scalars import python_scalar
from simmst.pretrained import load_pretrained
from simmst.training import Progress, Result, RunFolder, quiet

if TYPE_CHECKING:
    import pandas


class Forecaster:
    """Forecast cellular traffic, cell by cell and service by service.

    Fits Sim-MSTNet on simulated cities and on the traffic at hand, or a network of another paper or a naive baseline by
    name, and forecasts the `horizon` slots after the end of the series in the units of the data.

    Args:
        horizon: slots to forecast; 6 when left out.
        config: all settings at once; or give them one by one:
        **settings: fields of `ForecasterConfig`.

    Raises:
        ConfigError: a setting is unknown or out of range.

    Example:
        >>> from simmst.simulation import surrogate_city
        >>> city = surrogate_city(0, height=3, width=3, days=10, services=("internet",))
        >>> forecaster = Forecaster(horizon=2, model="seasonal-naive-day").fit(city)
        >>> forecaster.predict().columns.tolist()
        ['unique_id', 'ds', 'service', 'y_hat']
    """

    def __init__(self, horizon: int | None = None, *, config: ForecasterConfig | None = None, **settings: Any) -> None:
        if horizon is not None:
            settings["horizon"] = horizon
        if config is None:
            config = ForecasterConfig.from_dict(settings)
        elif settings:
            raise ConfigError(f"give either config or single settings, got both (config and {sorted(settings)[0]!r})")
        self.config = config
        self._fitted: FittedForecaster | None = None

    @classmethod
    def pretrained(cls, horizon: int = 6) -> Forecaster:
        """Return a forecaster that needs no training: the weights that ship with the package.

        They were learned from simulated cities alone (`simmst.pretrained`). Give `predict` and `evaluate` the traffic:
        any cells, slots of minutes to a day, with whatever history there is, up to four weeks.

        Args:
            horizon: slots to forecast.

        Raises:
            CheckpointError: the weights are not installed, or damaged.

        Example:
            >>> from simmst.simulation import surrogate_city
            >>> city = surrogate_city(0, height=3, width=3, days=10, services=("internet",))
            >>> Forecaster.pretrained(horizon=2).predict(city, levels=(80,)).columns.tolist()
            ['unique_id', 'ds', 'service', 'y_hat', 'y_hat-lo-80', 'y_hat-hi-80']
        """
        forecaster = cls(horizon=horizon, start="pretrained")
        predictor = ZeroShotPredictor(load_pretrained(), forecaster.config.horizon)
        forecaster._fitted = FittedForecaster(forecaster.config, None, predictor.spec, predictor)
        return forecaster

    def fit(
        self,
        real: TrafficDataset | pandas.DataFrame | str | Path,
        simulated: Simulated = "default",
        *,
        validation_steps: int | None = None,
        run: RunFolder | None = None,
        progress: Progress = quiet,
        processes: ProcessGroup = ALONE,
    ) -> Forecaster:
        """Fit on real traffic and, where the solver learns from them, on simulated cities.

        By default the network starts from the shipped weights and adapts them gently to `real`.

        The last days of `real` decide when training stops and which stage's weights are kept, and give the errors
        behind `predict(levels=...)`.

        Args:
            real: the traffic, a pandas or polars frame of it (see `TrafficDataset.from_dataframe`), or the name or path
                of a file of it.
            simulated: for a solver that learns from simulated cities: "default" simulates `config.cities` cities with
                the services and slots of `real`, a number that many; or the cities themselves; None or 0 trains on
                `real` alone.
            validation_steps: last slots of `real` to hold out; None takes `config.validation_days`, fewer where the
                series is short.
            run: where metrics and checkpoints go; a fit that was killed goes on from there.
            progress: called as the work advances.
            processes: those that share the training; the forecaster of rank 0 is the fitted one.

        Returns:
            The forecaster itself. After a solver that weighs simulated windows, `weight_report` tells their weights.

        Raises:
            DataError: the series is too short for the input and the horizon, or `simulated` has other slots.
            ConfigError: the solver needs simulated cities and got none.
        """
        dataset = as_traffic(real)
        self._fitted = fit_forecaster(
            self.config,
            dataset,
            simulated,
            validation_steps=validation_steps,
            run=run,
            progress=progress,
            processes=processes,
        )
        return self

    def predict(
        self,
        dataset: TrafficDataset | pandas.DataFrame | str | Path | None = None,
        *,
        levels: Sequence[float] = (),
        horizon: int | None = None,
    ) -> pandas.DataFrame:
        """Forecast the slots after the end of the series.

        Args:
            dataset: the latest traffic of the same cells' services, or a frame or file of it; None takes what the
                forecaster was fitted on. A frame's cells get the places and the time zone of those it was fitted on.
            levels: central prediction intervals in percent, such as ``(80, 95)``. The network forecasts quantiles;
                after `fit` their distance from the median is stretched until the 80 % interval holds 80 % of the
                validation days. For a naive baseline they are quantiles of its errors there, by service and step.
            horizon: slots to forecast, any number; None takes the forecaster's own. Beyond that, and beyond what the
                shipped weights know, block follows block, each forecast from those before it as if they had come true,
                and the intervals widen (`simmst.forecaster.further.forecast_further`).

        Returns:
            A pandas frame, one row a cell, slot and service: unique_id, ds (slot start with the time zone), service,
            y_hat in the data's unit, and y_hat-lo-80, y_hat-hi-80, ... for the levels. Traffic that came in a frame
            goes out in one of its kind: names of columns, identifiers, time zone, library. A service that the traffic
            lacks is NaN.

        Raises:
            DataError: the forecaster is not fitted, or the data has none of its services, or slots of another length.
            ConfigError: the horizon is no integer of at least 1, or a level is not an integer between 1 and 99.
        """
        fitted = self.fitted()
        horizon = python_scalar(horizon)
        if horizon is not None and (isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1):
            raise ConfigError(f"horizon is {horizon!r}; it must be an integer of at least 1")
        if horizon is not None and isinstance(fitted.predictor, ZeroShotPredictor):
            untrained = fitted.predictor.for_horizon(horizon)
            fitted = dataclasses.replace(fitted, predictor=untrained, spec=untrained.spec)
        return fitted.predict(None if dataset is None else as_traffic(dataset, fitted.dataset), levels, horizon)

    def update(self, new: TrafficDataset | pandas.DataFrame | str | Path) -> Forecaster:
        """Take in new slots, without fitting again: forecasts start from their end.

        Cells are known by their identifiers. What lacks is NaN; where a slot was known, what is new wins. A frame may
        have one slot alone. The shipped weights keep the traffic they are given from then on. `cross_validation` fits
        with the new slots, too, and `save` keeps them.

        Args:
            new: the slots after those it knows, as a data set, a frame or a file; they may overlap.

        Returns:
            The forecaster itself.

        Raises:
            DataError: the forecaster is not fitted; or the slots are of another length, start before the series, or
                have a cell or service that it does not know.

        Example:
            >>> from simmst.simulation import surrogate_city
            >>> city = surrogate_city(0, height=3, width=3, days=10, services=("internet",))
            >>> forecaster = Forecaster(horizon=2, model="persistence").fit(city.slice_steps(0, 200))
            >>> forecaster.update(city.slice_steps(200, 240)).dataset.num_steps
            240
        """
        fitted = self.fitted()
        fresh = as_traffic(new, fitted.dataset)
        joined = fresh if fitted.dataset is None else append(fitted.dataset, fresh)
        self._fitted = dataclasses.replace(fitted, dataset=joined)
        return self

    def cross_validation(self, n_windows: int = 4, *, step: int | None = None, progress: Progress = quiet) -> Report:
        """Fit anew without the end of the series and score forecasts of it, with the naive baselines beside them.

        Args:
            n_windows: forecasts to score, the last one ending with the series.
            step: slots from one forecast to the next; None takes the horizon.
            progress: called as the work advances.

        Returns:
            The report, in the data's units; print it, or take `to_frame()`. The forecasts themselves, with the truth
            beside them, are in `report.forecasts.to_frame()`; frames are of the kind that the traffic came in.

        Raises:
            ConfigError: `n_windows` or `step` is below 1.
            DataError: the forecaster is not fitted, or was loaded and has but the end of its series, or too little is
                left before the windows.
        """
        return cross_validate(self.fitted(), n_windows, step, progress)

    def evaluate(
        self,
        dataset: TrafficDataset | pandas.DataFrame | str | Path,
        split: Split,
        *,
        stride: int = 1,
        notes: Sequence[str] = (),
    ) -> Report:
        """Score forecasts of the test slots of a series, beside the naive baselines.

        The baselines are fitted on all slots before the test.

        Args:
            dataset: the series that the forecaster was fitted on and what came after.
            split: its test slots are forecast.
            stride: slots from one forecast to the next.
            notes: what the table should say beneath.

        Returns:
            The report with the forecasts kept, for pictures.
        """
        fitted = self.fitted()
        dataset = as_traffic(dataset, fitted.dataset)
        return score_forecaster(fitted, dataset, split, stride=stride, notes=notes)

    def save(self, folder: str | Path) -> Path:
        """Write the fitted network, its settings and the latest traffic into a folder.

        Two files, each written under a temporary name and renamed; loading them executes no code.

        Raises:
            ConfigError: the model is a naive baseline, which has nothing to keep.
            DataError: the forecaster is not fitted.
        """
        return save_forecaster(self.fitted(), folder)

    @classmethod
    def load(cls, folder: str | Path) -> Forecaster:
        """Read what `save` wrote; the network goes to the GPU where there is one.

        Raises:
            CheckpointError: a file is missing, damaged, of another version or of another kind.
        """
        fitted = load_forecaster(folder)
        forecaster = cls(config=fitted.config)
        forecaster._fitted = fitted
        return forecaster

    def fitted(self) -> FittedForecaster:
        """Return what `fit` or `load` made.

        Raises:
            DataError: the forecaster is not fitted.
        """
        if self._fitted is None:
            raise DataError("this forecaster is not fitted; call fit(real) or Forecaster.load(folder) first")
        return self._fitted

    @property
    def name(self) -> str:
        """Sim-MSTNet, STNet or the name of the baseline, as tables call this forecaster."""
        if self._fitted is not None:
            return self._fitted.name
        return "Sim-MSTNet" if self.config.model == OWN else self.config.model

    @property
    def network(self) -> AnyNetwork | None:
        """The fitted network; None for a naive baseline or before `fit`."""
        return None if self._fitted is None else self._fitted.network

    @property
    def predictor(self) -> Predictor:
        """The fitted forecaster as `simmst.evaluation.evaluate` takes it."""
        return self.fitted().predictor

    @property
    def dataset(self) -> TrafficDataset:
        """The series this forecaster was fitted on; its end alone, when loaded from a folder.

        Raises:
            DataError: there is none: the forecaster is not fitted, or has the shipped weights alone.
        """
        return self.fitted().matched(None)

    @property
    def spec(self) -> WindowSpec:
        """The windows it was fitted with."""
        return self.fitted().spec

    @property
    def notes(self) -> tuple[str, ...]:
        """What had to be shrunk or replaced."""
        return self.fitted().notes

    @property
    def result(self) -> Result | None:
        """The histories of the training; None for a naive baseline, and when loaded from a folder."""
        record = self.fitted().record
        return None if record is None else record.result

    @property
    def weight_report(self) -> WeightReport | None:
        """The weights of the simulated cities, after a solver that weighs them; not kept in a folder."""
        record = self.fitted().record
        return None if record is None else record.weight_report
