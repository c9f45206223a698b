"""The configuration of the models, one frozen dataclass of JSON-able fields."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simmst.errors import ConfigError
from simmst.foundation.bounds import at_most, refuse_too_large
from simmst.foundation.scalars import python_scalars
from simmst.foundation.task_weights import TASK_WEIGHTS
from simmst.ops.backends import BACKENDS

ABLATIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "oInter": {"interaction": False},
    "oSpatial": {"spatial": False},
    "Average": {"task_weights": "average"},
}
_MOST = {
    "input_length": 20_000,
    "horizon": 10_000,
    "neighbourhood": 101,
    "num_marks": 1_000,
    "width": 8_192,
    "num_heads": 1_024,
    "encoder_layers": 100,
    "decoder_layers": 100,
    "feedforward": 65_536,
    "factor": 1_000_000,
    "memory_days": 3_660,
    "spatial_steps": 20_000,
}


@dataclass(frozen=True)
class SimMSTNetConfig:
    """All settings that determine the shape and the behaviour of a model.

    Args:
        services: names of the tasks, at least one.
        input_length: number of slots in the input window, T_in.
        horizon: number of steps ahead to forecast, T_out.
        label_length: number of latest input slots at the start of the decoder's input (Informer's label_len).
        neighbourhood: side of the square of cells around the target cell, odd; 1 is only the target cell.
        num_marks: number of calendar features of a slot, M.
        width: number of features of a token.
        num_heads: number of heads of every attention, a divisor of width.
        encoder_layers: number of layers of the temporal encoder.
        decoder_layers: number of layers of the decoder.
        feedforward: hidden width of the feed-forward parts and of the task MLPs.
        factor: ProbSparse's factor, which sets the numbers of sampled keys and of selected queries.
        dropout: probability of dropping a feature while training.
        memory_days: number of previous days in the memory, L.
        spatial_steps: number of latest input slots that the spatial branch sees.
        interaction: whether tasks exchange features (False is the ablation oInter).
        spatial: whether the model has a spatial branch (False is the ablation oSpatial).
        task_weights: ``"loss_share"`` (Sim-MSTNet, Eq. 13-14), ``"average"`` (the ablation Average), or a method of
            torchjd: see `TaskWeights`.
        highway: whether a linear autoregression is added to the network's forecast.
        backend: backend of every attention; None chooses for each call.

    Raises:
        ConfigError: a field is out of range; the message names the field, its value and the allowed range.

    Example:
        >>> config = SimMSTNetConfig(services=("internet",), horizon=24)
        >>> config.num_tasks, config.horizon
        (1, 24)
        >>> SimMSTNetConfig.from_dict(config.to_dict()) == config
        True
        >>> SimMSTNetConfig(neighbourhood=4)
        Traceback (most recent call last):
        ...
        simmst.errors.ConfigError: neighbourhood is 4; it must be an odd integer of at least 1
    """

    services: tuple[str, ...] = ("call", "sms", "internet")
    input_length: int = 24
    horizon: int = 6
    label_length: int = 12
    neighbourhood: int = 5
    num_marks: int = 8
    width: int = 32
    num_heads: int = 2
    encoder_layers: int = 1
    decoder_layers: int = 1
    feedforward: int = 128
    factor: int = 5
    dropout: float = 0.1
    memory_days: int = 28
    spatial_steps: int = 6
    interaction: bool = True
    spatial: bool = True
    task_weights: str = "loss_share"
    highway: bool = True
    backend: str | None = None

    def __post_init__(self) -> None:
        python_scalars(self)
        self._check_services()
        for name in ("input_length", "horizon", "neighbourhood", "width", "num_heads", "encoder_layers"):
            self._check_integer(name, 1)
        for name in ("decoder_layers", "feedforward", "factor", "memory_days", "spatial_steps"):
            self._check_integer(name, 1)
        for name in ("label_length", "num_marks"):
            self._check_integer(name, 0)
        for name, most in _MOST.items():
            at_most(name, getattr(self, name), most)
        if self.neighbourhood % 2 == 0:
            self._refuse("neighbourhood", "an odd integer of at least 1")
        if self.width % self.num_heads:
            self._refuse("width", f"a multiple of num_heads = {self.num_heads}")
        if self.label_length > self.input_length:
            self._refuse("label_length", f"between 0 and input_length = {self.input_length}")
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, (int, float)) or math.isnan(self.dropout):
            self._refuse("dropout", "a number in [0, 1)")
        if not 0 <= self.dropout < 1:
            self._refuse("dropout", "a number in [0, 1)")
        for name in ("interaction", "spatial", "highway"):
            if not isinstance(getattr(self, name), bool):
                self._refuse(name, "True or False")
        self._check_choice("task_weights", TASK_WEIGHTS)
        if self.backend is not None:
            self._check_choice("backend", BACKENDS, "None or one of ")
        self._check_size()

    def _check_size(self) -> None:
        """Refuse a network too large for any memory, by an estimate that is right to about a factor of two."""
        width, hidden, cells = self.width, self.feedforward, self.neighbourhood**2
        layers = self.encoder_layers + 2 * self.decoder_layers
        parameters = layers * (4 * width**2 + 2 * width * hidden) + 4 * hidden**2 + (cells + 9) * width**2
        tokens = (
            self.input_length * (1 + self.encoder_layers) + (self.label_length + self.horizon) * self.decoder_layers
        )
        window = tokens * (8 * width + 2 * hidden) + cells * (4 * width + 3 * self.input_length)
        window += self.memory_days * (self.input_length + 16 * self.horizon)
        refuse_too_large(
            parameters,
            window * self.num_tasks,
            "width, feedforward, the layers, the neighbourhood, the input or the horizon",
        )

    @property
    def num_tasks(self) -> int:
        """The number of services, K."""
        return len(self.services)

    def ablation(self, name: str) -> SimMSTNetConfig:
        """Derive the configuration of one of the paper's ablations.

        Args:
            name: ``"oInter"`` (no task interaction), ``"oSpatial"`` (no spatial branch), ``"Average"`` (fixed equal
                task weights) or ``"full"`` (this configuration).

        Raises:
            ConfigError: no ablation has this name.

        Example:
            >>> SimMSTNetConfig().ablation("oSpatial").spatial
            False
        """
        if name not in ABLATIONS:
            raise ConfigError(f"ablation is {name!r}; it must be one of {', '.join(ABLATIONS)}")
        return dataclasses.replace(self, **ABLATIONS[name])

    def single_task(self, service: str) -> SimMSTNetConfig:
        """Derive the configuration of ``STNet`` for one of the services.

        Raises:
            ConfigError: the configuration lacks the service.

        Example:
            >>> SimMSTNetConfig().single_task("sms").services
            ('sms',)
        """
        if service not in self.services:
            raise ConfigError(f"service is {service!r}; it must be one of {', '.join(self.services)}")
        return dataclasses.replace(self, services=(service,), interaction=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values.

        Example:
            >>> SimMSTNetConfig().to_dict()["services"]
            ['call', 'sms', 'internet']
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**fields, "services": list(self.services)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> SimMSTNetConfig:
        """Build a configuration from the result of ``to_dict``; missing fields take their defaults.

        Raises:
            ConfigError: a key is not a field of the configuration, or a value is out of range.

        Example:
            >>> SimMSTNetConfig.from_dict({"widht": 64})  # doctest: +ELLIPSIS
            Traceback (most recent call last):
            ...
            simmst.errors.ConfigError: unknown setting 'widht'; the settings are services, input_length, ...
        """
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [repr(key) for key in fields if key not in known]
        if unknown:
            plural = "s" if len(unknown) > 1 else ""
            raise ConfigError(f"unknown setting{plural} {', '.join(unknown)}; the settings are {', '.join(known)}")
        return cls(**fields)

    def _check_services(self) -> None:
        allowed = "a non-empty sequence of different, non-empty names"
        if isinstance(self.services, str) or not isinstance(self.services, (tuple, list)):
            self._refuse("services", allowed)
        if not all(isinstance(name, str) and name for name in self.services):
            self._refuse("services", allowed)
        if not self.services or len(set(self.services)) != len(self.services):
            self._refuse("services", allowed)
        object.__setattr__(self, "services", tuple(self.services))

    def _check_integer(self, name: str, smallest: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
            self._refuse(name, f"an integer of at least {smallest}")

    def _check_choice(self, name: str, allowed: tuple[str, ...], prefix: str = "one of ") -> None:
        if getattr(self, name) not in allowed:
            self._refuse(name, prefix + ", ".join(allowed))

    def _refuse(self, name: str, allowed: str) -> None:
        raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be {allowed}")
