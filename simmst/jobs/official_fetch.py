"""The download of the official data sets from a Dataverse; each file is kept only with the right checksum."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from simmst.errors import ConfigError, DataError
from simmst.foundation.extras import import_extra
from simmst.foundation.files import locked, write_json
from simmst.foundation.progress import Progress, quiet
from simmst.jobs.official_sources import ATTRIBUTION, FETCHED, LICENCE, SOURCES, FetchedFile, OfficialSource

SERVER = "https://dataverse.harvard.edu"
_TIMEOUT_S = 60
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
_HASHES = {"MD5": ("md5", 32), "SHA-1": ("sha1", 40), "SHA-256": ("sha256", 64), "SHA-512": ("sha512", 128)}


@dataclass(frozen=True)
class _Remote:
    """A file of the data set: its name, number on the server, size, and checksum such as ``md5:...``."""

    name: str
    number: int
    size: int
    checksum: str


def fetch(
    grid: str,
    out: str | Path | None = None,
    *,
    server: str = SERVER,
    retries: int = 2,
    progress: Progress = quiet,
) -> Path:
    """Download the daily files of Milan or Trento into a folder.

    A file that already has the right checksum is kept; an interrupted download starts again from the beginning of its
    file. Each file has a temporary name until its checksum is verified.

    Args:
        grid: ``"milan"`` or ``"trento"``.
        out: folder to write; None takes ``official-milan`` or ``official-trento``.
        server: address of the Dataverse.
        retries: number of further attempts for each file.
        progress: callable that gets the number of files done and of all files.

    Returns:
        The folder, with the files and ``simmst-fetch.json``, which names DOI, licence and checksums.

    Raises:
        ConfigError: the grid is unknown, or the server is not an address.
        DataError: the server does not answer, does not return a list of files, or a file does not arrive whole.
        MissingExtraError: pooch is not installed.
    """
    if grid not in SOURCES:
        raise ConfigError(f"there is no official data set {grid!r}; give one of {', '.join(SOURCES)}")
    if not re.match(r"https?://[^/]+", server):
        raise ConfigError(f"server is {server!r}; give an address such as {SERVER}")
    source, server = SOURCES[grid], server.rstrip("/")
    folder = Path(out or f"official-{grid}")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give a folder for --out")
    pooch = import_extra("pooch", extra="fetch")
    found = _listed(source, server)
    missing = sum(one.size for one in found if not _has_size(folder / one.name, one.size))
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise DataError(f"{folder} has {free / 1e9:.1f} GB free, the download needs {missing / 1e9:.1f} GB; make room")
    pooch.get_logger().setLevel(logging.ERROR)  # the progress bars show the same
    store = pooch.create(
        path=folder,
        base_url=f"{server}/",
        registry={one.name: one.checksum for one in found},
        urls={one.name: f"{server}/api/access/datafile/{one.number}" for one in found},
        retry_if_failed=retries,
    )
    loader = pooch.HTTPDownloader(timeout=_TIMEOUT_S)
    progress("fetch", 0, len(found))
    with locked(folder, ConfigError):
        for done, one in enumerate(found, start=1):
            with _told(f"{one.name} of {source.doi}"):
                store.fetch(one.name, downloader=loader)
            progress("fetch", done, len(found))
    files = {
        one.name: asdict(FetchedFile(one.size, one.checksum, (folder / one.name).stat().st_mtime_ns)) for one in found
    }
    record = {"doi": source.doi, "server": server, "licence": LICENCE, "attribution": ATTRIBUTION, "files": files}
    write_json(folder / FETCHED, {"version": 1, "grid": grid, **record})
    return folder


def _listed(source: OfficialSource, server: str) -> list[_Remote]:
    """Return the daily files of a data set, sorted by name."""
    requests = import_extra("requests", extra="fetch")
    address = f"{server}/api/datasets/:persistentId/"
    with _told(f"the list of files of {source.doi}"):
        answer = requests.get(address, params={"persistentId": source.doi}, timeout=_TIMEOUT_S)
        answer.raise_for_status()
    try:
        entries = answer.json()["data"]["latestVersion"]["files"]
        found = [_remote(entry["dataFile"]) for entry in entries]
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{address} gave no list of files ({type(error).__name__}: {error}); check the server"
        ) from error
    found = sorted((one for one in found if one.name.startswith(source.prefix)), key=lambda one: one.name)
    if not found:
        raise DataError(f"{server} lists no file {source.prefix}* in {source.doi}; check the server")
    for one, after in pairwise(found):
        if one.name == after.name:
            raise DataError(f"{server} lists {one.name} twice; check the server")
    return found


def _remote(entry: dict[str, Any]) -> _Remote:
    """Read one entry of the list, and refuse a name that is a path, so that nothing is written outside the folder."""
    name, number, size = str(entry["filename"]), int(entry["id"]), int(entry["filesize"])
    checksum = entry.get("checksum") or {"type": "MD5", "value": entry["md5"]}
    kind, value = str(checksum["type"]), str(checksum["value"]).lower()
    if kind not in _HASHES or not re.fullmatch(rf"[0-9a-f]{{{_HASHES[kind][1]}}}", value):
        raise DataError(f"the server gives {name!r} the checksum {kind} {value!r}, which is invalid; check the server")
    if name != Path(name).name or (name.startswith("sms-") and not _PLAIN_NAME.fullmatch(name)):
        raise DataError(f"the server lists a file {name!r}, whose name leads out of the folder; check the server")
    return _Remote(name, number, size, f"{_HASHES[kind][0]}:{value}")


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn any failure of a download into one DataError."""
    requests = import_extra("requests", extra="fetch")
    try:
        yield
    except (requests.exceptions.RequestException, ValueError) as error:
        raise DataError(f"{what} cannot be fetched ({error}); try again later, finished files are kept") from error
