"""The validation split, which is never trained on: it decides when to stop and which weights to keep."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

import numpy as np
import torch
from torch import Tensor, nn

from simmst.data import Batch, CityWindows, Windows, WindowSource
from simmst.distributed import ALONE, ProcessGroup
from simmst.errors import DataError
from simmst.foundation.threads import in_threads
from simmst.models import mean_loss, task_loss_sums
from simmst.training.config import TrainingConfig, resolve_device


def batch_loss_sums(model: nn.Module, batch: Batch, config: TrainingConfig) -> tuple[Tensor, Tensor]:
    """Return two sums, each (K,) in float32; their `mean_loss` is the loss of each service over a batch."""
    autocast = config.precision == "bfloat16"
    with torch.autocast(batch.values.device.type, dtype=torch.bfloat16, enabled=autocast):
        return task_loss_sums(
            model, batch.values, batch.marks, batch.mask, batch.memory, batch.target.float(), config.loss
        )


def shared_batch(windows: WindowSource, numbers: np.ndarray, processes: ProcessGroup) -> tuple[Batch, Sequence[int]]:
    """Gather this process's part of a batch; if it is empty, one sample without a target, which counts for nothing.

    Returns:
        The part, and the positions of its samples in the batch.
    """
    rows = windows.share(numbers, processes.rank, processes.world_size)
    if len(rows):
        return windows.batch(numbers[rows]), rows.tolist()
    batch = windows.batch(numbers[:1])
    return batch._replace(target=torch.full_like(batch.target, torch.nan)), [0]


def validation_losses(
    model: nn.Module,
    windows: WindowSource,
    config: TrainingConfig,
    *,
    where: str,
    processes: ProcessGroup = ALONE,
) -> np.ndarray:
    """Return the loss of each service over validation windows, and leave the model in evaluation mode.

    On a CPU the batches are scored side by side, in as many threads as torch has: see `in_threads`.

    Args:
        model: model called as ``model(values, marks, mask=mask)``.
        windows: windows of the real validation split.
        config: settings with the loss and the number of windows to score: the same ones every time, spread over all.
        where: what is validated, for the message.
        processes: processes that score a part of the windows each.

    Returns:
        (K,) float64; NaN where nothing was observed, infinite where the model's loss is not finite.

    Raises:
        DataError: no window has an observed target.
    """
    model.eval()
    device, count = resolve_device(config.device), len(windows)
    wanted = min(config.validation_samples or count, count)
    chosen = np.unique(np.linspace(0, count - 1, wanted).round().astype(np.int64))
    gathering = Lock()  # a source that reads cities on access can serve one thread at a time

    @torch.no_grad()
    def sums(start: int) -> Tensor:
        with gathering:
            batch, _ = shared_batch(windows, chosen[start : start + 4 * config.batch_size], processes)
        batch = batch.to(device)
        seen = (~torch.isnan(batch.target)).sum(dim=(0, 1)).float()
        return torch.stack([*batch_loss_sums(model, batch, config), seen])

    parts = in_threads(sums, range(0, len(chosen), 4 * config.batch_size), device)
    total, mass, number = processes.all_reduce(torch.stack(parts)).unbind(1)
    totals = (mean_loss(total, mass).double() * number.double()).sum(0).cpu().numpy()
    observed = number.double().sum(0).cpu().numpy()
    if not np.any(observed > 0):
        raise DataError(
            f"{where}: the validation windows have no observed target at all; "
            "give a validation split with data in it, or None"
        )
    losses: np.ndarray = np.where(observed > 0, totals / np.maximum(observed, 1), np.nan)
    losses[(observed > 0) & ~np.isfinite(losses)] = np.inf
    return losses


def validation_score(
    model: nn.Module,
    windows: WindowSource | None,
    config: TrainingConfig,
    *,
    where: str,
    processes: ProcessGroup = ALONE,
) -> float | None:
    """Return the mean over the services of `validation_losses`; None without a validation split."""
    if windows is None:
        return None
    return float(np.nanmean(validation_losses(model, windows, config, where=where, processes=processes)))


class BestWeights:
    """The weights of a model with the best validation score so far, with which later ones compete.

    Without a validation split there are no scores, and the latest weights are the best.

    Attributes:
        score: validation loss of the kept weights.
        weights: copy of these weights, by the names of the model's `state_dict`; empty before the first offer.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> best = BestWeights(model)
        >>> best.offer(0.5), best.offer(0.7), best.offer(0.5), best.offer(0.2)
        (True, False, False, True)
        >>> best.score
        0.2
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.score: float | None = None
        self.weights: dict[str, Tensor] = {}

    def offer(self, score: float | None) -> bool:
        """Keep the model's current weights if their score is lower than the best; return whether they are kept."""
        better = score is None or self.score is None or score < self.score
        if better:
            self.keep(score)
        return better

    def keep(self, score: float | None) -> None:
        """Keep the model's current weights, whatever the score of the earlier ones."""
        self.score, self.weights = score, snapshot(self.model)

    def restore(self) -> None:
        """Put the kept weights into the model."""
        self.model.load_state_dict(self.weights)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copy a model's weights.

    Example:
        >>> list(snapshot(nn.Linear(1, 1)))
        ['weight', 'bias']
    """
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def refuse_seen_targets(train: CityWindows | None, validation: CityWindows | None) -> None:
    """Refuse a validation split whose slots to forecast are slots to forecast in training too, for the same cells.

    Inputs of validation windows may begin in the training split, because a forecaster sees the history.

    Raises:
        DataError: the splits overlap; the message names the series and the slots that both have.

    Example:
        >>> refuse_seen_targets(None, None)
    """
    if train is None or validation is None:
        return
    for one in train.parts:
        for other in validation.parts:
            common = np.intersect1d(_targets(one), _targets(other))
            if len(common) and _same_cells(one, other):
                raise DataError(
                    f"the validation split overlaps the training split: {one.dataset.name} has {len(common)} slots in "
                    f"both, from {common[0]} to {common[-1]} (UTC), so the score would be one of training data; give "
                    "splits that share no slot, such as those of chronological_split"
                )


def _targets(windows: Windows) -> np.ndarray:
    """Return the starts of the slots that are forecast."""
    first = int(windows.origins[0])
    last = min(int(windows.origins[-1]) + windows.spec.horizon, windows.dataset.num_steps)
    return windows.dataset.time[first:last]


def _same_cells(one: Windows, other: Windows) -> bool:
    if one.dataset is other.dataset:
        return True
    a, b = one.dataset, other.dataset
    return a.name == b.name and bool(np.isin(a.cell_id[a.mask], b.cell_id[b.mask]).any())
