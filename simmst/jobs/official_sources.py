"""The published official data sets: where they are, and under which licence."""

from __future__ import annotations

from dataclasses import dataclass

LICENCE = "Open Database License (ODbL) 1.0"
ATTRIBUTION = "Telecom Italia Big Data Challenge (Barlacchi et al. 2015)"


@dataclass(frozen=True)
class OfficialSource:
    """One published data set.

    Attributes:
        grid: ``"milan"`` or ``"trento"``.
        doi: its persistent identifier, on Harvard Dataverse.
        prefix: how the names of its daily files start.
    """

    grid: str
    doi: str
    prefix: str


SOURCES = {
    "milan": OfficialSource("milan", "doi:10.7910/DVN/EGZHFV", "sms-call-internet-mi-"),
    "trento": OfficialSource("trento", "doi:10.7910/DVN/QLCABU", "sms-call-internet-tn-"),
}
FETCHED = "simmst-fetch.json"  # what a folder of fetched files holds beside them


@dataclass(frozen=True)
class FetchedFile:
    """One file as it was when its checksum was found right."""

    bytes: int
    checksum: str
    modified_ns: int


@dataclass(frozen=True)
class Fetched:
    """What `FETCHED` says that `prepare` needs."""

    doi: str
    files: dict[str, FetchedFile]
