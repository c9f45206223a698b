"""A data frame is accepted wherever a data set is."""

from __future__ import annotations

import numpy as np
import pytest

from simmst.data import TrafficDataset
from simmst.errors import DataError
from simmst.forecaster import Forecaster
from simmst.simulation import surrogate_city

pd = pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def city() -> TrafficDataset:
    return surrogate_city(0, height=3, width=3, days=10, services=("internet",))


def test_fit_and_predict_take_a_frame(city):
    frame = city.to_dataframe()
    by_frame = Forecaster(horizon=2, model="seasonal-naive-day").fit(frame)
    by_data = Forecaster(horizon=2, model="seasonal-naive-day").fit(city)
    pd.testing.assert_frame_equal(by_frame.predict(), by_data.predict())
    later = city.slice_steps(48, city.num_steps - 5)
    pd.testing.assert_frame_equal(by_frame.predict(later.to_dataframe()), by_data.predict(later))


def test_a_frame_takes_the_places_it_was_fitted_on(city):
    fitted = Forecaster(horizon=2, model="ridge").fit(city)  # it uses neighbours
    shuffled = city.to_dataframe().sort_values("unique_id", ascending=False, kind="stable")
    pd.testing.assert_frame_equal(fitted.predict(shuffled), fitted.predict(city))


def test_a_polars_frame_and_a_file(city, tmp_path):
    polars = pytest.importorskip("polars")
    expected = Forecaster(horizon=2, model="seasonal-naive-day").fit(city).predict()
    again = Forecaster(horizon=2, model="seasonal-naive-day").fit(polars.from_pandas(city.to_dataframe())).predict()
    np.testing.assert_array_equal(again["y_hat"], expected.y_hat)
    city.save(tmp_path / "city.npz")
    fitted = Forecaster(horizon=2, model="seasonal-naive-day").fit(tmp_path / "city.npz")
    pd.testing.assert_frame_equal(fitted.predict(tmp_path / "city.npz"), expected)


@pytest.mark.parametrize("given", [[1.0, 2.0], np.ones(4), 7])
def test_what_is_no_traffic_is_named(given):
    with pytest.raises(DataError, match="give a TrafficDataset, a pandas or polars data frame, or a file"):
        Forecaster(horizon=2, model="seasonal-naive-day").fit(given)
