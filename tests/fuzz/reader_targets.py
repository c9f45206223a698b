"""Every reader of files returns a result for any bytes, or raises an error that the command shows as one line."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from simmst import TrafficDataset
from simmst.commands.boundary import explained
from simmst.data import CityShards, load
from simmst.simulation import DomainPrior
from simmst.training import RunFolder, load_checkpoint

_DAILY = "sms-call-internet-mi-2013-11-01.txt"
# The name of the file, and its reader.
TARGETS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "npz": ("a.npz", TrafficDataset.from_npz),
    "csv": ("a.csv", lambda path: load(path).series()),
    "parquet": ("a.parquet", lambda path: load(path).series()),
    "daily": (_DAILY, load),
    "daily-gz": (f"{_DAILY}.gz", load),
    "daily-zip": (f"{_DAILY}.zip", load),
    "shard": ("cities-00000.parquet", lambda path: list(CityShards(path.parent))),
    "checkpoint": ("a.safetensors", load_checkpoint),
    "prior": ("prior.yaml", lambda path: DomainPrior.from_yaml(path).sample(0, 0)),
    "metrics": ("metrics.jsonl", lambda path: RunFolder(path.parent).metrics()),
}


def run(name: str, data: bytes) -> None:
    """Read a file with these bytes."""
    file, read = TARGETS[name]
    with tempfile.TemporaryDirectory(prefix="simmst-fuzz-") as folder:
        path = Path(folder) / file
        path.write_bytes(data)
        try:
            read(path)
        except Exception as error:
            if explained(error) is None or isinstance(error, MemoryError):
                raise
