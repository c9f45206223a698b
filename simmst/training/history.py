"""What a stage of training went through."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class History:
    """The epochs of one stage.

    Args:
        stage: its name.
        records: one dictionary an epoch, as in ``metrics.jsonl``: epoch, step, learning_rate, train_loss, train_losses
            and task_weights (by service), gradient_norm, validation_loss, validation_losses.
        best_epoch: the epoch whose weights were kept; 0 is the state before the stage.
        best_score: its validation loss, None without a validation split.
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
        """Return one quantity over the epochs, leaving out those that lack it.

        Args:
            key: a key of the records.
            service: the service, for keys that hold one value each.
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
