"""Scaling of activity, fitted on training slots only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simmst.data.dataset import TrafficDataset
from simmst.errors import DataError

KINDS = ("relative", "log", "linear")
_UNIT = 0.01  # of the mean: smaller values are nearly zero on the relative scale
_LARGEST = 40.0  # on the relative scale: exp(40) hundredths of the mean are still finite
_BEYOND = 1e5  # times a typical value: not traffic but an overflowed counter or a wrong unit
_LARGEST_TRAFFIC = math.log(_BEYOND / _UNIT)  # on the relative scale
_SAMPLE = 20_000  # values of a service that the typical value is taken from
_CHUNK = 64  # slots scaled at a time while fitting, so that float64 copies stay in the cache


@dataclass(frozen=True, eq=False)
class Scaler:
    """A scale per service: z = (f(x) - mean) / std, with f = log1p ("log") or the identity ("linear"); or "relative".

    "relative" is z = log1p(max(x - mean, 0) / std), which is the same for a series in any unit: std is a hundredth of
    the mean activity, and mean is zero, or a little under the smallest value where values may be negative (z-scores).
    Values beyond 100,000 times the median (of those above zero) are left out of that mean, and values beyond 100,000
    times the mean count as missing.

    Attributes:
        kind: ``"relative"``, ``"log"`` or ``"linear"``.
        mean: float64 (K,), mean of f(x) over the training slots and cells; for "relative" the shift.
        std: float64 (K,), deviation of f(x), and 1 for a constant service; for "relative" the unit.

    Example:
        >>> import numpy as np
        >>> from simmst.data import TrafficDataset
        >>> x = np.arange(48.0).reshape(24, 2)
        >>> city = TrafficDataset.from_arrays(x, np.arange(24) * 3600, services=["call", "sms"])
        >>> scaler = Scaler.fit(city, range(24))
        >>> bool(np.allclose(scaler.inverse(scaler.transform(x, axis=1), axis=1), x, rtol=1e-4, atol=1e-5))
        True
    """

    kind: str
    mean: np.ndarray
    std: np.ndarray

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DataError(f"scaler kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape:
            raise DataError(f"scaler mean and std must both be (K,), got {self.mean.shape} and {self.std.shape}")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.std).all() and (self.std > 0).all()):
            raise DataError(f"scaler mean must be finite and std positive, got {self.mean} and {self.std}")

    @classmethod
    def fit(cls, dataset: TrafficDataset, steps: range, kind: str | None = None) -> Scaler:
        """Fit to the cells inside the city over the given slots; missing values are left out.

        Args:
            dataset: the traffic.
            steps: training slots.
            kind: ``"relative"``, ``"log"`` or ``"linear"``; None takes "linear" for z-scores and where any of these
                values is negative, and "log" elsewhere.

        Raises:
            DataError: there are no slots, slots lie outside the series, or a service has no value at all in them
                (except for "relative").
        """
        if len(steps) == 0 or steps[0] < 0 or steps[-1] >= dataset.num_steps:
            raise DataError(f"cannot fit a scaler to slots {steps} of a series of {dataset.num_steps} slots")
        activity = dataset.activity[steps.start : steps.stop : steps.step]
        blocks = [_inside(activity[i : i + _CHUNK], dataset.mask) for i in range(0, len(activity), _CHUNK)]  # (t, K, C)
        negative = dataset.unit == "z-score" or any(bool((block < 0).any()) for block in blocks)
        if kind is None:
            kind = "linear" if negative else "log"
        total, count = np.zeros(dataset.num_services), np.zeros(dataset.num_services)
        beyond = _beyond(blocks) if kind == "relative" else None
        for block in blocks:
            if beyond is not None and (_largest(block) > beyond).any():
                block = np.where(np.abs(block) > beyond[:, None], np.float32(np.nan), block)
            missing, wide = np.isnan(block), _forward(block, kind)
            wide[missing] = 0.0
            total += wide.sum(axis=(0, 2))
            count += len(block) * block.shape[2] - np.count_nonzero(missing, axis=(0, 2))
        if (count == 0).any() and kind != "relative":
            service = dataset.services[int((count == 0).argmax())]
            raise DataError(
                f"service {service!r} of {dataset.name} has no value at all in slots {steps.start}..{steps.stop}; "
                "leave the service out with select_services, or train on other slots"
            )
        mean = total / np.maximum(count, 1)
        if kind == "relative":
            shift = np.zeros_like(mean)
            if negative:
                smallest = np.min([np.fmin.reduce(block, axis=(0, 2)) for block in blocks], axis=0)
                shift = np.where(count > 0, smallest - 0.05 * (mean - smallest), 0.0)
            unit = _UNIT * (mean - shift)
            return cls(kind, shift, np.where(unit > 1e-12, unit, 1.0))
        squares = np.zeros(dataset.num_services)
        for block in blocks:
            squares += np.nansum((_forward(block, kind) - mean[:, None]) ** 2, axis=(0, 2))
        std = np.sqrt(squares / count)
        return cls(kind, mean, np.where(std > 1e-8, std, 1.0))

    def transform(self, x: Any, axis: int) -> np.ndarray:
        """Scale raw values, services along `axis`; float32, NaN stays NaN.

        Raises:
            DataError: a value is negative on the "log" scale, or the number of services differs.
        """
        x = np.asarray(x)
        mean, std = self._shaped(x, axis)
        if self.kind == "log" and (x < 0).any():
            raise DataError(
                f"activity {float(np.nanmin(x)):g} is negative, which the log scale cannot take; "
                'fit the scaler with kind="linear"'
            )
        scaled: np.ndarray = x.astype(np.float32)  # a copy
        if self.kind == "relative":
            scaled -= mean
            np.maximum(scaled, 0, out=scaled)
            scaled /= std
            np.log1p(scaled, out=scaled)
            scaled[scaled > _LARGEST_TRAFFIC] = np.nan
            return scaled
        if self.kind == "log":
            np.log1p(scaled, out=scaled)
        scaled -= mean
        scaled /= std
        return scaled

    def inverse(self, z: Any, axis: int) -> np.ndarray:
        """Convert scaled values back to raw units, services along `axis`; float32.

        On the log scale results below zero, which only a forecast can have, become 0: activity is never negative.
        """
        z = np.asarray(z)
        mean, std = self._shaped(z, axis)
        if self.kind == "relative":
            relative: np.ndarray = np.expm1(np.clip(z.astype(np.float32), 0, _LARGEST)) * std + mean
            return relative
        raw: np.ndarray = z.astype(np.float32) * std + mean
        if self.kind == "log":
            raw = np.maximum(np.expm1(raw), np.float32(0))
        return raw

    def to_dict(self) -> dict[str, Any]:
        """Return a form that JSON can hold; `from_dict` restores it exactly."""
        return {"kind": self.kind, "mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Scaler:
        """Restore a scaler from `to_dict`.

        Raises:
            DataError: a key is missing or a value does not fit.
        """
        missing = {"kind", "mean", "std"} - set(state)
        if missing:
            raise DataError(
                f"a scaler needs {', '.join(sorted(missing))}; got only {', '.join(sorted(state)) or 'nothing'}"
            )
        return cls(
            str(state["kind"]), np.asarray(state["mean"], dtype=np.float64), np.asarray(state["std"], dtype=np.float64)
        )

    def _shaped(self, x: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
        if x.shape[axis] != len(self.mean):
            raise DataError(f"the scaler knows {len(self.mean)} services, axis {axis} of {x.shape} has {x.shape[axis]}")
        shape = [1] * x.ndim
        shape[axis] = -1
        return self.mean.astype(np.float32).reshape(shape), self.std.astype(np.float32).reshape(shape)


def _inside(activity: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the cells inside the city, (t, K, C); a view, without a copy, if all cells are inside."""
    return activity.reshape(*activity.shape[:2], -1) if mask.all() else activity[:, :, mask]


def _beyond(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Return the magnitude above which values (t, K, C) do not count, (K,); infinite where all are zero or missing."""
    every = max(sum(block[:, 0].size for block in blocks) // _SAMPLE, 1)
    limits = []
    for service in range(blocks[0].shape[1]):
        some = np.abs(np.concatenate([block[:, service].reshape(-1)[::every] for block in blocks]))
        some = some[(some > 0) & np.isfinite(some)]
        limits.append(_BEYOND * float(np.median(some)) if some.size else np.inf)
    return np.array(limits)


def _largest(block: np.ndarray) -> np.ndarray:
    """Return the largest magnitude of each service, (K,); NaN where there is no value."""
    extremes = np.fmax.reduce(block, axis=(0, 2)), -np.fmin.reduce(block, axis=(0, 2))
    largest: np.ndarray = np.fmax(*extremes)
    return largest


def _forward(x: np.ndarray, kind: str) -> np.ndarray:
    wide = x.astype(np.float64)
    return np.log1p(wide) if kind == "log" else wide
