"""The networks that a forecaster can train, by name, with their settings."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

from simmst.baselines.networks import NETWORKS, Network, NetworkConfig
from simmst.errors import ConfigError
from simmst.models import SimMSTNet, SimMSTNetConfig, STNet

OWN = "sim-mstnet"
ARCHITECTURES = (OWN, *NETWORKS)
# Fields of a network's configuration that follow from the other settings and the series.
FIXED = ("services", "input_length", "horizon", "num_marks", "neighbourhood")

AnyNetwork: TypeAlias = SimMSTNet | Network
AnyConfig: TypeAlias = SimMSTNetConfig | NetworkConfig


def settings_of(model: str) -> type[SimMSTNetConfig] | type[NetworkConfig]:
    """Return the class of a network's settings.

    Example:
        >>> settings_of("lstm").__name__
        'LSTMConfig'
    """
    return SimMSTNetConfig if model == OWN else NETWORKS[model].config_class


def free_settings(model: str) -> tuple[str, ...]:
    """Return the settings of a network that a forecaster may change.

    Example:
        >>> free_settings("nlinear")
        ('memory', 'memory_days', 'centre', 'task_weights')
    """
    return tuple(item.name for item in dataclasses.fields(settings_of(model)) if item.name not in FIXED)


def build_network(model: str, config: AnyConfig) -> AnyNetwork:
    """Build a network with random weights; Sim-MSTNet is its single-task case STNet where there is one service."""
    if isinstance(config, SimMSTNetConfig):
        return STNet(config) if config.num_tasks == 1 else SimMSTNet(config)
    return NETWORKS[model](config)


def saved_network(model: str, settings: dict[str, Any]) -> AnyNetwork:
    """Build the network described in a folder, to load its weights into.

    Args:
        model: name of the network.
        settings: values of its configuration.

    Raises:
        ConfigError: there is no network with that name, or the settings are those of another network.

    Example:
        >>> saved_network("lstm", {"services": ["sms"]}).config.services
        ('sms',)
        >>> saved_network("lsmt", {})
        Traceback (most recent call last):
        ...
        simmst.errors.ConfigError: there is no network 'lsmt'
    """
    if model not in ARCHITECTURES:
        raise ConfigError(f"there is no network {model!r}")
    config = settings_of(model).from_dict(settings)
    if isinstance(config, SimMSTNetConfig):
        return STNet(config) if config.num_tasks == 1 and not config.interaction else SimMSTNet(config)
    return build_network(model, config)
