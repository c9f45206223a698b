"""The law of a parameter, updated by the weights of cities that were drawn from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from simmst.errors import ConfigError
from simmst.simulation.prior.distributions import Distribution

_WIDTH = 0.3  # kernel width for one city, in ranks between 0 and 1; it falls with the fifth root of the city count
_PRIOR_CITIES = 1.0  # number of cities of mean weight that stand for the original law
_TRIES = 8  # draws tested at a time
_INTEGRAL = 4096  # draws that estimate the constant of the density


@dataclass(frozen=True)
class Believed:
    r"""A law whose draws are kept in proportion to the weights of the cities with such a value.

    .. math:: p'(x) \propto p(x)\, r(x), \qquad
              r(x) = \frac{\bar w + \sum_c w_c K(x, x_c)}{1 + \sum_c K(x, x_c)}

    Here p is the original law, and K is a normal kernel in the ranks of the cities' values; for values that are not
    numbers, K is 1 where they are equal and 0 elsewhere. The support stays that of p, and equal weights leave p
    unchanged.

    Attributes:
        law: original law, before the weighting.
        values: values of the cities.
        weights: weight of each city, not negative.

    Raises:
        ConfigError: there are not as many values as weights, a weight is below zero, or no weight is above zero.

    Source: Nadaraya 1964 and Watson 1964, for the kernel regression r.

    Example:
        >>> from simmst.simulation import Uniform
        >>> values = tuple(i / 10 for i in range(11))
        >>> law = Believed(Uniform(0.0, 1.0), values, tuple(float(value > 0.5) for value in values))
        >>> law.log_prob(0.9) > law.log_prob(0.1), law.log_prob(1.5)
        (True, -inf)
    """

    law: Any
    values: tuple[Any, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check and freeze values and weights."""
        if not isinstance(self.law, Distribution):
            raise ConfigError(f"Believed(law={self.law!r}): give a distribution, such as Uniform(low, high)")
        values, weights = tuple(self.values), tuple(float(weight) for weight in self.weights)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "weights", weights)
        wrong = [weight for weight in weights if not math.isfinite(weight) or weight < 0]
        if len(values) != len(weights) or wrong or not sum(weights) > 0:
            what = f"{wrong[0]} among them" if wrong else f"a sum of {sum(weights):g}"
            raise ConfigError(
                f"Believed: {len(values)} values and {len(weights)} weights with {what}; give each city's value a "
                "weight of at least 0, and at least one a weight above 0"
            )

    @property
    def bounds(self) -> tuple[Any, ...]:
        """Bounds of the original law."""
        bounds: tuple[Any, ...] = self.law.bounds
        return bounds

    def sample(self, rng: np.random.Generator) -> Any:
        """Draw from the original law until a draw is kept."""
        most = max(self.weights)
        while True:
            values = [self.law.sample(rng) for _ in range(_TRIES)]
            kept = np.flatnonzero(rng.random(_TRIES) * most <= self._beliefs(values))
            if len(kept):
                return values[int(kept[0])]

    def log_prob(self, value: Any) -> float:
        """Return the log density; its constant is an average over 4,096 draws of the original law."""
        before: float = self.law.log_prob(value)
        return before if before == -math.inf else before + math.log(self.belief(value)) - self._log_constant

    def belief(self, value: Any) -> float:
        """Return r, the smoothed weight of cities with such a value, between the least and the greatest weight."""
        return float(self._beliefs([value])[0])

    def _beliefs(self, values: Sequence[Any]) -> np.ndarray:
        if self._ranks is None:
            near = np.array([[float(other == value) for other in self.values] for value in values])
        else:
            ordered, ranks = self._ranks
            width = _WIDTH * len(ranks) ** -0.2
            near = np.exp(-0.5 * ((_rank(ordered, np.array(values, np.float64))[:, None] - ranks) / width) ** 2)
        weights = np.array(self.weights)
        found: np.ndarray = (_PRIOR_CITIES * weights.mean() + near @ weights) / (_PRIOR_CITIES + near.sum(1))
        return found

    @cached_property
    def _ranks(self) -> tuple[np.ndarray, np.ndarray] | None:
        if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in self.values):
            return None
        values = np.array(self.values, dtype=np.float64)
        return np.sort(values), _rank(np.sort(values), values)

    @cached_property
    def _log_constant(self) -> float:
        rng = np.random.default_rng(0)
        return math.log(float(self._beliefs([self.law.sample(rng) for _ in range(_INTEGRAL)]).mean()))


def _rank(ordered: np.ndarray, values: Any) -> Any:
    """Return ranks between 0 and 1; ties share their middle rank, and values in between are interpolated."""
    number = len(ordered)
    known, first, count = np.unique(ordered, return_index=True, return_counts=True)
    middle = (first + (count - 1) / 2 + 0.5) / number
    return np.interp(values, known, middle)
