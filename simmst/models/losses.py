"""Losses of forecasts for each task, with missing targets masked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from simmst.errors import ConfigError
from simmst.foundation.memory import Memory
from simmst.models.quantiles import LEVELS, MEDIAN

LOSSES = ("quantile", "huber", "mae", "mse")
# The error of the median counts as much as the errors of this many other quantiles.
_MEDIAN_WEIGHT = 4.0
# The traffic relative to the cell's level, to this power, weights an error: a mild shift towards errors in raw units.
_TRAFFIC_POWER = 0.5
_LARGEST_DEVIATION = 3.0


def masked_loss(forecast: Tensor, target: Tensor, kind: str = "huber", *, per_sample: bool = False) -> Tensor:
    """Average the error of each task over its observed targets.

    Args:
        forecast: (B, T_out, K).
        target: (B, T_out, K) on the same scale, NaN = missing.
        kind: ``"huber"`` (threshold 1), ``"mae"`` or ``"mse"``.
        per_sample: whether to average only over the steps ahead and keep the samples separate.

    Returns:
        (K,), or (B, K) per sample. If nothing was observed, the loss and its gradient are 0.

    Raises:
        ConfigError: the kind is unknown.
        ValueError: the shapes differ.

    Example:
        >>> forecast = torch.zeros(1, 2, 2)
        >>> target = torch.tensor([[[2.0, float("nan")], [4.0, float("nan")]]])
        >>> masked_loss(forecast, target, "mae").tolist()
        [3.0, 0.0]
    """
    return mean_loss(*_masked_sums(forecast, target, kind, per_sample=per_sample))


def _masked_sums(forecast: Tensor, target: Tensor, kind: str, *, per_sample: bool) -> tuple[Tensor, Tensor]:
    if kind not in LOSSES or kind == "quantile":
        raise ConfigError(f"loss is {kind!r}; it must be one of {', '.join(LOSSES[1:])}")
    if forecast.shape != target.shape or forecast.ndim != 3:
        raise ValueError(
            f"forecast is {tuple(forecast.shape)} and target {tuple(target.shape)}; both must be (B, T_out, K)"
        )
    observed = ~torch.isnan(target)
    error = torch.where(observed, forecast - torch.where(observed, target, 0.0), 0.0)
    if kind == "mse":
        loss = error.square()
    elif kind == "mae":
        loss = error.abs()
    else:
        clipped = error.clamp(-1.0, 1.0)
        loss = clipped * (error - 0.5 * clipped)
    over = (1,) if per_sample else (0, 1)
    return loss.sum(over), observed.sum(over).to(loss.dtype)


def quantile_loss(quantiles: Tensor, target: Tensor, level: Tensor, *, per_sample: bool = False) -> Tensor:
    r"""Average the pinball loss of each task over its observed targets and over the quantiles.

    .. math:: \ell_q(y, \hat y) = \max(q (y - \hat y), (q - 1)(y - \hat y))

    The median counts four times. An error is multiplied by the square root of the traffic relative to the cell's level,
    or by 1 if the level is unknown, because on the log scale an error at night would otherwise weigh as much as one at
    noon. The average divides by the number of observed targets, so that the losses of batches and of samples can be
    averaged again.

    Args:
        quantiles: (B, T_out, K, Q) at `simmst.models.LEVELS`.
        target: (B, T_out, K) on the same scale, NaN = missing.
        level: (B, K), the level of each cell's context on that scale; NaN where unknown.
        per_sample: whether to average only over the steps ahead and keep the samples separate.

    Returns:
        (K,), or (B, K) per sample. If nothing was observed, the loss and its gradient are 0.

    Raises:
        ValueError: the shapes do not fit together.
    """
    return mean_loss(*_quantile_sums(quantiles, target, level, per_sample=per_sample))


def _quantile_sums(quantiles: Tensor, target: Tensor, level: Tensor, *, per_sample: bool) -> tuple[Tensor, Tensor]:
    if quantiles.shape[:-1] != target.shape or quantiles.shape[-1] != len(LEVELS):
        raise ValueError(
            f"quantiles are {tuple(quantiles.shape)} and target {tuple(target.shape)}; they must be "
            f"(B, T_out, K, {len(LEVELS)}) and (B, T_out, K)"
        )
    observed = ~torch.isnan(target)
    known = torch.where(observed, target, 0.0)
    over = (1,) if per_sample else (0, 1)
    levels = torch.tensor(LEVELS, dtype=quantiles.dtype, device=quantiles.device)
    share = torch.ones_like(levels)
    share[MEDIAN] = _MEDIAN_WEIGHT
    error = known[..., None] - quantiles
    pinball = (torch.maximum(levels * error, (levels - 1) * error) * (2 * share / share.sum())).sum(-1)
    return (_traffic_weight(known, level) * observed * pinball).sum(over), observed.sum(over).to(pinball.dtype)


def _weighted_error_sums(forecast: Tensor, target: Tensor, level: Tensor, *, per_sample: bool) -> tuple[Tensor, Tensor]:
    """Return the sums of the quantile loss for a forecast of only the median."""
    observed = ~torch.isnan(target)
    known = torch.where(observed, target, 0.0)
    error = torch.where(observed, forecast - known, 0.0).abs()
    over = (1,) if per_sample else (0, 1)
    return (_traffic_weight(known, level) * error).sum(over), observed.sum(over).to(error.dtype)


def _traffic_weight(target: Tensor, level: Tensor) -> Tensor:
    """Return the square root of the traffic relative to the cell's level, (B, T_out, K), or 1 if it is unknown."""
    deviation = torch.nan_to_num(target - level[:, None])
    return (_TRAFFIC_POWER * deviation.clamp(-_LARGEST_DEVIATION, _LARGEST_DEVIATION)).exp()


