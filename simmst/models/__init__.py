"""Sim-MSTNet, STNet and their ablations."""

from simmst.models.config import ABLATIONS, SimMSTNetConfig
from simmst.models.losses import LOSSES, masked_loss, mean_loss, quantile_loss, task_loss_sums, task_losses
from simmst.models.noise import part_of_batch
from simmst.models.quantiles import LEVELS, MEDIAN, at_levels
from simmst.models.sim_mst_net import SimMSTNet
from simmst.models.st_net import STNet
from simmst.models.task_weights import TaskWeights

__all__ = [
    "ABLATIONS",
    "LEVELS",
    "LOSSES",
    "MEDIAN",
    "STNet",
    "SimMSTNet",
    "SimMSTNetConfig",
    "TaskWeights",
    "at_levels",
    "masked_loss",
    "mean_loss",
    "part_of_batch",
    "quantile_loss",
    "task_loss_sums",
    "task_losses",
]
