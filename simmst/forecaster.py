"""The high-level door: fit on a few days of traffic, forecast every cell, with the naive forecasts beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from simmst.baselines import BASELINES
from simmst.data import (
    CALENDAR_FEATURES,
    ConcatWindows,
    Scaler,
    Split,
    TrafficDataset,
    Windows,
    WindowSpec,
    load,
)
from simmst.errors import CheckpointError, ConfigError, DataError
from simmst.evaluation import ErrorQuantiles, ModelPredictor, Predictor, Report, evaluate
from simmst.extras import import_extra
from simmst.forecaster_config import ForecasterConfig, training_and_validation, window_spec
from simmst.models import SimMSTNet, SimMSTNetConfig, STNet
from simmst.simulation import simulate_cities
from simmst.training import (
    Progress,
    Result,
    RunFolder,
    derive_seed,
    load_checkpoint,
    load_into,
    quiet,
    save_checkpoint,
    seeded,
    solve,
)

if TYPE_CHECKING:
    import pandas

_WEIGHTS_FILE = "forecaster.safetensors"
_RECENT_FILE = "recent.npz"


class Forecaster:
    """Forecast cellular traffic, cell by cell and service by service.

    Fits Sim-MSTNet on simulated cities and on the traffic at hand, or a naive baseline by name, and forecasts the
    `horizon` slots after the end of the series in the units of the data.

    Args:
        horizon: slots to forecast.
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

    def __init__(self, horizon: int = 6, *, config: ForecasterConfig | None = None, **settings: Any) -> None:
        if config is None:
            unknown = set(settings) - {item.name for item in dataclasses.fields(ForecasterConfig)}
            if unknown:
                names = ", ".join(item.name for item in dataclasses.fields(ForecasterConfig))
                raise ConfigError(f"unknown setting {sorted(unknown)[0]!r}; there are: {names}")
            config = ForecasterConfig(horizon=horizon, **settings)
        elif settings:
            raise ConfigError(f"give either config or single settings, got both (config and {sorted(settings)[0]!r})")
        self.config = config
        self.dataset: TrafficDataset | None = None
        self.spec: WindowSpec | None = None
        self.result: Result | None = None
        self.notes: tuple[str, ...] = ()
        self._predictor: Predictor | None = None
        self._scaler: Scaler | None = None
        self._errors: ErrorQuantiles | None = None
        self._cities: list[TrafficDataset] = []

    @property
    def name(self) -> str:
        """What tables call this forecaster: Sim-MSTNet, STNet, or the baseline's name."""
        if self.config.model in BASELINES:
            return self.config.model
        return "STNet" if isinstance(self.network, STNet) else "Sim-MSTNet"

    @property
    def network(self) -> SimMSTNet | None:
        """The fitted network; None for a naive baseline or before `fit`."""
        model = self._predictor.model if isinstance(self._predictor, ModelPredictor) else None
        return model if isinstance(model, SimMSTNet) else None

    @property
    def predictor(self) -> Predictor:
        """The fitted forecaster as `simmst.evaluation.evaluate` takes it.

        Raises:
            DataError: the forecaster is not fitted.
        """
        self.fitted()
        assert self._predictor is not None  # noqa: S101 - fitted() has checked
        return self._predictor

    def fitted(self) -> tuple[TrafficDataset, WindowSpec]:
        """Return the series this forecaster was fitted on (its end, when loaded from a folder) and its windows.

        Raises:
            DataError: the forecaster is not fitted.
        """
        if self.dataset is None or self.spec is None:
            raise DataError("this forecaster is not fitted; call fit(real) or Forecaster.load(folder) first")
        return self.dataset, self.spec

    def fit(
        self,
        real: TrafficDataset | str | Path,
        simulated: str | int | Sequence[TrafficDataset] | None = "default",
        *,
        run: RunFolder | None = None,
        progress: Progress = quiet,
    ) -> Forecaster:
        """Fit on real traffic and, where the model learns from them, on simulated cities.

        The last days of `real` (`validation_days`, fewer where it is short) decide when training stops and which
        stage's weights are kept, and give the errors behind `predict(levels=...)`.

        Args:
            real: the traffic, or the name or path of a file of it.
            simulated: ``"default"`` simulates `config.cities` cities with the services and slots of `real`, a number
                that many; or the cities themselves; None trains on `real` alone.
            run: where metrics and checkpoints go; a fit that was killed goes on from there.
            progress: called as the work advances.

        Returns:
            The forecaster itself.

        Raises:
            DataError: the series is too short for the input and the horizon.
            ConfigError: the solver needs simulated cities and got none.
        """
        dataset = real if isinstance(real, TrafficDataset) else load(real)
        train, validation = training_and_validation(dataset, self.config.validation_days)
        self.spec, shrunk = window_spec(self.config, dataset, len(train))
        self.notes = (shrunk,) if shrunk else ()
        self._scaler = scaler = Scaler.fit(dataset, train)
        calibrated: Predictor
        if self.config.model in BASELINES:
            make = BASELINES[self.config.model]
            self._predictor = make().fit(dataset, self.spec, range(dataset.num_steps))
            calibrated = make().fit(dataset, self.spec, train)
        else:
            self._cities = self._simulated(dataset, simulated, progress)
            self._predictor = calibrated = self._train(dataset, train, validation, run, progress)
        self.dataset = dataset
        held_out = Windows(dataset, self.spec, scaler, steps=validation)
        self._errors = ErrorQuantiles.measure(calibrated, held_out) if len(held_out) else None
        return self

    def predict(self, dataset: TrafficDataset | None = None, *, levels: Sequence[float] = ()) -> pandas.DataFrame:
        """Forecast the slots after the end of the series.

        Args:
            dataset: the latest traffic of the same cells' services; None takes what the forecaster was fitted on.
            levels: central prediction intervals in percent, such as ``(80, 95)``. Their widths are the quantiles of the
                errors on the validation days, by service and slot ahead, on the scale the model works on.

        Returns:
            A pandas frame, one row a cell, slot and service: unique_id, ds (slot start with the time zone), service,
            y_hat in the data's unit, and y_hat-lo-80, y_hat-hi-80, ... for the levels.

        Raises:
            DataError: the forecaster is not fitted, or the data's services or slots are not those it was fitted on.
            ConfigError: a level is not an integer between 1 and 99, or there were no validation windows.
        """
        pd = import_extra("pandas", extra="forecast")
        fitted, spec = self.fitted()
        dataset = fitted if dataset is None else self._same_kind(dataset, fitted)
        origin = dataset.num_steps
        forecast = self.predictor.predict(dataset, np.array([origin]))[0]  # (C, H, K)
        step = np.timedelta64(dataset.step_minutes, "m")
        time = dataset.time[-1] + step * np.arange(1, spec.horizon + 1)
        ds = pd.DatetimeIndex(time).tz_localize("UTC").tz_convert(dataset.timezone)
        cells, horizon, services = forecast.shape
        columns: dict[str, Any] = {
            "unique_id": np.repeat(dataset.unique_ids(), horizon * services),
            "ds": ds.repeat(services).append([ds.repeat(services)] * (cells - 1)),
            "service": np.tile(np.asarray(dataset.services, dtype=object), cells * horizon),
            "y_hat": forecast.reshape(-1),
        }
        for level in levels:
            low, high = self._intervals().interval(forecast, level)
            columns[f"y_hat-lo-{level:g}"] = low.reshape(-1)
            columns[f"y_hat-hi-{level:g}"] = high.reshape(-1)
        return pd.DataFrame(columns)

    def cross_validation(self, n_windows: int = 4, *, step: int | None = None, progress: Progress = quiet) -> Report:
        """Fit anew without the end of the series and score forecasts of it, with the naive baselines beside them.

        Args:
            n_windows: forecasts to score, the last one ending with the series.
            step: slots from one forecast to the next; None takes the horizon.
            progress: called as the work advances.

        Returns:
            The report, in the data's units; print it, or take `to_frame()`.

        Raises:
            ConfigError: `n_windows` or `step` is below 1.
            DataError: the forecaster is not fitted, or too little is left before the windows.
        """
        dataset, spec = self.fitted()
        step = spec.horizon if step is None else step
        if n_windows < 1 or step < 1:
            raise ConfigError(f"n_windows and step must be at least 1, got {n_windows} and {step}")
        cut = dataset.num_steps - spec.horizon - (n_windows - 1) * step
        if cut <= spec.reach + spec.horizon:
            raise DataError(
                f"{n_windows} windows of {spec.horizon} slots, {step} apart, leave {cut} of {dataset.num_steps} slots "
                f"to fit on, and an input reaches back {spec.reach}; take fewer windows"
            )
        past = Forecaster(config=self.config).fit(dataset.slice_steps(0, cut), self._cities or None, progress=progress)
        split = Split(train=range(cut), validation=range(cut, cut), test=range(cut, dataset.num_steps))
        return past.evaluate(dataset, split, stride=step)

    def evaluate(self, dataset: TrafficDataset, split: Split, *, stride: int = 1, notes: Sequence[str] = ()) -> Report:
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
        fitted, spec = self.fitted()
        dataset = self._same_kind(dataset, fitted)
        before = range(split.test.start)
        predictors = {self.name: self.predictor}
        predictors.update(
            {name: make().fit(dataset, spec, before) for name, make in BASELINES.items() if name != self.name}
        )
        notes = (*notes, *self.notes)
        return evaluate(predictors, dataset, spec, split, stride=stride, notes=notes, keep_forecasts=True)

    def save(self, folder: str | Path) -> Path:
        """Write the fitted network, its settings and the latest traffic into a folder.

        Two files, each written under a temporary name and renamed; loading them executes no code.

        Raises:
            ConfigError: the model is a naive baseline, which has nothing to keep.
            DataError: the forecaster is not fitted.
        """
        dataset, spec = self.fitted()
        network = self.network
        if network is None or self._scaler is None:
            raise ConfigError(f"model {self.config.model!r} has nothing to save; fit it again where it is needed")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # A week for the seasonal forecasts beside it, or the input where that is longer.
        kept = min(dataset.num_steps, max(spec.reach, 7 * dataset.steps_per_day) + spec.horizon)
        dataset.slice_steps(dataset.num_steps - kept, dataset.num_steps).save(folder / _RECENT_FILE)
        tensors = {f"model/{name}": tensor for name, tensor in network.state_dict().items()}
        if self._errors is not None:
            tensors["errors/quantiles"] = torch.from_numpy(self._errors.values)
        state = {
            "kind": "forecaster",
            "config": self.config.to_dict(),
            "network": network.config.to_dict(),
            "scaler": self._scaler.to_dict(),
            "spec": dataclasses.asdict(spec),
            "fitted_until": str(dataset.time[-1]),
        }
        return save_checkpoint(folder / _WEIGHTS_FILE, tensors, state)

    @classmethod
    def load(cls, folder: str | Path) -> Forecaster:
        """Read what `save` wrote.

        Raises:
            CheckpointError: a file is missing, damaged, of another version or of another kind.
        """
        path = Path(folder) / _WEIGHTS_FILE
        checkpoint = load_checkpoint(path)
        state = checkpoint.state
        missing = [key for key in ("config", "network", "scaler", "spec") if key not in state]
        if state.get("kind") != "forecaster" or missing:
            raise CheckpointError(
                f"{path} is no saved forecaster; give a folder that Forecaster.save or simmst train wrote"
            )
        recent = Path(folder) / _RECENT_FILE
        if not recent.is_file():
            raise CheckpointError(f"{recent} is missing beside {path.name}; copy the whole folder")
        forecaster = cls(config=ForecasterConfig.from_dict(state["config"]))
        network = _network(SimMSTNetConfig.from_dict(state["network"]))
        load_into(network, checkpoint.group("model"), path=path)
        spec = state["spec"]
        forecaster.spec = WindowSpec(spec["horizon"], tuple(spec["offsets"]), spec["neighbourhood"])
        forecaster._scaler = Scaler.from_dict(state["scaler"])
        forecaster._predictor = ModelPredictor(network, forecaster._scaler, forecaster.spec)
        errors = checkpoint.group("errors").get("quantiles")
        forecaster._errors = None if errors is None else ErrorQuantiles(errors.numpy(), forecaster._scaler)
        forecaster.dataset = TrafficDataset.from_npz(recent)
        return forecaster

    def _simulated(
        self, dataset: TrafficDataset, simulated: str | int | Sequence[TrafficDataset] | None, progress: Progress
    ) -> list[TrafficDataset]:
        if simulated is None:
            return []
        if isinstance(simulated, str):
            if simulated != "default":
                raise ConfigError(f"simulated is {simulated!r}; it must be 'default', a number, data sets or None")
            simulated = self.config.cities
        if isinstance(simulated, int):
            seed = derive_seed(self.config.training.seed, "cities")
            return simulate_cities(
                simulated,
                seed=seed,
                progress=lambda done, total: progress("simulate", done, total),
                services=dataset.services,
                step_minutes=dataset.step_minutes,
            )
        return [self._same_kind(city, dataset) for city in simulated]

    def _train(
        self,
        dataset: TrafficDataset,
        train: range,
        validation: range,
        run: RunFolder | None,
        progress: Progress,
    ) -> ModelPredictor:
        assert self.spec is not None  # noqa: S101 - fit has set it
        assert self._scaler is not None  # noqa: S101 - fit has set it
        spec, training = self.spec, self.config.training
        real = Windows(dataset, spec, self._scaler, steps=train)
        held_out = Windows(dataset, spec, self._scaler, steps=validation)
        cities = [
            Windows(city, spec, Scaler.fit(city, range(city.num_steps)), steps=range(city.num_steps))
            for city in self._cities
        ]
        simulated = ConcatWindows(cities) if cities else None
        with seeded(derive_seed(training.seed, "weights")):
            network = _network(self._network_config(dataset))
        self.result = solve(
            self.config.solver or ("real-only" if simulated is None else "pretrain-finetune"),
            network,
            real_train=real,
            real_validation=held_out,
            simulated=simulated,
            config=training,
            run=run,
            progress=progress,
        )
        return ModelPredictor(network, self._scaler, spec)

    def _network_config(self, dataset: TrafficDataset) -> SimMSTNetConfig:
        assert self.spec is not None  # noqa: S101 - fit has set it
        spec = self.spec
        values = {
            "label_length": min(12, spec.input_length),
            **self.config.network,
            "services": dataset.services,
            "input_length": spec.input_length,
            "horizon": spec.horizon,
            "num_marks": len(CALENDAR_FEATURES),
            "neighbourhood": spec.neighbourhood,
        }
        return SimMSTNetConfig.from_dict(values)

    def _intervals(self) -> ErrorQuantiles:
        if self._errors is None:
            raise ConfigError("there were no validation windows to take intervals from; fit on a longer series")
        return self._errors

    def _same_kind(self, dataset: TrafficDataset, wanted: TrafficDataset) -> TrafficDataset:
        if dataset.step_minutes != wanted.step_minutes:
            raise DataError(
                f"{dataset.name} has slots of {dataset.step_minutes} minutes, wanted {wanted.step_minutes}; "
                f"call resample({wanted.step_minutes}) first"
            )
        return dataset if dataset.services == wanted.services else dataset.select_services(wanted.services)


def _network(config: SimMSTNetConfig) -> SimMSTNet:
    return STNet(config) if config.num_tasks == 1 else SimMSTNet(config)
