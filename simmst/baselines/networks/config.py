"""The settings that all networks share, and their checks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from typing_extensions import Self

from simmst.errors import ConfigError
from simmst.foundation.bounds import at_most, refuse_too_large
from simmst.foundation.scalars import python_scalars
from simmst.foundation.suggestions import suggest
from simmst.foundation.task_weights import TASK_WEIGHTS

_MOST_WIDTH = 4_096  # of layers, and of everything without a bound of its own
_MOST = {"input_length": 20_000, "horizon": 10_000, "neighbourhood": 101, "memory_days": 3_660, "factor": 1_000_000}
CENTRES = ("window", "fixed")


def integer(default: int, least: int = 1) -> Any:
    """Return a field that takes integers of at least `least`."""
    return dataclasses.field(default=default, metadata={"least": least})


def choice(default: str | None, allowed: tuple[str, ...]) -> Any:
    """Return a field that takes one of some names, or None if its annotation allows it."""
    return dataclasses.field(default=default, metadata={"allowed": allowed})


@dataclass(frozen=True)
class NetworkConfig:
    """The settings of every network; each network adds settings of its own.

    Fields annotated ``int`` take integers of at least 1 (or as `integer` says), ``float`` numbers in [0, 1), ``bool``
    True or False, ``str`` the names that `choice` allows.

    Args:
        services: names of the tasks.
        input_length: number of slots in the input window, T_in.
        horizon: number of slots to forecast, T_out.
        num_marks: number of calendar features of a slot, M.
        neighbourhood: side of the square of cells around the target cell, odd.
        memory: whether the network gets the memory of the series, as Sim-MSTNet does; see `NetworkInput`.
        memory_days: number of previous days in the windows' memory, L, whether or not the network gets it.
        centre: value that is subtracted without a memory: "window" is the mean of the window; "fixed" is the mean
            activity on the "relative" scale, which keeps the level visible.
        task_weights: way to weigh the losses of several services; "average" is the sum that the sources take.

    Raises:
        ConfigError: a field is out of range; the message names the field, its value and what is allowed.

    Example:
        >>> NetworkConfig(neighbourhood=4)
        Traceback (most recent call last):
        ...
        simmst.errors.ConfigError: neighbourhood is 4; it must be an odd integer of at least 1
    """

    services: tuple[str, ...] = ("call", "sms", "internet")
    input_length: int = 24
    horizon: int = 6
    num_marks: int = integer(8, 0)
    neighbourhood: int = 5
    memory: bool = False
    memory_days: int = 28
    centre: str = choice("window", CENTRES)
    task_weights: str = choice("average", TASK_WEIGHTS)

    def __post_init__(self) -> None:
        python_scalars(self)
        object.__setattr__(self, "services", tuple(self.services))
        for field in dataclasses.fields(self):
            self._check(field, getattr(self, field.name))
        if self.neighbourhood % 2 == 0:
            self.refuse("neighbourhood", "an odd integer of at least 1")
        at_most("the number of services", len(self.services), 1_000)
        refuse_too_large(0, self.input_length * self.num_cells * self.num_tasks, "input_length or neighbourhood")
        if not self.services or len(set(self.services)) != len(self.services):
            self.refuse("services", "a non-empty sequence of different names")

    @property
    def num_tasks(self) -> int:
        """The number of services, K."""
        return len(self.services)

    @property
    def num_cells(self) -> int:
        """The number of cells in the neighbourhood, N."""
        return self.neighbourhood**2

    def refuse(self, name: str, allowed: str) -> None:
        """Raise a ConfigError for a field."""
        raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be {allowed}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold.

        Example:
            >>> NetworkConfig(services=["sms"]).to_dict()["services"]
            ['sms']
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**fields, "services": list(self.services)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Build the settings from the result of `to_dict`; fields left out take their defaults.

        Raises:
            ConfigError: a key is not a field of this network's settings, or a value is out of range.

        Example:
            >>> NetworkConfig.from_dict({"horizons": 3})
            Traceback (most recent call last):
            ...
            simmst.errors.ConfigError: unknown setting 'horizons'; did you mean 'horizon'?
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                raise ConfigError(f"unknown setting {name!r}; {suggest(name, known, otherwise='the settings are:')}")
        return cls(**fields)

    def _check(self, field: dataclasses.Field[Any], value: Any) -> None:
        if field.type == "int":
            least = field.metadata.get("least", 1)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                self.refuse(field.name, f"an integer of at least {least}")
            at_most(field.name, value, _MOST.get(field.name, _MOST_WIDTH))
        elif field.type == "bool" and not isinstance(value, bool):
            self.refuse(field.name, "True or False")
        elif field.type == "float":
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if not number or not 0 <= value < 1:
                self.refuse(field.name, "a number in [0, 1)")
        elif field.type == "str | None" and value is None:
            return
        elif field.type in ("str", "str | None") and value not in field.metadata["allowed"]:
            self.refuse(field.name, f"one of {', '.join(field.metadata['allowed'])}")
