"""Domain randomisation: a typed prior over the parameters of simulated cities."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from simmst.errors import ConfigError
from simmst.foundation.documents import DocumentError, read_yaml
from simmst.foundation.extras import import_extra
from simmst.foundation.files import write_atomically
from simmst.foundation.suggestions import suggest
from simmst.simulation.config import PARAMETER_RANGES, PARTS, CityConfig, resolve_services
from simmst.simulation.prior.believed import Believed
from simmst.simulation.prior.defaults import default_parameters, surrogate_parameters, usual_parameters
from simmst.simulation.prior.distributions import INTERVALS, Categorical, Distribution, Mixture
from simmst.simulation.prior.plain import from_plain, to_plain
from simmst.simulation.services import DEFAULT_SERVICES, SERVICE_RANGES, check_fields, check_range
from simmst.simulation.streams import stream


@dataclasses.dataclass(frozen=True)
class DomainPrior:
    """Independent laws of the parameters of a `CityConfig`.

    A parameter is a field of `CityConfig`, ``"habits.<field>"`` or ``"faults.<field>"`` for one of its `Habits` or
    `CounterFaults`, or ``"<service>.<field>"`` for a number of one service, such as ``"call.rate_per_user_hour"``
    (only for cities that have that service). Parameters without a law keep the default of `CityConfig`. Each
    parameter is drawn from its own random stream, so changing the law of one leaves the others unchanged.

    Attributes:
        parameters: laws by parameter.
        note: origin of the laws, such as the period they were calibrated on; ignored when priors are compared.

    Raises:
        ConfigError: a parameter is unknown, or its law allows an impossible value; the message names it.

    Example:
        >>> from simmst.simulation import Uniform
        >>> prior = DomainPrior({"tilt_deg": Uniform(2.0, 12.0)})
        >>> 2.0 <= prior.sample(seed=1, index=7).tilt_deg <= 12.0
        True
    """

    parameters: Mapping[str, Distribution]
    note: str = dataclasses.field(default="", compare=False)

    def __post_init__(self) -> None:
        """Check that every name is known and its bounds are possible."""
        object.__setattr__(self, "parameters", dict(self.parameters))
        for name, distribution in self.parameters.items():
            _check_parameter(name, distribution)

    @classmethod
    def default(cls) -> DomainPrior:
        """Return the training prior, wide enough that real cities should lie within it.

        Example:
            >>> DomainPrior.default().bounds()["carrier_ghz"]
            (0.8, 3.5)
        """
        return cls(default_parameters())

    @classmethod
    def usual(cls) -> DomainPrior:
        """Return the training prior without its unusual cities: days as in Milan, counters that work, one scale.

        Example:
            >>> DomainPrior.usual().sample(0, 1).faults.any
            False
        """
        return cls(usual_parameters())

    @classmethod
    def surrogate(cls) -> DomainPrior:
        """Return the prior of surrogate cities, which stand in for a real city where there is none.

        Sites, density, hours, weekends and service rates lie outside the default prior's bounds, so a surrogate is
        never like the cities that networks are trained on. The other laws are those of `usual`.

        Example:
            >>> DomainPrior.surrogate().bounds()["inter_site_distance_m"]
            (1250.0, 1700.0)
        """
        return cls(surrogate_parameters())

    def sample(self, seed: int, index: int, **overrides: Any) -> CityConfig:
        """Draw the configuration of one city.

        Args:
            seed: seed of the family of cities.
            index: number of the city within the family.
            **overrides: fields of `CityConfig` to fix, such as ``days=14`` or ``services=["internet"]``. The other
                parameters are drawn as they would be without overrides.

        Raises:
            ConfigError: an override is unknown or out of range.

        Example:
            >>> prior = DomainPrior.default()
            >>> prior.sample(3, 5, days=2).carrier_ghz == prior.sample(3, 5).carrier_ghz
            True
        """
        identity = CityConfig(seed=seed, index=index)  # checks both
        values: dict[str, Any] = {"seed": identity.seed, "index": identity.index, **overrides}
        services = {
            service.name: service for service in resolve_services(values.get("services", tuple(DEFAULT_SERVICES)))
        }
        parts: dict[str, dict[str, Any]] = {name: {} for name in PARTS if name not in overrides}
        for name, distribution in self.parameters.items():
            owner, _, field = name.rpartition(".")
            if name in overrides or owner in overrides or (owner and owner not in (*services, *PARTS)):
                continue
            value = distribution.sample(stream(seed, index, f"prior/{name}"))
            if owner in PARTS:
                parts[owner][field] = value
            elif owner:
                services[owner] = dataclasses.replace(services[owner], **{field: value})
            else:
                values[name] = value
        values |= {"services": list(services.values()), **parts}
        return CityConfig.from_dict(values)

    def log_prob(self, config: CityConfig) -> float:
        """Return the log density of a configuration; minus infinity if it is impossible.

        Parameters of services that the city does not have are left out.

        Example:
            >>> from simmst.simulation import Uniform
            >>> DomainPrior({"tilt_deg": Uniform(2.0, 12.0)}).log_prob(CityConfig(tilt_deg=13.0))
            -inf
        """
        return sum(self.parameters[name].log_prob(value) for name, value in self.values(config).items())

    def values(self, config: CityConfig) -> dict[str, Any]:
        """Return the values that this prior's parameters have in a configuration.

        Example:
            >>> from simmst.simulation import Uniform
            >>> DomainPrior({"tilt_deg": Uniform(2.0, 12.0)}).values(CityConfig(tilt_deg=3.0))
            {'tilt_deg': 3.0}
        """
        owners: dict[str, Any] = {"": config, **{service.name: service for service in config.services}}
        owners |= {name: getattr(config, name) for name in PARTS}
        return {name: getattr(owners[owner], field) for name, owner, field in self._split() if owner in owners}

    def _split(self) -> Iterator[tuple[str, str, str]]:
        for name in self.parameters:
            owner, _, field = name.rpartition(".")
            yield name, owner, field

    def bounds(self) -> dict[str, tuple[Any, ...]]:
        """Return the lowest and highest value of each parameter; all values of a categorical."""
        return {name: distribution.bounds for name, distribution in self.parameters.items()}

    def narrow(self, parameters: Mapping[str, Any]) -> DomainPrior:
        """Return a prior in which some parameters have another law.

        Args:
            parameters: new law of each parameter: a distribution, a constant, or a pair ``(low, high)``. A pair sets
                new bounds: the law stays uniform, log-uniform or truncated normal, and a mixture is cut off at them.

        Raises:
            ConfigError: a parameter is unknown, or a pair is given for a law that has no interval.

        Example:
            >>> DomainPrior.default().narrow({"carrier_ghz": (1.8, 2.1), "scenario": "UMa"}).bounds()["carrier_ghz"]
            (1.8, 2.1)
        """
        narrowed = dict(self.parameters)
        for name, law in parameters.items():
            current = narrowed.get(name)
            if isinstance(law, tuple) and len(law) == 2 and all(isinstance(end, (int, float)) for end in law):
                if isinstance(current, INTERVALS):
                    narrowed[name] = dataclasses.replace(current, low=law[0], high=law[1])
                    continue
                if isinstance(current, Mixture):
                    narrowed[name] = current.within(law[0], law[1])
                    continue
                raise ConfigError(f"parameter {name!r} has no interval to narrow to {law}; give it a distribution")
            narrowed[name] = Categorical((law,)) if isinstance(law, (int, float, str)) else law
        return DomainPrior(narrowed, self.note)

    def believed(self, cities: Sequence[Mapping[str, Any]], weights: Sequence[float]) -> DomainPrior:
        """Return this prior, updated by the weights of cities that were drawn from it.

        Each parameter is drawn as before, and a draw is kept in proportion to the weights of the cities with such a
        value (`Believed`). Nothing outside this prior becomes possible, equal weights change nothing, and values that
        set heavily weighted cities apart become common. The next cities can be drawn from the new prior, weighted, and
        so on.

        Args:
            cities: parameters of cities drawn from this prior, by name, as `values` returns them.
            weights: weight of each city, such as the weights of a re-weighting by city.

        Raises:
            ConfigError: the numbers of cities and weights differ, or no weight is above zero.

        Example:
            >>> from simmst.simulation import Uniform
            >>> prior = DomainPrior({"tilt_deg": Uniform(2.0, 12.0)})
            >>> cities = [prior.values(prior.sample(0, index)) for index in range(50)]
            >>> after = prior.believed(cities, [city["tilt_deg"] > 9.0 for city in cities])
            >>> sum(after.sample(1, index).tilt_deg for index in range(50)) / 50 > 8.5
            True
        """
        if len(cities) != len(weights):
            raise ConfigError(f"{len(cities)} cities have {len(weights)} weights; give each city one")
        laws = dict(self.parameters)
        for name, law in self.parameters.items():
            known = [(city[name], weight) for city, weight in zip(cities, weights, strict=True) if name in city]
            if known:
                laws[name] = Believed(law, tuple(value for value, _ in known), tuple(weight for _, weight in known))
        return DomainPrior(laws, self.note)

    def to_yaml(self, path: str | Path) -> Path:
        """Write all laws to a YAML file.

        Args:
            path: the file, replaced as a whole or not at all.

        Returns:
            The path.
        """
        yaml = import_extra("yaml", extra="forecast")
        plain = {name: to_plain(distribution) for name, distribution in self.parameters.items()}
        content = {"base": "none", **({"note": self.note} if self.note else {}), "parameters": plain}
        text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None)
        return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    @classmethod
    def from_yaml(cls, path: str | Path) -> DomainPrior:
        """Read laws from a YAML file.

        The file holds ``parameters``, a mapping from parameter to a constant or to ``{distribution: uniform, low: ..,
        high: ..}`` (or log-uniform, truncated-normal, categorical, dates, mixture). Two keys are optional: ``base``
        names the prior whose laws the other parameters keep, one of ``default`` (also when left out), ``usual``,
        ``surrogate`` and ``none``; ``note`` is a text.

        Raises:
            ConfigError: the file is not such a YAML file, or names an unknown or impossible parameter; the message
                names the file and the parameter.
        """
        try:
            content = read_yaml(Path(path))
        except (OSError, DocumentError) as error:
            raise ConfigError(f"{path} cannot be read as a prior: {error}") from error
        if not isinstance(content, Mapping) or not isinstance(content.get("parameters"), Mapping):
            raise ConfigError(f"{path} is not a prior: it needs a mapping 'parameters' from names to distributions")
        unknown = sorted(set(content) - {"base", "note", "parameters"}, key=str)
        if unknown:
            raise ConfigError(f"{path}: unknown key {unknown[0]!r}; a prior holds 'base', 'note' and 'parameters'")
        bases = {
            "default": default_parameters(),
            "usual": usual_parameters(),
            "surrogate": surrogate_parameters(),
            "none": {},
        }
        base = content.get("base", "default")
        if base not in bases:
            raise ConfigError(f"{path}: base is {base!r}; choose one of {', '.join(bases)}")
        note = content.get("note", "")
        if not isinstance(note, str):
            raise ConfigError(f"{path}: note is {note!r}; it must be text")
        try:
            return cls(
                {**bases[base], **{name: from_plain(name, plain) for name, plain in content["parameters"].items()}},
                note,
            )
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error


def _check_parameter(name: str, distribution: Distribution) -> None:
    """Raise unless the parameter exists and every value of its law is possible."""
    if not all(hasattr(distribution, part) for part in ("sample", "log_prob", "bounds")):
        raise ConfigError(f"parameter {name!r} is {distribution!r}; give it a distribution, such as Uniform(low, high)")
    owner, _, field = str(name).rpartition(".")
    if owner in PARTS:
        try:
            for value in distribution.bounds:
                PARTS[owner](**check_fields(PARTS[owner], {field: value}))
        except ConfigError as error:
            raise ConfigError(f"parameter {name!r}: {error}") from error
        return
    ranges = SERVICE_RANGES if owner else PARAMETER_RANGES
    if field in ranges:
        for value in distribution.bounds:
            check_range(f"parameter {name!r}: a value allowed by {distribution}", value, *ranges[field])
    elif not owner and field in ("scenario", "radio", "outline", "step_minutes", "start", "height", "width", "days"):
        try:
            for value in distribution.bounds:
                CityConfig(**{field: value})
        except ConfigError as error:
            raise ConfigError(f"parameter {name!r}: {error}") from error
    else:
        known = [*PARAMETER_RANGES, "scenario", "start", "call.rate_per_user_hour"]
        raise ConfigError(f"unknown parameter {name!r}; {suggest(name, known)}")
