"""The demo: forecast a city with a model that has learned from simulated cities."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from simmst.errors import ConfigError
from simmst.forecaster.config import ForecasterConfig
from simmst.foundation.files import locked
from simmst.jobs.inputs import checked_split, described, open_data
from simmst.jobs.runs import Outcome, fit_and_test, open_run, unfinished
from simmst.simulation import surrogate_city
from simmst.training import Progress, TrainingConfig, quiet

# The surrogate city is known for five days; the next seven are forecast.
SURROGATE_DAYS, SURROGATE_TEST_DAYS = 12, 7
FULL = ForecasterConfig()
# Enough to check that every part works.
QUICK = ForecasterConfig(training=TrainingConfig(adapt_epochs=2, samples_per_epoch=512))


def demo(
    data: str | Path | None = None,
    out: str | Path = "runs/demo",
    *,
    quick: bool = False,
    seed: int = 0,
    step: int = 60,
    services: Sequence[str] | None = None,
    progress: Progress = quiet,
) -> Outcome:
    """Forecast an unseen city with the shipped weights, adapt them to its few days, and compare both.

    The weights have learned only from simulated cities. Without data the city is simulated as well, drawn from outside
    the prior of those cities. It is then labelled SURROGATE in the table and in every picture.

    Args:
        data: path or name of a traffic file.
        out: run folder; an unfinished demo with the same settings resumes there, any other demo is replaced.
        quick: fewer cells and epochs, to check that everything works.
        seed: seed of the city and of the training.
        step: minutes of a slot; without data 5, 10, 15, 30 or 60.
        services: services of the file, or of the default city, to keep; None keeps all.
        progress: called as the work advances.

    Returns:
        The report on the last days of the city, and the files written.

    Raises:
        DataError: the file cannot be read, or its series is too short.
        ConfigError: a setting is out of range, or the folder holds something that no demo wrote.
    """
    base = QUICK if quick else FULL
    config = dataclasses.replace(base, training=dataclasses.replace(base.training, seed=seed))
    if data is None:
        kept = {} if services is None else {"services": list(services)}
        side = 5 if quick else 10
        dataset = surrogate_city(seed, height=side, width=side, days=SURROGATE_DAYS, step_minutes=step, **kept)
    else:
        dataset = open_data(data, step=step, services=services)
    checked_split(dataset, config, simulated=None)
    settings = {"job": "demo", **described(dataset, data), "forecaster": config.to_dict()}
    with locked(Path(out), ConfigError):
        run = open_run(out, settings, overwrite=not unfinished(out, settings))
        days = SURROGATE_TEST_DAYS
        return fit_and_test(
            dataset, config, run, simulated=None, test_days=days, stride=config.horizon, progress=progress
        )
