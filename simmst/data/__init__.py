"""Traffic data: data sets, readers of file formats, calendar, scaling, splits and windows."""

from simmst.data.batch import Batch, WindowSource, batches, concat_batches, index_batch
from simmst.data.calendar import CALENDAR_FEATURES, calendar_features
from simmst.data.city_shards import CityShards, write_shard
from simmst.data.covariates import Covariates
from simmst.data.dataset import TrafficDataset
from simmst.data.directory import available, data_directory
from simmst.data.grids import Grid, load_grid
from simmst.data.library import load
from simmst.data.readers.npz import read_published_predictions, read_undated_frames
from simmst.data.scaler import Scaler
from simmst.data.split import Split, chronological_split
from simmst.data.streamed_windows import StreamedWindows
from simmst.data.windows import CityWindows, ConcatWindows, Windows, WindowSpec

__all__ = [
    "CALENDAR_FEATURES",
    "Batch",
    "CityShards",
    "CityWindows",
    "ConcatWindows",
    "Covariates",
    "Grid",
    "Scaler",
    "Split",
    "StreamedWindows",
    "TrafficDataset",
    "WindowSource",
    "WindowSpec",
    "Windows",
    "available",
    "batches",
    "calendar_features",
    "chronological_split",
    "concat_batches",
    "data_directory",
    "index_batch",
    "load",
    "load_grid",
    "read_published_predictions",
    "read_undated_frames",
    "write_shard",
]
