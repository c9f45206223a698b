"""The named protocols: which steps go in, which come out, and how the series is split."""

from __future__ import annotations

from dataclasses import dataclass

from simmst.data import Split, TrafficDataset, WindowSpec, chronological_split
from simmst.errors import ConfigError, DataError


@dataclass(frozen=True)
class EvaluationProtocol:
    """A way to cut forecasting problems out of a series.

    Args:
        name: its name in configs.
        step_minutes: the step; finer series are summed up to it.
        horizons: the steps ahead that are reported; each is a model of its own.
        recent: last steps that go in.
        daily: previous days whose same hours go in.
        weekly: previous weeks whose same hours go in.
        test_days: days at the end that are tested on.
        validation_days: days before them that training is stopped by.
        first_days: how many first days may be trained on, one run each; None takes all.
        known_days: days that precede the test, which is all the rest; None tests the last `test_days`.

    Example:
        >>> PROTOCOLS["hourly"].horizons
        (1, 6, 24)
    """

    name: str
    step_minutes: int
    horizons: tuple[int, ...]
    recent: int
    daily: int = 0
    weekly: int = 0
    test_days: int = 7
    validation_days: int = 7
    first_days: tuple[int, ...] | None = None
    known_days: int | None = None

    @property
    def steps_per_day(self) -> int:
        """Steps in a day."""
        return 24 * 60 // self.step_minutes


PROTOCOLS: dict[str, EvaluationProtocol] = {
    "hourly": EvaluationProtocol("hourly", 60, (1, 6, 24), recent=24, daily=3),
    "tenmin": EvaluationProtocol("tenmin", 10, (1, 3, 6), recent=12),
    "fedgcc": EvaluationProtocol("fedgcc", 10, (1,), recent=6, known_days=1),
    "lowdata": EvaluationProtocol("lowdata", 60, (1, 6, 24), recent=24, daily=3, first_days=(1, 2, 4, 7, 14)),
    "lowdata-tenmin": EvaluationProtocol("lowdata-tenmin", 10, (1, 3, 6), recent=12, first_days=(1, 2, 4, 7, 14)),
}


@dataclass(frozen=True)
class Setting:
    """One forecasting problem cut out of a dataset by a protocol.

    Args:
        dataset: at the protocol's step.
        spec: the windows.
        split: training, validation and test steps.
        notes: what had to be shrunk, for the table.
    """

    dataset: TrafficDataset
    spec: WindowSpec
    split: Split
    notes: tuple[str, ...]


