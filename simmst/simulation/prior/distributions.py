"""The distributions that make up a prior: small, frozen, with sampling, density and bounds."""

from __future__ import annotations

import dataclasses
import datetime
import math
import statistics
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from simmst.errors import ConfigError
from simmst.simulation.config import check_date


@runtime_checkable
class Distribution(Protocol):
    """The law of one parameter."""

    @property
    def bounds(self) -> tuple[Any, ...]:
        """Lowest and highest value, or all values of a categorical."""
        ...

    def sample(self, rng: np.random.Generator) -> Any:
        """Draw one value."""
        ...

    def log_prob(self, value: Any) -> float:
        """Return the log density (or log probability) of a value; minus infinity outside the bounds."""
        ...


def _check_interval(kind: str, low: float, high: float, *, positive: bool = False) -> None:
    """Raise unless the interval is finite, not empty and, if asked, positive."""
    numbers = all(
        isinstance(end, (int, float)) and not isinstance(end, bool) and math.isfinite(end) for end in (low, high)
    )
    if not numbers or low >= high:
        raise ConfigError(f"{kind}(low={low!r}, high={high!r}): low must be a number below high")
    if positive and low <= 0:
        raise ConfigError(f"{kind}(low={low!r}, high={high!r}): low must be above zero")


@dataclass(frozen=True)
class Uniform:
    """The uniform law on an interval.

    Example:
        >>> Uniform(2.0, 4.0).log_prob(3.0) == -math.log(2)
        True
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        """Check the ends."""
        _check_interval("Uniform", self.low, self.high)

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value."""
        return self.low, self.high

    def sample(self, rng: np.random.Generator) -> float:
        """Draw one value."""
        return float(rng.uniform(self.low, self.high))

    def log_prob(self, value: float) -> float:
        """Return the log density."""
        return -math.log(self.high - self.low) if self.low <= value <= self.high else -math.inf


@dataclass(frozen=True)
class LogUniform:
    """The law whose logarithm is uniform: every octave is equally likely.

    Example:
        >>> LogUniform(1.0, 10.0).sample(np.random.default_rng(0)) <= 10.0
        True
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        """Check the ends."""
        _check_interval("LogUniform", self.low, self.high, positive=True)

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value."""
        return self.low, self.high

    def sample(self, rng: np.random.Generator) -> float:
        """Draw one value."""
        value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        return min(max(value, self.low), self.high)  # rounding of exp and log may leave the interval

    def log_prob(self, value: float) -> float:
        """Return the log density, in the value (not in its logarithm)."""
        if not self.low <= value <= self.high:
            return -math.inf
        return -math.log(value) - math.log(math.log(self.high / self.low))


@dataclass(frozen=True)
class TruncatedNormal:
    """The normal law, cut off at two ends.

    Example:
        >>> TruncatedNormal(mean=0.0, std=1.0, low=-1.0, high=1.0).log_prob(2.0)
        -inf
    """

    mean: float
    std: float
    low: float
    high: float

    def __post_init__(self) -> None:
        """Check the parameters, and that the interval has any mass."""
        _check_interval("TruncatedNormal", self.low, self.high)
        if not self.std > 0:
            raise ConfigError(f"TruncatedNormal(std={self.std!r}): std must be above zero")
        if self._mass() < 1e-12:
            raise ConfigError(f"{self}: the interval holds next to nothing of the normal law; move it towards the mean")

    def _mass(self) -> float:
        normal = statistics.NormalDist(self.mean, self.std)
        return normal.cdf(self.high) - normal.cdf(self.low)

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value."""
        return self.low, self.high

    def sample(self, rng: np.random.Generator) -> float:
        """Draw one value, by inversion."""
        normal = statistics.NormalDist(self.mean, self.std)
        level = normal.cdf(self.low) + rng.random() * self._mass()
        return min(max(normal.inv_cdf(min(max(level, 1e-300), 1 - 1e-16)), self.low), self.high)

    def log_prob(self, value: float) -> float:
        """Return the log density."""
        if not self.low <= value <= self.high:
            return -math.inf
        standard = (value - self.mean) / self.std
        return -0.5 * standard**2 - math.log(self.std * math.sqrt(2 * math.pi)) - math.log(self._mass())


@dataclass(frozen=True)
class Categorical:
    """A choice among values; with a single value, a constant.

    Example:
        >>> Categorical(("UMa", "UMi")).log_prob("UMa") == math.log(0.5)
        True
    """

    choices: tuple[Any, ...]
    probabilities: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check and freeze choices and probabilities."""
        if isinstance(self.choices, str) or not isinstance(self.choices, (tuple, list)) or not self.choices:
            raise ConfigError(f"Categorical(choices={self.choices!r}): give a list of at least one value")
        object.__setattr__(self, "choices", tuple(self.choices))
        if self.probabilities is None:
            return
        probabilities = tuple(self.probabilities)
        if len(probabilities) != len(self.choices) or min(probabilities) < 0 or abs(sum(probabilities) - 1) > 1e-9:
            raise ConfigError(
                f"Categorical(probabilities={probabilities}): give {len(self.choices)} numbers, one per choice, "
                "not negative, that sum to one"
            )
        object.__setattr__(self, "probabilities", probabilities)

    @property
    def bounds(self) -> tuple[Any, ...]:
        """All choices."""
        return self.choices

    def sample(self, rng: np.random.Generator) -> Any:
        """Draw one choice, as it was given."""
        return self.choices[int(rng.choice(len(self.choices), p=self.probabilities))]

    def log_prob(self, value: Any) -> float:
        """Return the log probability."""
        if value not in self.choices:
            return -math.inf
        if self.probabilities is None:
            return -math.log(len(self.choices))
        probability = self.probabilities[self.choices.index(value)]
        return math.log(probability) if probability > 0 else -math.inf


