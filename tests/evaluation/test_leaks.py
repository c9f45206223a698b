"""Faults that leak the future into a result, planted one by one."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation_city import city

from simmst.baselines import BASELINES
from simmst.data import Scaler, Windows, WindowSpec, chronological_split
from simmst.errors import DataError, SimmstError
from simmst.evaluation.leaks import refuse_leaking_fit, refuse_leaking_forecasts
from simmst.training.validation import refuse_seen_targets

SPEC = WindowSpec(3, tuple(range(-6, 0)), 3)


@pytest.fixture
def data():
    return city(9)


@pytest.fixture
def split(data):
    return chronological_split(data.num_steps, data.steps_per_day)


class OfScaler:
    """Forecasts the mean on the scale of a scaler, so the forecast contains what the scaler has seen."""

    def __init__(self, scaler):
        self.scaler = scaler

    def predict(self, dataset, origins):
        middle = np.zeros((len(origins), dataset.num_cells, 3, dataset.num_services), dtype=np.float32)
        return self.scaler.inverse(middle + 1, axis=-1)


def test_a_scaler_that_sees_the_test_is_caught(data, split):
    def honest(dataset, split):
        return OfScaler(Scaler.fit(dataset, split.train))

    def planted(dataset, split):
        return OfScaler(Scaler.fit(dataset, range(dataset.num_steps)))

    refuse_leaking_fit("honest", honest, data, split)
    with pytest.raises(DataError, match=r"the fit of planted reads slots of the test"):
        refuse_leaking_fit("planted", planted, data, split)


class Peeking:
    """Persistence whose newest value is `ahead` slots too new."""

    def __init__(self, ahead):
        self.ahead = ahead

    def predict(self, dataset, origins):
        series = np.moveaxis(dataset.series(), 1, 2)  # (T, C, K)
        newest = series[np.minimum(origins - 1 + self.ahead, len(series) - 1)]
        return np.repeat(newest[:, :, None], 3, axis=2)


@pytest.mark.parametrize("ahead", [1, 3])
def test_a_feature_that_contains_the_target_is_caught(data, split, ahead):
    origins = np.arange(split.test.start, split.test.stop - 2)
    refuse_leaking_forecasts("persistence", Peeking(0), data, origins)
    with pytest.raises(DataError, match="peeking reads slots at or after the origin"):
        refuse_leaking_forecasts("peeking", Peeking(ahead), data, origins)


def test_what_is_learned_from_a_later_origin_is_caught(data, split):
    class OfLastOrigin:
        def predict(self, dataset, origins):
            return Peeking(0).predict(dataset, np.full_like(origins, origins[-1]))

    with pytest.raises(DataError, match="reads slots at or after the origin"):
        refuse_leaking_forecasts("later", OfLastOrigin(), data, np.arange(split.test.start, split.test.stop - 2))


def test_training_windows_that_cross_into_the_test_are_caught(data, split):
    class OfTargets:
        """Forecasts the mean of the targets that it was trained on."""

        def __init__(self, windows):
            self.mean = windows.raw_target(np.arange(len(windows))).mean(axis=(0, 1))

        def predict(self, dataset, origins):
            return np.broadcast_to(self.mean, (len(origins), dataset.num_cells, 3, dataset.num_services))

    def trained(beyond):
        def fit(dataset, split):
            before = range(split.test.start + beyond)
            return OfTargets(Windows(dataset, SPEC, Scaler.fit(dataset, split.train), steps=before))

        return fit

    refuse_leaking_fit("honest", trained(0), data, split)
    with pytest.raises(DataError, match="the fit of crossing reads slots of the test"):
        refuse_leaking_fit("crossing", trained(1), data, split)


def test_training_windows_that_cross_into_the_validation_are_caught(data, split):
    scaler = Scaler.fit(data, split.train)
    validation = Windows(data, SPEC, scaler, steps=split.validation)
    refuse_seen_targets(Windows(data, SPEC, scaler, steps=split.train), validation)
    crossing = Windows(data, SPEC, scaler, steps=range(split.train.stop + 1))
    with pytest.raises(SimmstError):
        refuse_seen_targets(crossing, validation)


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_no_baseline_leaks(data, split, name):
    def fit(dataset, split):
        return BASELINES[name]().fit(dataset, SPEC, range(split.test.start))

    refuse_leaking_fit(name, fit, data, split)
    origins = np.arange(split.test.start, split.test.stop - 2)
    refuse_leaking_forecasts(name, fit(data, split), data, origins)
