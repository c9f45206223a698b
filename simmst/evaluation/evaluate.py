"""The scoring of predictors on the same target points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from simmst.baselines import BASELINES
from simmst.data import Scaler, Split, TrafficDataset, Windows, WindowSpec
from simmst.data.batch import Batch
from simmst.errors import ConfigError, DataError
from simmst.evaluation.forecasts import Forecasts, central_intervals
from simmst.evaluation.metrics import QUANTILE_LEVELS, score, score_quantiles, seasonal_naive_error
from simmst.evaluation.report import Report, Row
from simmst.foundation.memory import Memory
from simmst.foundation.modes import evaluating
from simmst.foundation.threads import in_threads
from simmst.models import MEDIAN, at_levels

PERSISTENCE = "persistence"
_CONSTANT = 1e-4  # a series with a smaller spread on the scaler's scale is constant


class Predictor(Protocol):
    """Interface of what `evaluate` scores: baselines have it, and `ModelPredictor` gives it to a network."""

    def predict(self, dataset: TrafficDataset, origins: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Forecast from each origin (the index of the first target slot) without reading any slot at or after it.

        Args:
            dataset: series to forecast.
            origins: int64 (n,), origins of the forecasts.

        Returns:
            float32 (n, C, T_out, K) raw units, cells in the order of `dataset.cells`.
        """


@runtime_checkable
class QuantilePredictor(Predictor, Protocol):
    """A predictor that forecasts quantiles; their median is its point forecast.

    A predictor that may lack quantiles has an attribute `has_quantiles`.
    """

    def quantiles(
        self, dataset: TrafficDataset, origins: npt.NDArray[np.int64], levels: Sequence[float]
    ) -> npt.NDArray[np.float32]:
        """Forecast quantiles, float32 (n, C, T_out, K, len(levels)), ascending; `levels` lie between 0 and 1."""


