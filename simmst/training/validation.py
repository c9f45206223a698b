"""The losses of a model over the real validation windows, by which stages stop and models are chosen."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from simmst.data import Batch, WindowSource
from simmst.errors import DataError
from simmst.models import masked_loss
from simmst.training.config import TrainingConfig, resolve_device


def batch_losses(model: nn.Module, batch: Batch, config: TrainingConfig) -> torch.Tensor:
    """Return the loss of each service over a batch, (K,), in float32."""
    autocast = config.precision == "bfloat16"
    with torch.autocast(batch.values.device.type, dtype=torch.bfloat16, enabled=autocast):
        forecast = model(batch.values, batch.marks, mask=batch.mask)
    return masked_loss(forecast.float(), batch.target.float(), config.loss)


@torch.no_grad()
def validation_losses(model: nn.Module, windows: WindowSource, config: TrainingConfig, *, where: str) -> np.ndarray:
    """Return the loss of each service over validation windows, and leave the model in evaluation mode.

    Args:
        model: called as ``model(values, marks, mask=mask)``.
        windows: those of the real validation split.
        config: the loss, and how many of the windows are taken: the same ones every time, spread over all.
        where: what is validated, for the message.

    Returns:
        (K,) float64; NaN where nothing was observed, infinite where the model's loss is not finite.

    Raises:
        DataError: no window has an observed target.
    """
    model.eval()
    device, count = resolve_device(config.device), len(windows)
    wanted = min(config.validation_samples or count, count)
    chosen = np.unique(np.linspace(0, count - 1, wanted).round().astype(np.int64))
    totals: np.ndarray | float = 0.0
    observed: np.ndarray | float = 0.0
    for start in range(0, len(chosen), 4 * config.batch_size):
        batch = windows.batch(chosen[start : start + 4 * config.batch_size]).to(device)
        number = (~torch.isnan(batch.target)).sum(dim=(0, 1)).double()
        totals = totals + (batch_losses(model, batch, config).double() * number).cpu().numpy()
        observed = observed + number.cpu().numpy()
    if not np.any(observed > 0):
        raise DataError(
            f"{where}: the validation windows have no observed target at all; "
            "give a validation split with data in it, or None"
        )
    losses: np.ndarray = np.where(observed > 0, totals / np.maximum(observed, 1), np.nan)
    losses[(observed > 0) & ~np.isfinite(losses)] = np.inf
    return losses
