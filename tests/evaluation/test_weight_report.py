from __future__ import annotations

import io
import json

import numpy as np
import pytest

from simmst.errors import ConfigError, DataError
from simmst.evaluation import WeightReport
from simmst.evaluation.weight_report import effective_number
from simmst.foundation.pictures import save_picture
from simmst.plotting import plot_weights
from simmst.training import WindowWeights

CITIES = 30
RANDOM = np.random.default_rng(0)
TILT = RANDOM.uniform(2, 12, CITIES)
PARAMETERS = [
    {"tilt_deg": TILT[number], "carrier_ghz": RANDOM.uniform(0.8, 3.5), "scenario": "urban", "sites": 3, "dense": True}
    for number in range(CITIES)
]
NAMES = [f"simulated-1-{number}" for number in range(CITIES)]


def given(weights):
    """Four windows of each city, all with the city's weight."""
    repeated = np.repeat(np.asarray(weights, dtype=np.float32), 4)
    return WindowWeights(repeated, np.repeat(np.arange(len(weights)), 4), None, len(weights))


@pytest.fixture(scope="module")
def report():
    """Cities with steep antennas have large weights."""
    return WeightReport.of(given(1 / (1 + np.exp(-(TILT - 7)))), NAMES, PARAMETERS)


def test_the_parameter_that_decides_the_weights_comes_first(report):
    first = report.shifts[0]
    assert first.name == "tilt_deg"
    assert first.prior == pytest.approx(TILT.mean())
    assert first.posterior == pytest.approx(np.average(TILT, weights=report.weights))
    assert first.shift > 3
    others = {shift.name: shift for shift in report.shifts}
    assert set(others) == {"tilt_deg", "carrier_ghz", "sites"}, "strings and switches are not numbers"
    assert others["sites"].shift == 0.0, "all cities have the same value"


def test_the_scale_is_the_spread_over_random_deals(report):
    deals = [np.average(RANDOM.permutation(TILT), weights=report.weights) for _ in range(4000)]
    assert report.shifts[0].scale == pytest.approx(np.std(deals), rel=0.05)


def test_uniform_weights_move_nothing():
    report = WeightReport.of(given(np.full(CITIES, 0.5)), NAMES, PARAMETERS)
    assert report.effective_cities == pytest.approx(CITIES)
    assert report.effective_samples == pytest.approx(4 * CITIES)
    assert all(shift.shift == 0.0 for shift in report.shifts)
    assert all(shift.posterior == pytest.approx(shift.prior) for shift in report.shifts)


def test_effective_number():
    assert effective_number(np.array([0.0, 0.0, 3.0])) == 1.0
    assert effective_number(np.zeros(3)) == 0.0
    assert effective_number(np.array([1.0, 3.0])) == pytest.approx(16 / 10)


def test_tables_and_json(report, tmp_path):
    console = pytest.importorskip("rich.console").Console(file=io.StringIO(), width=120)
    report.print(console)
    text = console.file.getvalue()
    best, worst = NAMES[int(report.weights.argmax())], NAMES[int(report.weights.argmin())]
    assert text.index(best) < text.index(worst) < text.index("tilt_deg")
    assert "weights of 120 simulated windows of 30 cities" in text
    values = json.loads(report.to_json(tmp_path / "weights.json").read_text())
    assert [city["name"] for city in values["cities"]] == [NAMES[number] for number in report.ranked()]
    assert values["parameters"][0]["name"] == "tilt_deg"
    assert values["cities"][0]["parameters"]["tilt_deg"] == pytest.approx(TILT[report.weights.argmax()])


def test_cities_without_parameters(tmp_path):
    report = WeightReport.of(given([0.2, 0.8]), ["a", "b"])
    assert report.shifts == ()
    assert len(report.tables()) == 1
    assert len(plot_weights(report).axes[0].patches) == 2


def test_the_page_has_a_panel_for_each_parameter(report, tmp_path):
    pytest.importorskip("matplotlib")
    figure = plot_weights(report)
    text = save_picture(figure, tmp_path / "weights.svg").read_text()
    for name in ("tilt_deg", "carrier_ghz", "sites"):
        assert f"<!-- {name} (" in text
    with pytest.raises(ConfigError, match=r"should end in one of: \.png"):
        save_picture(figure, tmp_path / "weights.txt")


def test_other_numbers_of_cities_are_refused():
    with pytest.raises(DataError, match="weights of 2 cities, and 3 were described"):
        WeightReport.of(given([0.2, 0.8]), ["a", "b", "c"])