class ModelPredictor:
    """A network as a predictor: batched, in eval mode, without gradients, mapped back to raw units.

    Args:
        model: network, called as ``model(values, marks, mask=mask)``.
        scaler: scaler that it was trained with.
        spec: windows that it was trained with.
        batch_size: number of windows in a batch.
        precision: "float32" or "bfloat16" (autocast).
        stretch: factor on the distance of the model's quantiles from its median, on the scaler's scale.
        context_days: days before an origin that a forecast may use; None takes all that the windows reach.

    Example:
        >>> hours = np.arange(60) * 3600
        >>> city = TrafficDataset.from_arrays(np.ones((60, 2, 2)), hours, services=["internet"])
        >>> class Last(nn.Module):
        ...     def forward(self, values, marks, *, mask=None):
        ...         centre = values.shape[-1] // 2
        ...         return values[:, -1:, :, centre, centre].expand(-1, 3, -1)
        >>> spec = WindowSpec.recent(3, 6, steps_per_day=24)
        >>> predictor = ModelPredictor(Last(), Scaler.fit(city, range(40)), spec)
        >>> forecast = predictor.predict(city, np.array([48, 50]))
        >>> forecast.shape, float(forecast.max())
        ((2, 4, 3, 1), 1.0)
    """

    def __init__(
        self,
        model: nn.Module,
        scaler: Scaler,
        spec: WindowSpec,
        *,
        batch_size: int = 256,
        precision: str = "float32",
        stretch: float = 1.0,
        context_days: int | None = None,
    ) -> None:
        if precision not in ("float32", "bfloat16"):
            raise ConfigError(f"precision is {precision!r}; it must be one of: float32, bfloat16")
        self.model = model
        self.scaler = scaler
        self.spec = spec
        self.batch_size = batch_size
        self.precision = precision
        self.stretch = stretch
        self.context_days = context_days

    def predict(self, dataset: TrafficDataset, origins: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Forecast all cells from each origin.

        The origin after the last slot (a real forecast) is allowed. Forecasts on a logarithmic scale are not negative.
        With a memory in the windows, a series without known values before an origin is forecast as NaN, and a series
        that has been constant for a day or more as that constant.

        Returns:
            float32 (n, C, T_out, K) raw units.

        Raises:
            DataError: the dataset's services are not the model's, or an origin has no complete input window.
        """
        return self._predict(dataset, origins, None)[..., 0]

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        parameter = next(self.model.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    @property
    def has_quantiles(self) -> bool:
        """Whether the model forecasts quantiles."""
        return bool(getattr(self.model, "forecasts_quantiles", False))

    def quantiles(
        self, dataset: TrafficDataset, origins: npt.NDArray[np.int64], levels: Sequence[float]
    ) -> npt.NDArray[np.float32]:
        """Forecast quantiles of all cells from each origin.

        Args:
            dataset: series, as in `predict`.
            origins: origins, as in `predict`.
            levels: levels of the quantiles, between 0 and 1, ascending.

        Returns:
            float32 (n, C, T_out, K, len(levels)) raw units, ascending in the last axis.

        Raises:
            DataError: as in `predict`.
            ConfigError: the model does not forecast quantiles.
        """
        if not self.has_quantiles:
            raise ConfigError(f"{type(self.model).__name__} forecasts no quantiles; measure ErrorQuantiles instead")
        return self._predict(dataset, origins, tuple(levels))

    def _predict(
        self, dataset: TrafficDataset, origins: npt.NDArray[np.int64], levels: tuple[float, ...] | None
    ) -> npt.NDArray[np.float32]:
        """Forecast quantiles, or for `levels` None the point forecast, (n, C, T_out, K, L) raw units."""
        origins = np.asarray(origins, dtype=np.int64)
        self._check_services(dataset)
        count = 1 if levels is None else len(levels)
        shape = (len(origins), dataset.num_cells, self.spec.horizon, dataset.num_services, count)
        if len(origins) == 0:
            return np.empty(shape, dtype=np.float32)
        steps = range(int(origins.min()), int(origins.max()) + self.spec.horizon)
        windows = Windows(dataset, self.spec, self.scaler, steps=steps, context_days=self.context_days)
        place = np.searchsorted(windows.origins, origins)
        found = place < len(windows.origins)
        found[found] = windows.origins[place[found]] == origins[found]
        if not found.all():
            raise DataError(
                f"origin {int(origins[~found][0])} has no complete window: the input reaches back {self.spec.reach} "
                f"steps and {dataset.name} has {dataset.num_steps}; choose origins between {self.spec.least_past} and "
                f"{dataset.num_steps}"
            )
        indices = (place[:, None] * dataset.num_cells + np.arange(dataset.num_cells)).reshape(-1)
        scaled = self.forecast_windows(windows, indices, levels)  # (n * C, T_out, K, L)
        raw = np.moveaxis(self.scaler.inverse(np.moveaxis(scaled, -1, 0), axis=-1), 0, -1)
        return np.ascontiguousarray(raw).reshape(shape)

    def forecast_windows(
        self, windows: Windows, indices: npt.NDArray[np.int64], levels: tuple[float, ...] | None
    ) -> npt.NDArray[np.float32]:
        """Forecast single windows on the scaler's scale, float32 (B, T_out, K, L).

        On a CPU the batches are forecast in parallel, in as many threads as torch uses: see `in_threads`.

        Args:
            windows: windows made with this predictor's spec and scaler.
            indices: int64 (B,), numbers of the windows to forecast.
            levels: levels of the quantiles, between 0 and 1; None gives the point forecast, L = 1.
        """
        batches = [indices[i : i + self.batch_size] for i in range(0, len(indices), self.batch_size)]
        with evaluating(self.model):
            return np.concatenate(
                in_threads(lambda batch: self.forecast_batch(windows.batch(batch), levels), batches, self.device)
            )

    @torch.no_grad()
    def forecast_batch(self, batch: Batch, levels: tuple[float, ...] | None) -> npt.NDArray[np.float32]:
        """Forecast a batch with the model in its current mode: see `forecast_windows`."""
        batch = batch.to(device := self.device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"):
            options: dict[str, Any] = {"memory": batch.memory} if getattr(self.model, "takes_memory", False) else {}
            if levels is None:
                forecast = self.model(batch.values, batch.marks, mask=batch.mask, **options).float()[..., None]
            else:
                forecast = self.model(batch.values, batch.marks, mask=batch.mask, quantiles=True, **options).float()
                median = forecast[..., MEDIAN, None]
                forecast = at_levels(median + self.stretch * (forecast - median), levels)
        if batch.memory is not None:
            forecast = _settle(forecast, batch.values, batch.memory)
        array: npt.NDArray[np.float32] = forecast.cpu().numpy()
        return array

    def _check_services(self, dataset: TrafficDataset) -> None:
        services = getattr(getattr(self.model, "config", None), "services", None)
        if services is not None and tuple(services) != dataset.services:
            raise DataError(
                f"the model forecasts {', '.join(services)}, {dataset.name} has {', '.join(dataset.services)}; "
                "select the model's services with select_services, or train a model for these"
            )


def evaluate(
    predictors: Mapping[str, Predictor],
    dataset: TrafficDataset,
    spec: WindowSpec,
    split: Split,
    *,
    part: str = "test",
    stride: int = 1,
    notes: Sequence[str] = (),
    keep_forecasts: bool = False,
) -> Report:
    """Score predictors on one part of a series, all on the same target points.

    Quantiles are scored as well for predictors that have them; the median is then the point forecast.

    A point counts only where the truth is known and every predictor has a value. If a baseline has none because its own
    past is missing, the point is dropped for all, and a note gives the share of such points. Persistence is added if it
    is not among the predictors, because skill is measured against it.

    Args:
        predictors: predictors by name, in the order of the table.
        dataset: series in raw units.
        spec: windows, which give the horizon and the reach of the input.
        split: split of the series; its training slots give MASE its scale.
        part: part to compare on: "test", "validation" or "train".
        stride: slots between successive origins.
        notes: notes to show beneath the table, after the split's own.
        keep_forecasts: whether to keep the forecasts in the report, for plots.

    Returns:
        The report.

    Raises:
        ConfigError: the part is unknown or the stride is below 1.
        DataError: no origin fits into the part, or a predictor's forecast has another shape, infinite values, or no
            value at all for a service.

    Example:
        >>> t = np.arange(24 * 9)
        >>> city = TrafficDataset.from_arrays(
        ...     (t % 24).astype(float)[:, None, None], t * 3600, services=["internet"], timezone="UTC")
        >>> from simmst.data import chronological_split
        >>> from simmst.baselines import BASELINES
        >>> spec, split = WindowSpec.recent(2, 24, steps_per_day=24), chronological_split(len(t), 24)
        >>> daily = BASELINES["seasonal-naive-day"]().fit(city, spec, split.train)
        >>> report = evaluate({"same hour yesterday": daily}, city, spec, split)
        >>> [(row.name, round(float(row.skill[0]), 2)) for row in report.rows]
        [('same hour yesterday', 1.0), ('persistence', 0.0)]
    """
    if part not in ("train", "validation", "test"):
        raise ConfigError(f"part is {part!r}; it must be one of: train, validation, test")
    if stride < 1:
        raise ConfigError(f"stride is {stride}; it must be at least 1 step")
    steps: range = getattr(split, part)
    origins = np.arange(max(steps.start, spec.least_past), steps.stop - spec.horizon + 1, stride, dtype=np.int64)
    if len(origins) == 0:
        raise DataError(
            f"the {part} part of {dataset.name} (steps {steps.start} to {steps.stop - 1}) holds no window of "
            f"{spec.least_past} steps back and {spec.horizon} ahead; give a longer series, or shorter windows"
        )
    named = dict(predictors)
    if PERSISTENCE not in named:
        named[PERSISTENCE] = BASELINES[PERSISTENCE]().fit(dataset, spec, split.train)
    truth = _targets(dataset, origins, spec.horizon)
    forecasts: dict[str, npt.NDArray[np.float32]] = {}
    quantiles: dict[str, npt.NDArray[np.float32]] = {}
    for name, one in named.items():
        if isinstance(one, QuantilePredictor) and getattr(one, "has_quantiles", True):
            quantiles[name] = _quantiles(name, one, dataset, origins, truth.shape)
            forecasts[name] = np.ascontiguousarray(quantiles[name][..., QUANTILE_LEVELS.index(0.5)])
        else:
            forecasts[name] = _checked(name, one.predict(dataset, origins), truth.shape)
    compared, missing = _common_points(truth, forecasts, dataset.services)
    series = np.moveaxis(dataset.activity[split.train.start : split.train.stop][..., dataset.mask], 1, 2)
    naive_error = seasonal_naive_error(series, dataset.steps_per_day)
    shares = {name: score_quantiles(one, compared) for name, one in quantiles.items()}
    scores = {name: score(forecast, compared, naive_error=naive_error) for name, forecast in forecasts.items()}
    reference = scores[PERSISTENCE]
    known = ~np.isnan(compared)
    kept = Forecasts(origins, truth, forecasts, central_intervals(quantiles), dataset) if keep_forecasts else None
    all_notes = [note for note in (split.note, *notes, *missing) if note]
    return Report(
        dataset=dataset.name,
        unit=dataset.unit,
        surrogate=dataset.surrogate,
        services=dataset.services,
        step_minutes=dataset.step_minutes,
        horizon=spec.horizon,
        part=part,
        num_origins=len(origins),
        num_points=int(known.sum()),
        scale=_scale(compared),
        rows=tuple(Row.compare(name, one, reference, shares.get(name)) for name, one in scores.items()),
        notes=tuple(dict.fromkeys(all_notes)),
        forecasts=kept,
    )


def _settle(forecast: torch.Tensor, values: torch.Tensor, memory: Memory) -> torch.Tensor:
    """Forecast NaN for a series without known values, and the constant for a series constant for at least a day.

    Args:
        forecast: (B, T_out, K, L), on the scaler's scale.
        values: (B, T_in, K, n, n), input of the windows.
        memory: memory of the same windows.
    """
    centre = values.shape[-1] // 2
    level, spread = (of[..., centre, centre] for of in (memory.level, memory.spread))  # (B, K)
    observed = (~torch.isnan(values[..., centre, centre])).sum(1) + (~torch.isnan(memory.days)).sum((1, 2))
    constant = (spread < _CONSTANT) & (memory.context[:, None] >= 1) & (observed > 1)
    forecast = torch.where(constant[:, None, :, None], level[:, None, :, None], forecast)
    return forecast.masked_fill(torch.isnan(level)[:, None, :, None], torch.nan)


def _targets(dataset: TrafficDataset, origins: npt.NDArray[np.int64], horizon: int) -> npt.NDArray[np.float32]:
    """Return the truth, (n, C, T_out, K)."""
    cells = dataset.activity[..., dataset.mask]  # (T, K, C)
    targets = cells[origins[:, None] + np.arange(horizon)]  # (n, T_out, K, C)
    return np.ascontiguousarray(targets.transpose(0, 3, 1, 2))


def _quantiles(
    name: str,
    predictor: QuantilePredictor,
    dataset: TrafficDataset,
    origins: npt.NDArray[np.int64],
    shape: tuple[int, ...],
) -> npt.NDArray[np.float32]:
    quantiles = predictor.quantiles(dataset, origins, QUANTILE_LEVELS)
    return _checked(name, quantiles, (*shape, len(QUANTILE_LEVELS)))


def _checked(name: str, forecast: npt.NDArray[np.float32], shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    forecast = np.asarray(forecast)
    if forecast.shape != shape:
        axes = "(origins, cells, steps, services)" if len(shape) == 4 else "(origins, cells, steps, services, levels)"
        raise DataError(
            f"predictor {name!r} returned {forecast.shape}, wanted {axes} = {shape}; "
            "fit it with the same windows and services"
        )
    infinite = int(np.isinf(forecast).sum())
    if infinite:
        raise DataError(f"predictor {name!r} returned {infinite} infinite values; check the model, it has diverged")
    return forecast


def _common_points(
    truth: npt.NDArray[np.float32], forecasts: Mapping[str, npt.NDArray[np.float32]], services: Sequence[str]
) -> tuple[npt.NDArray[np.float32], list[str]]:
    """Set the truth to NaN where a predictor has no value; return it and a note for each predictor with gaps."""
    known = ~np.isnan(truth)
    common = known.copy()
    notes = []
    for name, forecast in forecasts.items():
        gaps = known & np.isnan(forecast)
        for k, service in enumerate(services):
            if known[..., k].any() and gaps[..., k].sum() == known[..., k].sum():
                raise DataError(
                    f"predictor {name!r} has no value at all for service {service!r}; check it, or leave it out"
                )
        if gaps.any():
            share = 100.0 * gaps.sum() / known.sum()
            notes.append(f"{share:.1f} % of the target points left out for all: {name} has no value there")
        common &= ~gaps
    if not common.any():
        raise DataError("there is no target point where the truth is known and every predictor has a value")
    return np.where(common, truth, np.float32(np.nan)), notes


def _scale(truth: npt.NDArray[np.float32]) -> tuple[float, ...]:
    """Return the mean activity of each service over the points compared; NaN where none is known."""
    known = ~np.isnan(truth)
    count = known.sum(axis=(0, 1, 2))
    total = np.where(known, truth, 0.0).sum(axis=(0, 1, 2), dtype=np.float64)
    return tuple(float(v) for v in np.where(count > 0, total / np.maximum(count, 1), np.nan))
