"""Realism of simulated cities: their statistics compared with those of real files, and priors fitted to real data."""

from __future__ import annotations

from simmst.realism.calibration import Calibration, calibrate
from simmst.realism.comparison import FileComparison, Row
from simmst.realism.measurements import Measurement, Statistic, measure
from simmst.realism.patches import read_patches, split_patches
from simmst.realism.report import RealismReport, compare, compare_files

__all__ = [
    "Calibration",
    "FileComparison",
    "Measurement",
    "RealismReport",
    "Row",
    "Statistic",
    "calibrate",
    "compare",
    "compare_files",
    "measure",
    "read_patches",
    "split_patches",
]