def protocol(name: str) -> EvaluationProtocol:
    """Return the protocol of a name.

    Raises:
        ConfigError: there is none of this name.

    Example:
        >>> protocol("daily")
        Traceback (most recent call last):
            ...
        simmst.errors.ConfigError: no protocol 'daily'; there are: fedgcc, hourly, lowdata, lowdata-tenmin, tenmin
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"no protocol {name!r}; there are: {', '.join(sorted(PROTOCOLS))}")
    return PROTOCOLS[name]


def prepare(
    chosen: EvaluationProtocol | str,
    dataset: TrafficDataset,
    *,
    horizon: int | None = None,
    first_days: int | None = None,
    neighbourhood: int = 5,
) -> Setting:
    """Cut a forecasting problem out of a dataset, shrinking lags and split in proportion when the series is short.

    Args:
        chosen: a protocol or its name.
        dataset: any step that divides the protocol's.
        horizon: steps to forecast; by default the largest of the protocol's.
        first_days: train on the first days alone.
        neighbourhood: side of the square of cells around the target cell.

    Returns:
        The dataset at the protocol's step, the windows, the split, and notes on what was shrunk.

    Raises:
        ConfigError: an unknown protocol, a horizon below 1, or a series coarser than the protocol.
        DataError: the series is too short for a single training window of the shortest kind.
    """
    chosen = protocol(chosen) if isinstance(chosen, str) else chosen
    horizon = max(chosen.horizons) if horizon is None else horizon
    if horizon < 1:
        raise ConfigError(f"horizon is {horizon}; it must be at least 1 step")
    if chosen.step_minutes % dataset.step_minutes:
        raise ConfigError(
            f"protocol {chosen.name!r} has steps of {chosen.step_minutes} min, {dataset.name} has steps of "
            f"{dataset.step_minutes} min, which cannot be summed up to that; choose another protocol"
        )
    if dataset.step_minutes != chosen.step_minutes:
        dataset = dataset.resample(chosen.step_minutes)
    split = split_of(chosen, dataset)
    if first_days is not None:
        split = split.first_days(first_days, chosen.steps_per_day)
    spec, shrunk = fitting_windows(chosen, dataset, horizon, len(split.train), neighbourhood)
    notes = [note for note in (split.note, shrunk) if note]
    return Setting(dataset, spec, split, tuple(notes))


def split_of(chosen: EvaluationProtocol, dataset: TrafficDataset) -> Split:
    """Split a series at a protocol's step as the protocol says.

    A protocol with `known_days` tests all but the first days, of which the last third validates: of its series nothing
    is published before the test week.

    Raises:
        DataError: the series is too short.
    """
    per_day = dataset.steps_per_day
    if chosen.known_days is None:
        return chronological_split(
            dataset.num_steps, per_day, test_days=chosen.test_days, validation_days=chosen.validation_days
        )
    known = chosen.known_days * per_day
    if known >= dataset.num_steps:
        raise DataError(
            f"{dataset.name} has {dataset.num_steps / per_day:.3g} days and protocol {chosen.name!r} tests what "
            f"follows the first {chosen.known_days}; give a longer series"
        )
    cut = known - known // 3
    days = f"{chosen.known_days} day{'s' * (chosen.known_days > 1)}"
    note = f"tested on all but the first {days}, of which the last third validates"
    return Split(range(cut), range(cut, known), range(known, dataset.num_steps), note)


def fitting_windows(
    chosen: EvaluationProtocol, dataset: TrafficDataset, horizon: int, train_steps: int, neighbourhood: int
) -> tuple[WindowSpec, str]:
    """Return the protocol's windows, or smaller ones that leave at least half of the training steps as targets.

    Args:
        chosen: the protocol.
        dataset: at the protocol's step.
        horizon: steps to forecast.
        train_steps: steps to train on.
        neighbourhood: side of the square of cells around the target cell.

    Returns:
        The windows, and a note on what was shrunk; empty when nothing was.

    Raises:
        DataError: the series is too short for a single training window of the shortest kind.
    """
    recent, daily, weekly = chosen.recent, chosen.daily, chosen.weekly

    def spec() -> WindowSpec:
        return WindowSpec.recent(
            horizon,
            recent,
            daily=daily,
            weekly=weekly,
            steps_per_day=chosen.steps_per_day,
            neighbourhood=neighbourhood,
        )

    def too_long() -> bool:
        # half of the training steps are to be left as targets, or there is nothing to learn from
        return 2 * (spec().reach + horizon - 1) > train_steps

    while weekly and too_long():
        weekly -= 1
    while daily and too_long():
        daily -= 1
    if too_long():
        recent = min(recent, max(train_steps // 2 - horizon + 1, 1))
    if spec().reach + horizon > train_steps:
        raise DataError(
            f"{dataset.name} leaves {train_steps} steps of {chosen.step_minutes} min to train on, too few for a window "
            f"of {recent} steps in and {horizon} out; give a longer series or a shorter horizon"
        )
    wanted = (chosen.recent, chosen.daily, chosen.weekly)
    if (recent, daily, weekly) == wanted:
        return spec(), ""
    return spec(), (
        f"inputs shrunk from {_lags(*wanted)} to {_lags(recent, daily, weekly)}: "
        f"{train_steps / chosen.steps_per_day:.1f} days to train on"
    )


def _lags(recent: int, daily: int, weekly: int) -> str:
    parts = [f"{recent} recent steps"]
    for count, unit in ((daily, "day"), (weekly, "week")):
        parts += [f"{count} {unit}{'s' if count > 1 else ''}"] if count else []
    return " + ".join(parts)
