"""The high-level interface: fit on a few days of traffic, forecast every cell, and compare with naive forecasts."""

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
    """Forecaster of cellular traffic, cell by cell and service by service.

    It fits Sim-MSTNet on simulated cities and on the given traffic, or fits a network of another paper or a naive
    baseline by name, and forecasts the `horizon` slots after the end of the series in the units of the data.

    Args:
        horizon: number of slots to forecast; None takes 6.
        config: all settings at once.
        **settings: single fields of `ForecasterConfig`, instead of `config`.

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
            raise ConfigError(f"give either config or single settings, not both (config and {sorted(settings)[0]!r})")
        self.config = config
        self._fitted: FittedForecaster | None = None

    @classmethod
    def pretrained(cls, horizon: int = 6) -> Forecaster:
        """Return a forecaster with the shipped weights, which needs no training.

        The weights have learned only from simulated cities (`simmst.pretrained`). Give the traffic to `predict` or
        `evaluate`: any cells, with slots of minutes to a day. Up to four weeks of history are used.

        Args:
            horizon: number of slots to forecast.

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
        """Fit on real traffic and, if the solver uses them, on simulated cities.

        By default the network starts from the shipped weights and adapts them to `real` at a low learning rate.

        The last days of `real` decide when training stops and which stage's weights are kept. The errors on these days
        give the intervals of `predict(levels=...)`.

        Args:
            real: traffic as a data set, as a pandas or polars frame (see `TrafficDataset.from_dataframe`), or as the
                name or path of a file.
            simulated: cities for a solver that learns from them. "default" simulates `config.cities` cities with the
                services and slots of `real`, and a number simulates that many. Cities can also be given as data sets.
                None or 0 trains only on `real`.
            validation_steps: last slots of `real` to hold out; None takes `config.validation_days`, fewer where the
                series is short.
            run: run folder for metrics and checkpoints; an interrupted fit resumes from it.
            progress: callable that the training reports to.
            processes: process group that shares the training; only the forecaster of rank 0 is fitted.

        Returns:
            The forecaster itself. After a solver that weights simulated windows, `weight_report` has their weights.

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
            dataset: latest traffic with the same services, as a data set, frame or file; None takes the series that the
                forecaster was fitted on. The cells of a frame get the positions and the time zone of that series.
            levels: central prediction intervals in percent, such as ``(80, 95)``. The network forecasts quantiles;
                `fit` stretches their distance from the median so that the 80 % interval holds 80 % of the validation
                days. The intervals of a naive baseline are quantiles of its errors on these days, by service and step
                ahead.
            horizon: any number of slots to forecast; None takes the forecaster's own horizon. A longer forecast is made
                block by block, each from the blocks before it as if they had come true, and its intervals widen
                (`simmst.forecaster.further.forecast_further`).

        Returns:
            A pandas frame with one row per cell, slot and service: unique_id, ds (slot start with the time zone),
            service, y_hat in the data's unit, and y_hat-lo-80, y_hat-hi-80, ... for the levels. For traffic from a
            frame, the result has that frame's column names, identifiers, time zone and library. A service that the
            traffic lacks is NaN.

        Raises:
            DataError: the forecaster is not fitted, or the data has none of its services or slots of another length.
            ConfigError: the horizon is not an integer of at least 1, or a level is not an integer between 1 and 99.
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
        """Append new slots without fitting again, so that forecasts start after them.

        Cells are matched by their identifiers. Missing cells and slots are NaN, and new values replace old ones. A
        frame may hold a single slot. A forecaster with the shipped weights keeps the traffic from its first update on.
        `cross_validation` also fits on the new slots, and `save` keeps them.

        Args:
            new: slots after those of the series, as a data set, a frame or a file; they may overlap the series.

        Returns:
            The forecaster itself.

        Raises:
            DataError: the forecaster is not fitted, or the new slots have another length, start before the series, or
                have an unknown cell or service.

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
        """Fit again without the end of the series, and score forecasts of that end beside the naive baselines.

        Args:
            n_windows: number of forecasts to score; the last one ends with the series.
            step: slots between successive forecasts; None takes the horizon.
            progress: callable that the training reports to.

        Returns:
            The report, in the data's units; print it, or call `to_frame()`. `report.forecasts.to_frame()` gives the
            forecasts beside the truth. Both frames are of the library that the traffic came in.

        Raises:
            ConfigError: `n_windows` or `step` is below 1.
            DataError: the forecaster is not fitted, was loaded and has only the end of its series, or too little of the
                series precedes the windows.
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
            dataset: series that the forecaster was fitted on, with the slots that follow.
            split: split of the series; its test slots are forecast.
            stride: slots between successive forecasts.
            notes: notes to show beneath the table.

        Returns:
            The report, with the forecasts kept for pictures.
        """
        fitted = self.fitted()
        dataset = as_traffic(dataset, fitted.dataset)
        return score_forecaster(fitted, dataset, split, stride=stride, notes=notes)

    def save(self, folder: str | Path) -> Path:
        """Write the fitted network, its settings and the latest traffic into a folder.

        There are two files, each written under a temporary name and renamed; loading them executes no code.

        Raises:
            ConfigError: the model is a naive baseline or the shipped weights, which have nothing to save.
            DataError: the forecaster is not fitted.
        """
        return save_forecaster(self.fitted(), folder)

    @classmethod
    def load(cls, folder: str | Path) -> Forecaster:
        """Load a forecaster that `save` wrote; its network moves to the GPU if there is one.

        Raises:
            CheckpointError: a file is missing, damaged, from another version, or not a forecaster's.
        """
        fitted = load_forecaster(folder)
        forecaster = cls(config=fitted.config)
        forecaster._fitted = fitted
        return forecaster

    def fitted(self) -> FittedForecaster:
        """Return the fitted forecaster that `fit` or `load` made.

        Raises:
            DataError: the forecaster is not fitted.
        """
        if self._fitted is None:
            raise DataError("this forecaster is not fitted; call fit(real) or Forecaster.load(folder) first")
        return self._fitted

    @property
    def name(self) -> str:
        """Name of this forecaster in tables: Sim-MSTNet, STNet, or the name of another network or baseline."""
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
        """The series this forecaster was fitted on; only its end, when loaded from a folder.

        Raises:
            DataError: there is none, because the forecaster is not fitted or only has the shipped weights.
        """
        return self.fitted().matched(None)

    @property
    def spec(self) -> WindowSpec:
        """The windows of the fitted forecaster."""
        return self.fitted().spec

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on what had to be shrunk or replaced."""
        return self.fitted().notes

    @property
    def result(self) -> Result | None:
        """The histories of the training; None for a naive baseline, and when loaded from a folder."""
        record = self.fitted().record
        return None if record is None else record.result

    @property
    def weight_report(self) -> WeightReport | None:
        """The weights of the simulated cities, after a solver that weights them; `save` does not keep them."""
        record = self.fitted().record
        return None if record is None else record.weight_report
