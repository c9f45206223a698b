"""The epochs of a training stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class History:
    """The epochs of one stage.

    Args:
        stage: name of the stage.
        records: one dictionary for each epoch, as in ``metrics.jsonl``: epoch, step, learning_rate, train_loss,
            train_losses and task_weights (by service), gradient_norm, validation_loss, validation_losses.
        best_epoch: epoch whose weights were kept; 0 means those from before the stage.
        best_score: validation loss of that epoch, None without a validation split.
        stopped: why the stage ended, "epochs" (all were run) or "patience".

    Example:
        >>> History("real", [{"epoch": 1, "train_loss": 0.5}]).series("train_loss")
        ([1], [0.5])
    """

    stage: str
    records: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float | None = None
    stopped: str = "epochs"

    def series(self, key: str, service: str | None = None, *, over: str = "epoch") -> tuple[list[int], list[float]]:
        """Return one quantity over the epochs, without the epochs that lack it.

        Args:
            key: key of the records.
            service: service to take, for keys that hold one value for each.
            over: "epoch" or "step".

        Returns:
            The epochs (or steps) and the values.
        """
        places, values = [], []
        for record in self.records:
            value = record.get(key)
            if value is not None and service is not None:
                value = value.get(service)
            if value is not None:
                places.append(record[over])
                values.append(value)
        return places, values
