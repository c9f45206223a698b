"""Evaluation: metrics in raw units, named protocols and reports; their pictures are in `simmst.plotting`."""

from __future__ import annotations

from simmst.evaluation.evaluate import ModelPredictor, Predictor, QuantilePredictor, evaluate
from simmst.evaluation.forecasts import Forecasts, TestedSlots
from simmst.evaluation.intervals import ErrorQuantiles, believed_stretch, measure_stretch, stretch_of
from simmst.evaluation.metrics import Scores, score, seasonal_naive_error, skill
from simmst.evaluation.protocol import PROTOCOLS, EvaluationProtocol, Setting, fitting_windows, prepare, protocol
from simmst.evaluation.report import Report, Row
from simmst.evaluation.weight_report import ParameterShift, WeightReport

__all__ = [
    "PROTOCOLS",
    "ErrorQuantiles",
    "EvaluationProtocol",
    "Forecasts",
    "ModelPredictor",
    "ParameterShift",
    "Predictor",
    "QuantilePredictor",
    "Report",
    "Row",
    "Scores",
    "Setting",
    "TestedSlots",
    "WeightReport",
    "believed_stretch",
    "evaluate",
    "fitting_windows",
    "measure_stretch",
    "prepare",
    "protocol",
    "score",
    "seasonal_naive_error",
    "skill",
    "stretch_of",
]
