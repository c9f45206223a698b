"""The named protocols: the steps of the input, the steps ahead, and the split of the series."""

from __future__ import annotations

from dataclasses import dataclass

from simmst.data import Split, TrafficDataset, WindowSpec, chronological_split
from simmst.errors import ConfigError, DataError


@dataclass(frozen=True)
class EvaluationProtocol:
    """A way to turn a series into forecasting problems.

    Args:
        name: name in configurations.
        step_minutes: minutes of a slot; finer series are summed to it.
        horizons: numbers of steps ahead that are reported, each forecast by its own model.
        recent: number of latest slots in the input.
        daily: number of previous days whose same hours are in the input.
        weekly: number of previous weeks whose same hours are in the input.
        test_days: last days, which are the test.
        validation_days: days before the test, which stop the training.
        first_days: numbers of first days to train on, one run for each; None trains on all.
        known_days: number of first days, after which all days are tested; None tests the last `test_days`.

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
        """Number of slots in a day."""
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
    """One forecasting problem, made from a data set by a protocol.

    Args:
        dataset: series in the protocol's slots.
        spec: windows.
        split: training, validation and test slots.
        notes: notes on what had to be shrunk, for the table.
    """

    dataset: TrafficDataset
    spec: WindowSpec
    split: Split
    notes: tuple[str, ...]


def protocol(name: str) -> EvaluationProtocol:
    """Return a protocol by name.

    Raises:
        ConfigError: there is no protocol with this name.

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
    """Make a forecasting problem from a data set, with shorter lags and split parts where the series is short.

    Args:
        chosen: protocol, or its name.
        dataset: series whose slots divide the protocol's.
        horizon: number of slots to forecast; None takes the protocol's largest.
        first_days: number of first days to train on; None trains on all.
        neighbourhood: side of the square of cells around the target cell.

    Returns:
        The data set in the protocol's slots, the windows, the split, and notes on what was shrunk.

    Raises:
        ConfigError: the protocol is unknown, the horizon is below 1, or the series is coarser than the protocol.
        DataError: the series is too short for a single training window of the shortest kind.
    """
    chosen = protocol(chosen) if isinstance(chosen, str) else chosen
    horizon = max(chosen.horizons) if horizon is None else horizon
    if horizon < 1:
        raise ConfigError(f"horizon is {horizon}; it must be at least 1 step")
    if chosen.step_minutes % dataset.step_minutes:
        raise ConfigError(
            f"protocol {chosen.name!r} has slots of {chosen.step_minutes} min, {dataset.name} has slots of "
            f"{dataset.step_minutes} min, which cannot be summed to these; choose another protocol"
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
    """Split a series, in a protocol's slots, as the protocol says.

    A protocol with `known_days` tests all slots after these first days. Their last third is the validation part,
    because nothing of the protocol's series is published before the test week.

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
    """Return the protocol's windows, or shorter ones that leave at least half of the training slots as targets.

    Args:
        chosen: protocol.
        dataset: series in the protocol's slots.
        horizon: number of slots to forecast.
        train_steps: number of slots to train on.
        neighbourhood: side of the square of cells around the target cell.

    Returns:
        The windows, and a note on what was shrunk, which is empty when nothing was.

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
        # half of the training slots must remain as targets, or there is too little to learn from
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
