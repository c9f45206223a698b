"""Scores of a fitted forecaster beside the naive baselines."""

from __future__ import annotations

from collections.abc import Sequence

from simmst.baselines import BASELINES
from simmst.data import Split, TrafficDataset
from simmst.errors import ConfigError, DataError
from simmst.evaluation import Predictor, Report, evaluate
from simmst.forecaster.fitted import FittedForecaster
from simmst.forecaster.fitting import fit_forecaster
from simmst.forecaster.zero_shot import ZeroShotPredictor, zero_shot_notes
from simmst.models import SimMSTNet
from simmst.pretrained import load_pretrained
from simmst.training import Progress


def score_forecaster(
    fitted: FittedForecaster, dataset: TrafficDataset, split: Split, *, stride: int = 1, notes: Sequence[str] = ()
) -> Report:
    """Score forecasts of the test slots of a series: see `Forecaster.evaluate`."""
    dataset = fitted.matched(dataset)
    before = range(split.test.start)
    predictors: dict[str, Predictor] = {fitted.name: fitted.predictor}
    untrained = untrained_predictor(fitted)
    if untrained is fitted.predictor:
        notes = (*notes, *zero_shot_notes(dataset, load_pretrained(), fitted.spec.horizon))
    elif untrained is not None:
        predictors[f"{fitted.name}, no training"] = untrained
    left_out = []
    for name, make in BASELINES.items():
        baseline = make()
        period = getattr(baseline, "days", 0) * dataset.steps_per_day
        if period > len(before):
            left_out.append(f"{name} is left out: it looks back {period} slots and {len(before)} precede the test")
        elif name != fitted.name:
            try:
                predictors[name] = baseline.fit(dataset, fitted.spec, before)
            except DataError as error:  # too little data for this baseline
                left_out.append(f"{name} is left out: {error}")
    notes = (*notes, *fitted.notes, *left_out)
    return evaluate(predictors, dataset, fitted.spec, split, stride=stride, notes=notes, keep_forecasts=True)


def untrained_predictor(fitted: FittedForecaster) -> ZeroShotPredictor | None:
    """Return the shipped weights as a baseline of a forecaster that could have started from them; None for others."""
    if isinstance(fitted.predictor, ZeroShotPredictor):
        return fitted.predictor
    if not isinstance(fitted.network, SimMSTNet) or fitted.config.start == "scratch":
        return None
    pretrained = load_pretrained()
    fits = not pretrained.differences(fitted.network.config)
    return ZeroShotPredictor(pretrained, fitted.spec.horizon, combine=fitted.config.combine) if fits else None


def cross_validate(fitted: FittedForecaster, n_windows: int, step: int | None, progress: Progress) -> Report:
    """Fit again without the end of the series, and score forecasts of that end: see `Forecaster.cross_validation`."""
    dataset, spec, record = fitted.dataset, fitted.spec, fitted.record
    if record is None or dataset is None:
        raise DataError(
            "this forecaster was loaded and has only the end of its series, too little to fit again; call "
            "fit with the whole series first"
        )
    step = spec.horizon if step is None else step
    if n_windows < 1 or step < 1:
        raise ConfigError(f"n_windows and step must be at least 1, got {n_windows} and {step}")
    cut = dataset.num_steps - spec.horizon - (n_windows - 1) * step
    least = spec.least_past + 2 * spec.horizon  # a window to train on and another to validate on
    if cut < least:
        raise DataError(
            f"{n_windows} windows of {spec.horizon} slots, {step} apart, leave {cut} of {dataset.num_steps} slots "
            f"to fit on, which needs at least {least}; use fewer windows"
        )
    past = fit_forecaster(
        fitted.config,
        dataset.slice_steps(0, cut),
        record.cities,
        validation_steps=record.validation_steps,
        progress=progress,
    )
    split = Split(train=range(cut), validation=range(cut, cut), test=range(cut, dataset.num_steps))
    return score_forecaster(past, dataset, split, stride=step, notes=record.city_notes)
