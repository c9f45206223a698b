"""Dynamic weights of the task losses (Sim-MSTNet, Eq. 13-14)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simmst.errors import ConfigError
from simmst.foundation.task_weights import SIMPLEX_WEIGHTS, TASK_WEIGHTS


class TaskWeights(nn.Module):
    r"""Weights of the task losses (Sim-MSTNet, Eq. 13-14).

    .. math:: \lambda_k = L_k \Big/ \sum_j L_j, \qquad L = \sum_k \lambda_k L_k

    The losses are not scaled, so they should be computed on standardised targets. Gradients treat the weights as
    constants. The weights are a buffer, so checkpoints hold them. Weights that depend only on a step's losses are on
    the simplex. The other modes need more than the losses: the training loop finds their weights
    (`simmst.training.task_weighting`) and keeps them here.

    Args:
        num_tasks: number of tasks, K.
        mode: ``"loss_share"``; ``"average"``, which is always 1/K; or, with the extra ``mtl``, one of torchjd's methods
            ``"uncertainty"``, ``"dwa"``, ``"imtl-l"``, ``"famo"``, ``"stch"``, ``"upgrad"``, ``"mgda"``, ``"pcgrad"``.

    Raises:
        ConfigError: the mode is unknown, or num_tasks is less than 1.

    Example:
        >>> weights = TaskWeights(2)
        >>> weights.update(torch.tensor([1.0, 3.0])).tolist()
        [0.25, 0.75]
        >>> weights.combine(torch.tensor([2.0, 4.0])).item()
        3.5
    """

    weights: Tensor

    def __init__(self, num_tasks: int, mode: str = "loss_share") -> None:
        super().__init__()
        if mode not in TASK_WEIGHTS:
            raise ConfigError(f"task_weights is {mode!r}; it must be one of {', '.join(TASK_WEIGHTS)}")
        if num_tasks < 1:
            raise ConfigError(f"num_tasks is {num_tasks}; it must be at least 1")
        self.mode = mode
        self.register_buffer("weights", torch.full((num_tasks,), 1.0 / num_tasks))

    @torch.no_grad()
    def update(self, losses: Tensor) -> Tensor:
        """Set the weights from the losses of the tasks and return them.

        A loss that is NaN or infinite, or zero because nothing was observed, has no share; if no task has a share, all
        weigh the same. The buffer is replaced and never changed in place, so a graph that holds the old one stays
        valid.

        Args:
            losses: (K,), not negative.

        Raises:
            ValueError: the shape differs from the weights', or the mode needs more than the losses.
        """
        if self.mode not in SIMPLEX_WEIGHTS:
            raise ValueError(f"weights of mode {self.mode!r} are found by the training loop, not from losses alone")
        if losses.ndim != 1:
            raise ValueError(f"losses are {tuple(losses.shape)}; the weights are updated from one loss a task, (K,)")
        self._check(losses)
        if self.mode == "loss_share":
            losses = losses.detach().to(self.weights)
            losses = torch.where(torch.isfinite(losses), losses, 0.0).clamp(min=0.0)
            total = losses.sum()
            # Dividing by the largest loss first keeps the shares exact where the sum would underflow.
            share = losses / losses.amax().clamp(min=torch.finfo(losses.dtype).tiny)
            average = torch.full_like(losses, 1.0 / len(losses))
            self.weights = torch.where(total > 0, share / share.sum().clamp(min=1.0), average)
        return self.weights

    @torch.no_grad()
    def keep(self, weights: Tensor) -> Tensor:
        """Keep the weights (K,) that the training loop has found, and return them."""
        self.weights = weights.detach().to(self.weights)
        return self.weights

    def combine(self, losses: Tensor) -> Tensor:
        """Return the weighted sum of the losses: (K,) gives a scalar, (B, K) gives one value per sample.

        A NaN loss makes the sum NaN, so that a diverging model does not look like a missing task, whose loss is 0.
        """
        self._check(losses)
        return (self.weights.to(losses.dtype) * losses).sum(-1)

    def extra_repr(self) -> str:
        """Show the mode."""
        return f"num_tasks={len(self.weights)}, mode={self.mode!r}"

    def _check(self, losses: Tensor) -> None:
        if losses.ndim == 0 or losses.shape[-1:] != self.weights.shape:
            raise ValueError(f"losses are {tuple(losses.shape)}; there are {len(self.weights)} tasks: one loss a task")
