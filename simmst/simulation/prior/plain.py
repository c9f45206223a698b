"""Conversion of distributions to plain values for files, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from simmst.errors import ConfigError
from simmst.foundation.suggestions import suggest
from simmst.simulation.prior.believed import Believed
from simmst.simulation.prior.distributions import (
    Categorical,
    Dates,
    Distribution,
    LogUniform,
    Mixture,
    TruncatedNormal,
    Uniform,
)

KINDS: dict[str, type[Any]] = {
    "uniform": Uniform,
    "log-uniform": LogUniform,
    "truncated-normal": TruncatedNormal,
    "categorical": Categorical,
    "dates": Dates,
    "mixture": Mixture,
    "believed": Believed,
}


def to_plain(distribution: Distribution) -> dict[str, Any]:
    """Describe a distribution in plain values, with its kind under ``"distribution"``.

    Example:
        >>> to_plain(Uniform(1.0, 2.0))
        {'distribution': 'uniform', 'low': 1.0, 'high': 2.0}
    """
    kind = next(name for name, cls in KINDS.items() if type(distribution) is cls)
    plain: dict[str, Any] = {"distribution": kind}
    for field in fields(KINDS[kind]):
        value = getattr(distribution, field.name)
        if value is not None:
            plain[field.name] = [_plain(item) for item in value] if isinstance(value, tuple) else _plain(value)
    return plain


def _plain(value: Any) -> Any:
    return to_plain(value) if type(value) in KINDS.values() else value


def from_plain(parameter: str, plain: object) -> Distribution:
    """Rebuild a distribution from `to_plain`; a bare number, string or Boolean is a constant.

    Args:
        parameter: name of the parameter, for messages.
        plain: the description.

    Raises:
        ConfigError: the kind or a field is unknown, missing or impossible; the message names the parameter.

    Example:
        >>> from_plain("tilt_deg", {"distribution": "uniform", "low": 2, "high": 12})
        Uniform(low=2, high=12)
        >>> from_plain("tilt_deg", 5.0).bounds
        (5.0,)
    """
    if isinstance(plain, (int, float, str)):
        return Categorical((plain,))
    if not isinstance(plain, Mapping) or "distribution" not in plain:
        raise ConfigError(
            f"parameter {parameter!r} is {plain!r}; describe it as {{distribution: uniform, low: ..., high: ...}} "
            "or give a constant"
        )
    kind = plain["distribution"]
    cls = KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise ConfigError(
            f"parameter {parameter!r}: distribution {kind!r} is unknown; choose one of {', '.join(KINDS)}"
        )
    given = {name: value for name, value in plain.items() if name != "distribution"}
    if cls is Mixture and isinstance(given.get("laws"), (list, tuple)):
        given["laws"] = tuple(from_plain(parameter, law) for law in given["laws"])
    if cls is Believed and "law" in given:
        given["law"] = from_plain(parameter, given["law"])
    known = [field.name for field in fields(cls)]
    for name in given:
        if name not in known:
            raise ConfigError(f"parameter {parameter!r}: {kind} has no field {name!r}; {suggest(name, known)}")
    try:
        law: Distribution = cls(**given)
    except TypeError as error:
        raise ConfigError(
            f"parameter {parameter!r}: {kind} needs the fields {', '.join(known)}; got {given}"
        ) from error
    except ConfigError as error:
        raise ConfigError(f"parameter {parameter!r}: {error}") from error
    return law
