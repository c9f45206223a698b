"""Sim-MSTNet, STNet and their ablations."""

from simmst.models.config import ABLATIONS, SimMSTNetConfig
from simmst.models.sim_mst_net import SimMSTNet
from simmst.models.st_net import STNet
from simmst.models.task_weights import LOSSES, TaskWeights, masked_loss
from simmst.models.window_norm import WindowNorm

__all__ = [
    "ABLATIONS",
    "LOSSES",
    "STNet",
    "SimMSTNet",
    "SimMSTNetConfig",
    "TaskWeights",
    "WindowNorm",
    "masked_loss",
]
