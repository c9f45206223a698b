"""Forecasts of the files that appear in a folder, one by one, until the watch is stopped."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from simmst.data.directory import SUFFIXES
from simmst.errors import ConfigError, SimmstError
from simmst.evaluation.intervals import checked_level
from simmst.forecaster import Forecaster
from simmst.foundation.documents import DocumentError, read_json
from simmst.foundation.files import locked, write_json
from simmst.jobs.saved import forecast_with, opened

STATE_FILE = ".simmst-watch.json"
OUTPUT_SUFFIX = ".forecast.csv"
INTERVAL = 5.0  # seconds
_VERSION = 1
_PACKED = (".gz", ".zip")

Tell = Callable[[str], None]
Look = tuple[int, int]  # size in bytes and time of the last change in nanoseconds


class Stop(Protocol):
    """What ends a watch: a `threading.Event`, or what is asked and waited for like one."""

    def is_set(self) -> bool:
        """Return whether the watch shall end."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it shall end, `timeout` seconds at most, and return whether it shall."""


@dataclass
class _File:
    """A file as it was when it was read, and whether it gave a forecast."""

    size: int
    mtime_ns: int
    sha256: str | None
    forecast: bool


@dataclass
class _Remembered:
    """Content of the state file."""

    version: Literal[1]
    settings: dict[str, Any]
    files: dict[str, _File]


@dataclass
class _State:
    """The files read before: size, time and digest of each, and whether it gave a forecast."""

    path: Path
    settings: dict[str, Any]
    files: dict[str, _File] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, settings: dict[str, Any]) -> _State:
        """Read the state that an earlier watch with the same settings left; a watch with other settings starts empty.

        Raises:
            ConfigError: the file is damaged.
        """
        if not path.is_file():
            return cls(path, settings)
        try:
            found = read_json(path, _Remembered)
        except DocumentError as error:
            raise ConfigError(
                f"{path}, which remembers the files that were read, is damaged ({error}); delete it to forecast "
                "every file in the folder again"
            ) from error
        return cls(path, settings, found.files if found.settings == settings else {})

    def knows(self, name: str, look: Look) -> bool:
        known = self.files.get(name)
        return known is not None and (known.size, known.mtime_ns) == look

    def remember(self, name: str, look: Look, digest: str | None, *, forecast: bool) -> None:
        self.files[name] = _File(*look, digest, forecast)
        files = {name: dataclasses.asdict(one) for name, one in self.files.items()}
        write_json(self.path, {"version": _VERSION, "settings": self.settings, "files": files})


