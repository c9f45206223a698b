"""The high-level door: fit on a few days of traffic, forecast every cell, with the naive forecasts beside it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from simmst.baselines import BASELINES
from simmst.data import ConcatWindows, Scaler, Split, TrafficDataset, Windows, WindowSpec, load
from simmst.distributed import ALONE, Distribution
from simmst.errors import CheckpointError, ConfigError, DataError
from simmst.evaluation import ErrorQuantiles, ModelPredictor, Predictor, Report, WeightReport, evaluate
from simmst.evaluation.intervals import checked_level
from simmst.forecaster.config import ForecasterConfig, Plan, make_plan
from simmst.forecaster.similar_cities import cities_like, parameters_like, stand_in_notes
from simmst.foundation.extras import import_extra
from simmst.models import SimMSTNet, SimMSTNetConfig, STNet
from simmst.training import (
    Checkpoint,
    Progress,
    Result,
    RunFolder,
    derive_seed,
    load_checkpoint,
    load_into,
    quiet,
    resolve_device,
    save_checkpoint,
    seeded,
    solve,
)

if TYPE_CHECKING:
    import pandas

WEIGHTS_FILE = "forecaster.safetensors"
RECENT_FILE = "recent.npz"

Simulated = str | int | TrafficDataset | Sequence[TrafficDataset] | None


class Forecaster:
    """Forecast cellular traffic, cell by cell and service by service.

    Fits Sim-MSTNet on simulated cities and on the traffic at hand, or a naive baseline by name, and forecasts the
    `horizon` slots after the end of the series in the units of the data.

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
        self.dataset: TrafficDataset | None = None
        self.spec: WindowSpec | None = None
        self.result: Result | None = None
        self.weight_report: WeightReport | None = None
        self.notes: tuple[str, ...] = ()
        self._predictor: Predictor | None = None
        self._scaler: Scaler | None = None
        self._errors: ErrorQuantiles | None = None
        # What cross_validation needs to fit again; None where only the end of the series is here.
        self._cities: list[TrafficDataset] | None = None
        self._city_notes: tuple[str, ...] = ()
        self._validation_steps: int | None = None

    @property
    def name(self) -> str:
        """Sim-MSTNet, STNet or the name of the baseline, as tables call this forecaster."""
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
        simulated: Simulated = "default",
        *,
        validation_steps: int | None = None,
        run: RunFolder | None = None,
        progress: Progress = quiet,
        distribution: Distribution = ALONE,
    ) -> Forecaster:
        """Fit on real traffic and, where the model learns from them, on simulated cities.

        The last days of `real` decide when training stops and which stage's weights are kept, and give the errors
        behind `predict(levels=...)`.

        Args:
            real: the traffic, or the name or path of a file of it.
            simulated: "default" simulates `config.cities` cities with the services and slots of `real`, a number that
                many; or the cities themselves; None or 0 trains on `real` alone.
            validation_steps: last slots of `real` to hold out; None takes `config.validation_days`, fewer where the
                series is short.
            run: where metrics and checkpoints go; a fit that was killed goes on from there.
            progress: called as the work advances.
            distribution: the processes that share a re-weighting; the forecaster of rank 0 is the fitted one.

        Returns:
            The forecaster itself. After a solver that weighs simulated windows, `weight_report` tells their weights.

        Raises:
            DataError: the series is too short for the input and the horizon, or `simulated` has other slots.
            ConfigError: the solver needs simulated cities and got none.
        """
        dataset = real if isinstance(real, TrafficDataset) else load(real)
        wanted = self._wanted(simulated)
        plan = make_plan(self.config, dataset, simulated=wanted not in (0, []), validation_steps=validation_steps)
        cities: list[TrafficDataset] = []
        city_notes: tuple[str, ...] = ()
        predictor: Predictor
        calibrated: Predictor
        result = None
        if plan.solver is None:
            make = BASELINES[self.config.model]
            predictor = make().fit(dataset, plan.spec, range(dataset.num_steps))
            calibrated = make().fit(dataset, plan.spec, plan.train)
        else:
            if plan.learns_from_cities:
                cities = self._simulate(dataset, wanted, progress, distribution)
                city_notes = stand_in_notes(dataset.services) if isinstance(wanted, int) else ()
            predictor, result = self._train(dataset, plan, cities, run, progress, distribution)
            calibrated = predictor
            self.weight_report = self._weights(dataset, result, cities, known=isinstance(wanted, int))
        held_out = Windows(dataset, plan.spec, plan.scaler, steps=plan.validation)
        self._errors = ErrorQuantiles.measure(calibrated, held_out)
        self._predictor, self.result, self.notes = predictor, result, plan.notes + city_notes
        self.dataset, self.spec, self._scaler = dataset, plan.spec, plan.scaler
        self._cities, self._city_notes, self._validation_steps = cities, city_notes, validation_steps
        return self

    def predict(self, dataset: TrafficDataset | None = None, *, levels: Sequence[float] = ()) -> pandas.DataFrame:
        """Forecast the slots after the end of the series.

        Args:
            dataset: the latest traffic of the same cells' services; None takes what the forecaster was fitted on.
            levels: central prediction intervals in percent, such as ``(80, 95)``. Their widths are the quantiles of the
                errors on the validation days, by service and slot ahead, on the scale the model works on; NaN for a
                service that had no value on those days.

        Returns:
            A pandas frame, one row a cell, slot and service: unique_id, ds (slot start with the time zone), service,
            y_hat in the data's unit, and y_hat-lo-80, y_hat-hi-80, ... for the levels.

        Raises:
            DataError: the forecaster is not fitted, or the data's services or slots are not those it was fitted on.
            ConfigError: a level is not an integer between 1 and 99.
        """
        pd = import_extra("pandas", extra="forecast")
        fitted, spec = self.fitted()
        assert self._errors is not None  # noqa: S101 - a fitted forecaster has them
        levels = [checked_level(level) for level in levels]
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
            low, high = self._errors.interval(forecast, level)
            columns[f"y_hat-lo-{level}"] = low.reshape(-1)
            columns[f"y_hat-hi-{level}"] = high.reshape(-1)
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
            DataError: the forecaster is not fitted, or was loaded and has but the end of its series, or too little is
                left before the windows.
        """
        dataset, spec = self.fitted()
        if self._cities is None:
            raise DataError(
                "this forecaster was loaded and has but the end of its series, which is too little to fit anew; call "
                "fit with the whole series first"
            )
        step = spec.horizon if step is None else step
        if n_windows < 1 or step < 1:
            raise ConfigError(f"n_windows and step must be at least 1, got {n_windows} and {step}")
        cut = dataset.num_steps - spec.horizon - (n_windows - 1) * step
        if cut <= spec.reach + spec.horizon:
            raise DataError(
                f"{n_windows} windows of {spec.horizon} slots, {step} apart, leave {cut} of {dataset.num_steps} slots "
                f"to fit on, and an input reaches back {spec.reach}; take fewer windows"
            )
        past = Forecaster(config=self.config).fit(
            dataset.slice_steps(0, cut), self._cities, validation_steps=self._validation_steps, progress=progress
        )
        split = Split(train=range(cut), validation=range(cut, cut), test=range(cut, dataset.num_steps))
        return past.evaluate(dataset, split, stride=step, notes=self._city_notes)

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
        predictors: dict[str, Predictor] = {self.name: self.predictor}
        left_out = []
        for name, make in BASELINES.items():
            baseline = make()
            period = getattr(baseline, "days", 0) * dataset.steps_per_day
            if period > len(before):
                left_out.append(f"{name} is left out: it looks back {period} slots and {len(before)} precede the test")
            elif name != self.name:
                predictors[name] = baseline.fit(dataset, spec, before)
        notes = (*notes, *self.notes, *left_out)
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
        assert self._errors is not None  # noqa: S101 - a fitted forecaster has them
        # A week for the seasonal forecasts beside it, or the input where that is longer.
        kept = min(dataset.num_steps, max(spec.reach, 7 * dataset.steps_per_day) + spec.horizon)
        recent = dataset.slice_steps(dataset.num_steps - kept, dataset.num_steps).save(Path(folder) / RECENT_FILE)
        tensors = {f"model/{name}": tensor for name, tensor in network.state_dict().items()}
        tensors["errors/quantiles"] = torch.from_numpy(self._errors.values)
        state = {
            "kind": "forecaster",
            "config": self.config.to_dict(),
            "network": network.config.to_dict(),
            "scaler": self._scaler.to_dict(),
            "spec": dataclasses.asdict(spec),
            "notes": list(self.notes),
            "recent": _digest(recent),
        }
        return save_checkpoint(Path(folder) / WEIGHTS_FILE, tensors, state)

    @classmethod
    def load(cls, folder: str | Path) -> Forecaster:
        """Read what `save` wrote; the network goes to the GPU where there is one.

        Raises:
            CheckpointError: a file is missing, damaged, of another version or of another kind.
        """
        path = Path(folder) / WEIGHTS_FILE
        checkpoint = load_checkpoint(path)
        if checkpoint.state.get("kind") != "forecaster":
            raise CheckpointError(
                f"{path} is no saved forecaster; give a folder that Forecaster.save or simmst train wrote"
            )
        recent = Path(folder) / RECENT_FILE
        if not recent.is_file():
            raise CheckpointError(f"{recent} is missing beside {path.name}; copy the whole folder")
        if _digest(recent) != checkpoint.state.get("recent"):
            raise CheckpointError(
                f"{recent} is not the file that was saved with {path.name}: it was changed, or saving was cut off; "
                "copy the whole folder again, or run the training once more"
            )
        try:
            forecaster = cls._restored(checkpoint, path)
        except CheckpointError:
            raise
        except (LookupError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path} holds settings that this version of simmst cannot use ({type(error).__name__}: {error}); load "
                "it with the version that wrote it, or train again"
            ) from error
        forecaster.dataset = TrafficDataset.from_npz(recent)
        return forecaster

    @classmethod
    def _restored(cls, checkpoint: Checkpoint, path: Path) -> Forecaster:
        state = checkpoint.state
        forecaster = cls(config=ForecasterConfig.from_dict(state["config"]))
        network = _network(SimMSTNetConfig.from_dict(state["network"]))
        load_into(network, checkpoint.group("model"), path=path)
        spec = state["spec"]
        forecaster.spec = WindowSpec(spec["horizon"], tuple(spec["offsets"]), spec["neighbourhood"])
        forecaster._scaler = Scaler.from_dict(state["scaler"])
        forecaster._predictor = ModelPredictor(network.to(resolve_device("auto")), forecaster._scaler, forecaster.spec)
        forecaster._errors = ErrorQuantiles(checkpoint.group("errors")["quantiles"].numpy(), forecaster._scaler)
        forecaster.notes = tuple(state["notes"])
        return forecaster

    def _wanted(self, simulated: Simulated) -> int | list[TrafficDataset]:
        """Bring what `fit` is given to a number of cities to simulate, or cities."""
        if simulated is None:
            return 0
        if isinstance(simulated, str) and simulated == "default":
            return self.config.cities
        if isinstance(simulated, int) and not isinstance(simulated, bool) and simulated >= 0:
            return simulated
        cities = [simulated] if isinstance(simulated, TrafficDataset) else simulated
        if isinstance(cities, (str, int)) or not all(isinstance(city, TrafficDataset) for city in cities):
            raise ConfigError(f"simulated is {simulated!r}; it must be 'default', a number, data sets or None")
        return list(cities)

    def _simulate(
        self,
        dataset: TrafficDataset,
        wanted: int | list[TrafficDataset],
        progress: Progress,
        distribution: Distribution,
    ) -> list[TrafficDataset]:
        if isinstance(wanted, int):
            seed = derive_seed(self.config.training.seed, "cities")
            return cities_like(dataset, wanted, seed=seed, progress=progress, distribution=distribution)
        return [self._same_kind(city, dataset) for city in wanted]

    def _train(
        self,
        dataset: TrafficDataset,
        plan: Plan,
        cities: Sequence[TrafficDataset],
        run: RunFolder | None,
        progress: Progress,
        distribution: Distribution,
    ) -> tuple[ModelPredictor, Result]:
        assert plan.network is not None and plan.solver is not None  # noqa: S101, PT018 - not a baseline
        spec = plan.spec
        # Every city on a scale of its own, but of the same kind: what the network sees is how a series moves.
        simulated = [
            Windows(city, spec, Scaler.fit(city, range(city.num_steps), plan.scaler.kind), steps=range(city.num_steps))
            for city in cities
        ]
        with seeded(derive_seed(self.config.training.seed, "weights")):
            network = _network(plan.network)
        result = solve(
            plan.solver,
            network,
            real_train=Windows(dataset, spec, plan.scaler, steps=plan.train),
            real_validation=Windows(dataset, spec, plan.scaler, steps=plan.validation),
            simulated=ConcatWindows(simulated) if simulated else None,
            config=self.config.training,
            run=run,
            progress=progress,
            distribution=distribution,
        )
        return ModelPredictor(network, plan.scaler, spec), result

    def _weights(
        self, dataset: TrafficDataset, result: Result, cities: Sequence[TrafficDataset], *, known: bool
    ) -> WeightReport | None:
        if result.window_weights is None:
            return None
        seed = derive_seed(self.config.training.seed, "cities")
        parameters = parameters_like(dataset, len(cities), seed=seed) if known else None
        return WeightReport.of(result.window_weights, [city.name for city in cities], parameters)

    def _same_kind(self, dataset: TrafficDataset, wanted: TrafficDataset) -> TrafficDataset:
        if dataset.step_minutes != wanted.step_minutes:
            raise DataError(
                f"{dataset.name} has slots of {dataset.step_minutes} minutes, wanted {wanted.step_minutes}; "
                f"call resample({wanted.step_minutes}) first"
            )
        return dataset if dataset.services == wanted.services else dataset.select_services(wanted.services)


def _network(config: SimMSTNetConfig) -> SimMSTNet:
    return STNet(config) if config.num_tasks == 1 else SimMSTNet(config)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
