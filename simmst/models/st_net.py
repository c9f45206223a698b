"""STNet, the single-task case of Sim-MSTNet."""

from __future__ import annotations

import dataclasses

from simmst.errors import ConfigError
from simmst.models.config import SimMSTNetConfig
from simmst.models.sim_mst_net import SimMSTNet


class STNet(SimMSTNet):
    """Forecast one service with Sim-MSTNet's branches and decoder, without interaction between tasks.

    Args:
        config: configuration with one service, for example ``config.single_task("internet")``; its ``interaction`` is
            switched off.

    Raises:
        ConfigError: the configuration has several services.

    Example:
        >>> import torch
        >>> config = SimMSTNetConfig(input_length=12, label_length=4, horizon=2, num_marks=1).single_task("internet")
        >>> STNet(config).eval()(torch.randn(3, 12, 1, 5, 5), torch.randn(3, 14, 1)).shape
        torch.Size([3, 2, 1])
    """

    def __init__(self, config: SimMSTNetConfig) -> None:
        if config.num_tasks != 1:
            raise ConfigError(
                f"services is {config.services!r}; STNet forecasts one service: choose it with config.single_task(name)"
            )
        super().__init__(dataclasses.replace(config, interaction=False))