def watch(
    folder: str | Path,
    *,
    run: str | Path | None = None,
    horizon: int | None = None,
    step: int | None = None,
    services: Sequence[str] | None = None,
    levels: Sequence[int] = (),
    table: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    once: bool = False,
    interval: float = INTERVAL,
    stop: Stop | None = None,
    tell: Tell = lambda line: None,
    complain: Tell = lambda line: None,
) -> int:
    """Forecast every data file that appears in a folder, each once, and write one CSV file for each.

    The watch lists the folder every `interval` seconds, which also works on file systems that do not report changes. It
    reads a file when two successive looks found the same size and time, so it does not read a file that is still being
    copied. The files read are recorded in ``.simmst-watch.json`` beside the forecasts. A file is read again when its
    content changes, and every file when the settings change. A file that cannot be forecast is reported in one line and
    left until it changes.

    Args:
        folder: folder to watch; its subfolders, hidden files and files of other kinds are ignored.
        run: trained forecaster, as in `simmst.jobs.forecast`, like `horizon`, `step`, `services`, `levels` and `table`.
        out: folder for the forecasts, ``<name of the file>.forecast.csv``; None takes ``forecasts`` in `folder`.
        once: whether to forecast the files already in the folder and return.
        interval: seconds between two looks at the folder.
        stop: event that ends the watch once it is set, after the file that is being forecast. A signal handler must not
            set a `threading.Event` that its own thread may be waiting for.
        tell: callable that gets one line for each forecast.
        complain: callable that gets notes, and one line for each file that could not be forecast.

    Returns:
        The number of files that were forecast.

    Raises:
        ConfigError: `folder` is not a folder, a setting is invalid, another watch writes to `out`, or the record of the
            files read is damaged.
        CheckpointError: the run's forecaster is damaged.
        OSError: a forecast cannot be written.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder} to watch; create it, or check the path")
    if not 0 < interval < float("inf"):
        raise ConfigError(f"interval is {interval:g} seconds; it must be more than 0")
    forecaster = opened(run, horizon=horizon, step=step, services=services)
    for level in levels:
        checked_level(level)
    target = folder / "forecasts" if out is None else Path(out)
    reading = {"step": step, "services": services, "levels": list(levels), "table": dict(table or {})}
    settings = {"run": None if run is None else str(Path(run).resolve()), "horizon": horizon, **reading}
    with locked(target, ConfigError):
        state = _State.read(target / STATE_FILE, {"folder": str(folder.resolve()), **settings})
        reader = _Reader(target, state, forecaster, reading, tell, complain)
        return _look_again_and_again(folder, reader, once=once, interval=interval, stop=stop or threading.Event())


def _look_again_and_again(folder: Path, reader: _Reader, *, once: bool, interval: float, stop: Stop) -> int:
    before: dict[str, Look] = {}
    done = 0
    while True:
        now = _looks(folder)
        fresh = [name for name, look in now.items() if not reader.state.knows(name, look)]
        for name in fresh:
            if stop.is_set():
                return done
            if before.get(name) == now[name]:
                done += reader.read(folder / name, now[name])
        if once and (before or not fresh):
            for name in fresh:
                if before.get(name) != now[name]:
                    reader.complain(f"{folder / name}: is still growing; it is left alone")
            return done
        before = now
        if stop.wait(interval):
            return done


def _looks(folder: Path) -> dict[str, Look]:
    """Return the data files of a folder by name."""
    found = {}
    for path in sorted(folder.iterdir()):
        kinds = [suffix.lower() for suffix in path.suffixes]
        if (
            not kinds
            or kinds[-1] not in (*SUFFIXES, *_PACKED)
            or path.name.startswith(".")
            or path.name.endswith(OUTPUT_SUFFIX)
        ):
            continue
        try:
            if path.is_file():
                found[path.name] = _look(path)
        except OSError:  # gone since the folder was listed, or a link to nowhere
            continue
    return found


def _look(path: Path) -> Look:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@dataclass
class _Reader:
    """Reader that forecasts one file after the other."""

    target: Path
    state: _State
    forecaster: Forecaster
    reading: dict[str, Any]
    tell: Tell
    complain: Tell

    def read(self, path: Path, look: Look) -> bool:
        """Forecast a file unless its content was read before, and return whether it was forecast."""
        known, digest = self.state.files.get(path.name), None
        try:
            digest = _digest(path)
            if known is not None and known.sha256 == digest:
                self.state.remember(path.name, look, digest, forecast=known.forecast)
                return False
            found = forecast_with(self.forecaster, path, **self.reading)
            if _look(path) != look:  # written to while it was read: it is read again once it stops changing
                return False
        except (SimmstError, OSError, MemoryError) as error:
            message = " ".join(str(error).split()) or type(error).__name__
            named = message if path.name in message else f"{path}: {message}"
            self.complain(f"{named}; it is left alone until it changes")
            self.state.remember(path.name, look, digest, forecast=False)
            return False
        written = found.save(self.target / f"{path.name}{OUTPUT_SUFFIX}")
        for note in found.notes:
            self.complain(f"note: {path.name}: {note}")
        self.state.remember(path.name, look, digest, forecast=True)
        self.tell(f"written: {written} ({len(found.frame)} rows)")
        return True


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
