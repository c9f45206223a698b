"""The jobs behind the commands: each reads files, calls the library, writes files and returns its result."""

from simmst.jobs.city_folder import simulate
from simmst.jobs.demonstration import demo
from simmst.jobs.official_fetch import fetch
from simmst.jobs.official_prepare import prepare
from simmst.jobs.pretraining import PretrainingConfig, pretrain
from simmst.jobs.reporting import report
from simmst.jobs.runs import Outcome, fit_and_test, train
from simmst.jobs.saved import evaluate, forecast
from simmst.jobs.watching import watch

__all__ = [
    "Outcome",
    "PretrainingConfig",
    "demo",
    "evaluate",
    "fetch",
    "fit_and_test",
    "forecast",
    "prepare",
    "pretrain",
    "report",
    "simulate",
    "train",
    "watch",
]
