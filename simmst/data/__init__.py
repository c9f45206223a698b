"""Traffic data: data sets, readers of file formats, calendar, scaling, splits and windows."""

from simmst.data.calendar import CALENDAR_FEATURES, calendar_features
from simmst.data.dataset import TrafficDataset
from simmst.data.scaler import Scaler
from simmst.data.split import Split, chronological_split
from simmst.data.windows import Batch, ConcatWindows, Windows, WindowSpec, batches

__all__ = [
    "CALENDAR_FEATURES",
    "Batch",
    "ConcatWindows",
    "Scaler",
    "Split",
    "TrafficDataset",
    "WindowSpec",
    "Windows",
    "batches",
    "calendar_features",
    "chronological_split",
]
