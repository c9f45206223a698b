"""The main job: forecast a city with a model that learned mostly from simulated ones, in a few minutes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from simmst.forecaster.config import ForecasterConfig
from simmst.jobs.inputs import checked_split, described, open_data
from simmst.jobs.runs import Outcome, fit_and_test, open_run, unfinished
from simmst.simulation import surrogate_city
from simmst.training import Progress, TrainingConfig, quiet

# Enough for the figures to settle on two CPU cores within the minutes a newcomer will wait.
FULL = ForecasterConfig(
    cities=48,
    training=TrainingConfig(epochs=12, samples_per_epoch=6144, batch_size=128, learning_rate=2e-3, finetune_epochs=8),
)
# Enough to see that every part works.
QUICK = ForecasterConfig(
    cities=6,
    training=TrainingConfig(epochs=2, samples_per_epoch=768, batch_size=128, learning_rate=2e-3, finetune_epochs=2),
)


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
    """Train Sim-MSTNet on simulated cities, fit it to one city and test it there.

    Without data the city is a simulated one as well, drawn outside the prior that the training cities come from: a
    SURROGATE, and labelled so in the table and in every picture.

    Args:
        data: path or name of a traffic file.
        out: the run folder; an unfinished demo of the same settings goes on there, any other run is replaced.
        quick: fewer cities and epochs, to see that everything works.
        seed: seeds the cities and the training.
        step: minutes of a slot; 10 or 60 without data.
        services: which services of the file, or of the default ones, to keep; None keeps all.
        progress: called as the work advances.

    Returns:
        The report on the last days of the city, and the files written.

    Raises:
        DataError: the file cannot be read, or its series is too short.
        ConfigError: a setting is out of range, or the folder holds something that no job wrote.
    """
    base = QUICK if quick else FULL
    config = dataclasses.replace(base, training=dataclasses.replace(base.training, seed=seed))
    if data is None:
        kept = {} if services is None else {"services": list(services)}
        dataset = surrogate_city(seed, height=10, width=10, days=23, step_minutes=step, **kept)
    else:
        dataset = open_data(data, step=step, services=services)
    checked_split(dataset, config, simulated=config.cities)
    settings = {"job": "demo", **described(dataset, data), "forecaster": config.to_dict()}
    run = open_run(out, settings, overwrite=not unfinished(out, settings))
    return fit_and_test(dataset, config, run, simulated=config.cities, progress=progress)
