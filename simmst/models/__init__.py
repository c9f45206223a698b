"""Sim-MSTNet, STNet and their ablations."""

from simmst.models.config import ABLATIONS, SimMSTNetConfig
from simmst.models.quantiles import LEVELS
from simmst.models.sim_mst_net import SimMSTNet
from simmst.models.st_net import STNet
from simmst.models.task_weights import LOSSES, TaskWeights, masked_loss

__all__ = [
    "ABLATIONS",
    "LEVELS",
    "LOSSES",
    "STNet",
    "SimMSTNet",
    "SimMSTNetConfig",
    "TaskWeights",
    "masked_loss",
]
