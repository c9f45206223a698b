"""The settings of a `Forecaster`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from simmst.baselines import BASELINES
from simmst.errors import ConfigError
from simmst.forecaster.architectures import ARCHITECTURES, OWN, free_settings, settings_of
from simmst.foundation.bounds import at_most
from simmst.foundation.scalars import python_scalar, python_scalars
from simmst.foundation.suggestions import suggest
from simmst.training import RECIPES, TrainingConfig

STARTS = ("pretrained", "scratch")
_MOST = {"horizon": 10_000, "recent": 20_000, "validation_days": 10_000, "cities": 1_000_000}


@dataclass(frozen=True)
class ForecasterConfig:
    """Settings of a `Forecaster`.

    Args:
        horizon: number of slots to forecast.
        model: "sim-mstnet" (for one service its single-task case STNet), the name of another network such as "dcrnn"
            (`simmst.baselines.networks.NETWORKS`), or the name of a naive baseline.
        solver: name of the training recipe. None takes "adapt" for a network that starts from the shipped weights; for
            another network it takes "pretrain-finetune" with simulated cities and "real-only" without.
        start: "pretrained" starts from the shipped weights, "scratch" from random weights; None takes the shipped
            weights where they fit the network's settings.
        recent: number of latest slots in the input.
        neighbourhood: side of the square of cells around the target cell, odd.
        validation_days: last days of the training series that decide when to stop; fewer where the series is short.
        cities: number of cities simulated by default.
        combine: whether Sim-MSTNet's forecast is combined with ridge regression and with the mean of the same slot on
            other days. Both learn from the days before the forecast, and get more weight the more they would have
            helped on these days.
        network: fields of the network's configuration to change, such as width; `memory: true` gives a network of
            another paper the memory of Sim-MSTNet.
        training: settings of the training loop; its seed also seeds everything else.

    Raises:
        ConfigError: a value is out of range; the message names the value and the range.

    Example:
        >>> ForecasterConfig(horizon=0)
        Traceback (most recent call last):
        ...
        simmst.errors.ConfigError: horizon is 0; it must be an integer of at least 1
    """

    horizon: int = 6
    model: str = "sim-mstnet"
    solver: str | None = None
    start: str | None = None
    recent: int = 24
    neighbourhood: int = 5
    validation_days: int = 7
    cities: int = 40
    combine: bool = True
    network: Mapping[str, Any] = field(default_factory=dict)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        python_scalars(self)
        for name, least in (("horizon", 1), ("recent", 1), ("validation_days", 1), ("cities", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} is {value!r}; it must be an integer of at least {least}")
            at_most(name, value, _MOST[name])
        if not isinstance(self.combine, bool):
            raise ConfigError(f"combine is {self.combine!r}; it must be True or False")
        models = (*ARCHITECTURES, *BASELINES)
        if self.model not in models:
            raise ConfigError(f"model is {self.model!r}; it must be one of: {', '.join(models)}")
        if self.solver is not None and self.solver not in RECIPES:
            raise ConfigError(f"solver is {self.solver!r}; it must be one of: {', '.join(sorted(RECIPES))}")
        if self.start not in (None, *STARTS):
            raise ConfigError(f"start is {self.start!r}; it must be one of: {', '.join(STARTS)}, or None")
        if self.model != OWN and self.model in ARCHITECTURES and self.solver == "adapt":
            raise ConfigError(
                f"solver 'adapt' adapts the shipped weights, which are Sim-MSTNet's; model {self.model!r} starts from "
                "random ones: use 'pretrain-finetune', 'real-only' or another solver"
            )
        if self.model != OWN and self.start == "pretrained":
            raise ConfigError(f"the shipped weights are Sim-MSTNet's; model {self.model!r} cannot start from them")
        if not isinstance(self.training, TrainingConfig):
            raise ConfigError(f"training is {self.training!r}; it must be a TrainingConfig")
        if not isinstance(self.network, Mapping):
            raise ConfigError(f"network is {self.network!r}; it must be fields of the network's configuration by name")
        object.__setattr__(self, "network", {key: python_scalar(value) for key, value in self.network.items()})
        network = OWN if self.model in BASELINES else self.model
        free = free_settings(network)
        for name in self.network:
            if name not in free:
                raise ConfigError(f"network has {name!r}; it may change: {', '.join(free)}")
        # Run the network's own checks of its values; label_length depends on the length of the input.
        values = {key: value for key, value in self.network.items() if key != "label_length"}
        sizes = {} if network == OWN else {"input_length": self.recent, "horizon": self.horizon}
        settings_of(network).from_dict({**values, **sizes, "neighbourhood": self.neighbourhood})

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as values that JSON can hold."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {**values, "network": dict(self.network), "training": self.training.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ForecasterConfig:
        """Build the settings from the values of `to_dict`; missing ones take their defaults.

        Raises:
            ConfigError: a key is unknown or a value out of range.

        Example:
            >>> ForecasterConfig.from_dict(ForecasterConfig(horizon=3).to_dict()).horizon
            3
            >>> ForecasterConfig.from_dict({"horizons": 3})
            Traceback (most recent call last):
            ...
            simmst.errors.ConfigError: unknown forecaster setting 'horizons'; did you mean 'horizon'?
        """
        known = [item.name for item in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                hint = suggest(name, known, otherwise="the settings are:")
                raise ConfigError(f"unknown forecaster setting {name!r}; {hint}")
        training = values.get("training", {})
        if isinstance(training, Mapping):
            training = TrainingConfig.from_dict(dict(training))
        return cls(**{**values, "training": training})
