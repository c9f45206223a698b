"""The official data sets: their addresses and their licence."""

from __future__ import annotations

from dataclasses import dataclass

LICENCE = "Open Database License (ODbL) 1.0"
ATTRIBUTION = "Telecom Italia Big Data Challenge (Barlacchi et al. 2015)"


@dataclass(frozen=True)
class OfficialSource:
    """One published data set.

    Attributes:
        grid: ``"milan"`` or ``"trento"``.
        doi: persistent identifier on Harvard Dataverse.
        prefix: common start of the names of its daily files.
    """

    grid: str
    doi: str
    prefix: str


SOURCES = {
    "milan": OfficialSource("milan", "doi:10.7910/DVN/EGZHFV", "sms-call-internet-mi-"),
    "trento": OfficialSource("trento", "doi:10.7910/DVN/QLCABU", "sms-call-internet-tn-"),
}
FETCHED = "simmst-fetch.json"  # record in a folder of fetched files


@dataclass(frozen=True)
class FetchedFile:
    """A file as it was when its checksum was verified."""

    bytes: int
    checksum: str
    modified_ns: int


@dataclass(frozen=True)
class Fetched:
    """The part of `FETCHED` that `prepare` needs."""

    doi: str
    files: dict[str, FetchedFile]