def mean_loss(total: Tensor, mass: Tensor) -> Tensor:
    """Return losses from the sums of `task_loss_sums`, over one or several batches; 0 where the mass is 0.

    Example:
        >>> mean_loss(torch.tensor([6.0, 0.0]), torch.tensor([2.0, 0.0])).tolist()
        [3.0, 0.0]
    """
    return total / mass.clamp(min=1e-6)


def task_losses(
    model: nn.Module,
    values: Tensor,
    marks: Tensor,
    mask: Tensor,
    memory: Memory | None,
    target: Tensor,
    kind: str,
    *,
    per_sample: bool = False,
) -> Tensor:
    """Forecast a batch and return the loss of each task, (K,), or (B, K) per sample, in float32 or wider.

    A model is called as ``model(values, marks, mask=mask)``. Its attributes tell what else it takes or returns:

    - `takes_memory`: it gets the memory;
    - `forecasts_quantiles`: it returns quantiles under the "quantile" loss, which for any other model is the absolute
      error of its forecast, weighted by the traffic in the same way;
    - `takes_target`: in training it gets the target (scheduled sampling);
    - `has_penalty`: in training it returns (forecast, penalty), and the penalty (B, K) of each sample is added to the
      loss.
    """
    return mean_loss(*task_loss_sums(model, values, marks, mask, memory, target, kind, per_sample=per_sample))


def task_loss_sums(
    model: nn.Module,
    values: Tensor,
    marks: Tensor,
    mask: Tensor,
    memory: Memory | None,
    target: Tensor,
    kind: str,
    *,
    per_sample: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the two sums that `task_losses` divides: weighted errors and number of targets, (K,) or (B, K) each.

    Both can be summed over parts of a batch; `mean_loss` of the sums is the loss of the whole batch.
    """
    wide = torch.promote_types(target.dtype, torch.float32)
    options: dict[str, Any] = {}
    if getattr(model, "takes_memory", False):
        options["memory"] = memory
    quantiles = kind == "quantile" and bool(getattr(model, "forecasts_quantiles", False))
    if quantiles:
        options["quantiles"] = True
    if getattr(model, "takes_target", False) and model.training:
        options["target"] = target
    penalised = bool(getattr(model, "has_penalty", False)) and model.training
    if penalised:
        options["penalty"] = True
    answer = model(values, marks, mask=mask, **options)
    forecast = (answer[0] if penalised else answer).to(wide)
    if kind == "quantile":
        centre = mask.shape[-1] // 2
        level = target.new_full(target.shape[::2], torch.nan) if memory is None else memory.level[..., centre, centre]
        sums = _quantile_sums if quantiles else _weighted_error_sums
        total, mass = sums(forecast, target.to(wide), level.to(wide), per_sample=per_sample)
    else:
        total, mass = _masked_sums(forecast, target.to(wide), kind, per_sample=per_sample)
    if penalised:
        observed = (~torch.isnan(target)).sum(1)
        penalty = observed * answer[1].to(wide)  # (B, K)
        total = total + (penalty if per_sample else penalty.sum(0))
    return total, mass