@dataclass(frozen=True)
class Dates:
    """A date, each day of an interval equally likely, as ISO text.

    Example:
        >>> Dates("2013-11-01", "2013-11-30").log_prob("2013-11-15") == -math.log(30)
        True
    """

    first: str
    last: str

    def __post_init__(self) -> None:
        """Check the dates."""
        if check_date("Dates.first", self.first) > check_date("Dates.last", self.last):
            raise ConfigError(f"Dates(first={self.first!r}, last={self.last!r}): first must not come after last")

    def _days(self) -> int:
        return (datetime.date.fromisoformat(self.last) - datetime.date.fromisoformat(self.first)).days + 1

    @property
    def bounds(self) -> tuple[str, str]:
        """First and last date."""
        return self.first, self.last

    def sample(self, rng: np.random.Generator) -> str:
        """Draw one date."""
        day = datetime.timedelta(days=int(rng.integers(self._days())))
        return (datetime.date.fromisoformat(self.first) + day).isoformat()

    def log_prob(self, value: str) -> float:
        """Return the log probability."""
        return -math.log(self._days()) if self.first <= value <= self.last else -math.inf


@dataclass(frozen=True)
class Mixture:
    """One of several laws, chosen at random: such as the law of most cities and that of a few.

    Example:
        >>> law = Mixture((Categorical((0.0,)), Uniform(1.0, 3.0)), (0.75, 0.25))
        >>> law.bounds, law.log_prob(0.0) == math.log(0.75), law.log_prob(2.0) == math.log(0.25 / 2)
        ((0.0, 3.0), True, True)
    """

    laws: tuple[Any, ...]
    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check and freeze laws and probabilities."""
        object.__setattr__(self, "laws", tuple(self.laws))
        if not all(isinstance(law, Distribution) for law in self.laws):
            raise ConfigError(f"Mixture(laws={self.laws!r}): give distributions, such as Uniform(low, high)")
        choice = Categorical(tuple(range(len(self.laws))), self.probabilities)
        object.__setattr__(self, "probabilities", choice.probabilities)

    @property
    def bounds(self) -> tuple[Any, ...]:
        """Lowest and highest value of all laws."""
        ends = [end for law in self.laws for end in law.bounds]
        return min(ends), max(ends)

    def sample(self, rng: np.random.Generator) -> Any:
        """Draw a law, then a value from it."""
        return self.laws[int(rng.choice(len(self.laws), p=self.probabilities))].sample(rng)

    def log_prob(self, value: Any) -> float:
        """Return the log density; where a law is a constant, the log probability of that value."""
        terms = [
            math.log(share) + law.log_prob(value)
            for law, share in zip(self.laws, self.probabilities, strict=True)
            if share > 0
        ]
        greatest: float = max(terms)
        return greatest if math.isinf(greatest) else greatest + math.log(sum(math.exp(t - greatest) for t in terms))

    def within(self, low: float, high: float) -> Mixture:
        """Return the mixture cut to an interval: each law that overlaps it, weighted by the mass that is left.

        If none does, the first law that has an interval is moved there.

        Raises:
            ConfigError: no law has an interval.

        Example:
            >>> Mixture((Uniform(0.0, 1.0), Uniform(1.0, 3.0)), (0.5, 0.5)).within(0.5, 2.0).probabilities
            (0.5, 0.5)
        """
        cut: list[tuple[Distribution, float]] = []
        spans = [
            (law, share) for law, share in zip(self.laws, self.probabilities, strict=True) if isinstance(law, INTERVALS)
        ]
        for law, share in spans:
            least, most = max(low, law.low), min(high, law.high)
            if least < most:
                cut.append(
                    (dataclasses.replace(law, low=least, high=most), share * (level(law, most) - level(law, least)))
                )
        if not spans:
            raise ConfigError(f"{self} has no interval to narrow to {(low, high)}; give it a distribution")
        if not cut:
            cut = [(dataclasses.replace(spans[0][0], low=low, high=high), 1.0)]
        total = sum(share for _, share in cut)
        return Mixture(tuple(law for law, _ in cut), tuple(share / total for _, share in cut))


INTERVALS = (Uniform, LogUniform, TruncatedNormal)


def level(law: Distribution, value: float) -> float:
    """Return the distribution function, at a value, of a law that has an interval or of a mixture of such laws.

    Example:
        >>> level(Uniform(2.0, 4.0), 2.5), level(LogUniform(1.0, 100.0), 10.0)
        (0.25, 0.5)
    """
    if isinstance(law, Mixture):
        return sum(share * level(one, value) for one, share in zip(law.laws, law.probabilities, strict=True))
    if not isinstance(law, INTERVALS):
        raise TypeError(f"{law} has no interval")
    value = min(max(value, law.low), law.high)
    if isinstance(law, Uniform):
        return (value - law.low) / (law.high - law.low)
    if isinstance(law, LogUniform):
        return math.log(value / law.low) / math.log(law.high / law.low)
    normal = statistics.NormalDist(law.mean, law.std)
    least, most = normal.cdf(law.low), normal.cdf(law.high)
    return (normal.cdf(value) - least) / (most - least)


def sometimes(share: float, law: Distribution, otherwise: Any = 0.0) -> Mixture:
    """Return the mixture in which a share of the cities draws from a law and the rest have a fixed value.

    Example:
        >>> sometimes(0.25, Uniform(1.0, 3.0)).probabilities
        (0.75, 0.25)
    """
    return Mixture((Categorical((otherwise,)), law), (1 - share, share))
