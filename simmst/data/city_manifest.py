"""The manifest of a folder of simulated cities: their settings, and where each city is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simmst.errors import DataError
from simmst.foundation.documents import DocumentError, read_json

MANIFEST_FILE = "manifest.json"


@dataclass
class ListedCity:
    """A city of the folder.

    Attributes:
        file: name of the shard or folder that holds it.
        index: number of the city in the family of cities of the seed.
        parameters: parameters that the prior drew for the city, by name.
    """

    file: str
    index: int
    parameters: dict[str, Any]

    def __post_init__(self) -> None:
        if self.file in ("", ".", "..") or Path(self.file).name != self.file or "\\" in self.file:
            raise ValueError(f"file is {self.file!r}, which is not the name of a file in this folder")


@dataclass
class Manifest:
    """What all cities of a folder have in common, and the list of the cities, empty while they are being made.

    Attributes:
        simmst: version that made the cities.
        seed: seed of the family of cities.
        city: fields of `simmst.simulation.CityConfig` that were held fixed.
        prior: law of the parameters.
        format: "shards" or "official".
        cities: the cities, in order.
    """

    simmst: str
    seed: int
    city: dict[str, Any]
    prior: dict[str, Any]
    format: str
    cities: list[ListedCity]


def read_manifest(folder: Path) -> Manifest | None:
    """Read the manifest of a folder; return None if there is none.

    Raises:
        DataError: the manifest is damaged, or lists no simulated cities.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        return None
    try:
        return read_json(path, Manifest)
    except DocumentError as error:
        raise DataError(f"{path} lists no simulated cities ({error}); choose another folder") from error
