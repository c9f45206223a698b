"""Chronological splits into training, validation and test slots."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from simmst.errors import DataError


@dataclass(frozen=True)
class Split:
    """Slots of training, then validation, then test.

    Attributes:
        train: slots from 0 to the validation.
        validation: slots from the training to the test.
        test: last slots.
        note: message where the usual days were shortened; empty otherwise.
    """

    train: range
    validation: range
    test: range
    note: str = ""

    def first_days(self, days: int, steps_per_day: int) -> Split:
        """Keep only the first `days` days of training (the low-data protocol); validation and test stay.

        Raises:
            DataError: `days` is below one, or more than the training part has.

        Example:
            >>> chronological_split(23 * 24, 24).first_days(4, 24).train
            range(0, 96)
        """
        wanted = days * steps_per_day
        if days < 1 or wanted > len(self.train):
            raise DataError(
                f"cannot keep the first {days} days of training: it has {len(self.train) / steps_per_day:g} days; "
                "give a number between 1 and that"
            )
        note = f"training on its first {days} days only"
        return dataclasses.replace(
            self,
            train=range(self.train.start, self.train.start + wanted),
            note=f"{self.note}; {note}" if self.note else note,
        )


def chronological_split(num_steps: int, steps_per_day: int, *, test_days: int = 7, validation_days: int = 7) -> Split:
    """Split a series: the last days test, the days before them validation, the rest training.

    Test and validation take min(days, floor(total_days / 3)) whole days each. Series below three days are cut into
    thirds of their slots. `Split.note` says so whenever the usual days were shortened.

    Args:
        num_steps: number of slots in the series.
        steps_per_day: number of slots in 24 hours.
        test_days: usual length of the test.
        validation_days: usual length of the validation.

    Raises:
        DataError: there are fewer than three slots, or a number of days is not positive.

    Example:
        >>> split = chronological_split(23 * 24, 24)
        >>> split.train, split.validation, split.test
        (range(0, 216), range(216, 384), range(384, 552))
        >>> chronological_split(7 * 24, 24).note
        'test 2 and validation 2 days instead of 7 and 7: the series has 7 days'
    """
    if num_steps < 3 or steps_per_day < 1 or test_days < 1 or validation_days < 1:
        raise DataError(
            f"cannot split {num_steps} slots ({steps_per_day} a day) with {validation_days} validation and {test_days} "
            "test days: at least three slots and one day of each are needed"
        )
    total_days = num_steps // steps_per_day
    note = ""
    if total_days >= 3:
        test = min(test_days, total_days // 3)
        validation = min(validation_days, total_days // 3)
        if (test, validation) != (test_days, validation_days):
            note = (
                f"test {test} and validation {validation} days instead of {test_days} and {validation_days}: "
                f"the series has {num_steps / steps_per_day:g} days"
            )
        test_steps, validation_steps = test * steps_per_day, validation * steps_per_day
    else:
        test_steps = validation_steps = num_steps // 3
        note = (
            f"test and validation {test_steps} slots each instead of {test_days} and {validation_days} days: "
            f"the series has {num_steps / steps_per_day:.3g} days"
        )
    test_start = num_steps - test_steps
    validation_start = test_start - validation_steps
    return Split(range(0, validation_start), range(validation_start, test_start), range(test_start, num_steps), note)
