"""Files that are either whole or absent."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simmst.errors import SimmstError

_MARK = ".half-written-"


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file beside `path`, then rename it into place.

    A reader sees the old file or the new one, never a part of it; if `write` fails, nothing is left behind. A symbolic
    link stays, and the file that it points to is replaced; pipes and devices are written to directly.

    Args:
        path: file to write; its folder is made if missing.
        write: function that gets the temporary path, which has the target's suffix, and writes the whole content there.

    Returns:
        `path` as a `Path`.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_atomically(folder / "a.txt", lambda path: path.write_text("whole")).read_text()
        'whole'
        >>> [entry.name for entry in folder.iterdir()]
        ['a.txt']
    """
    path = target = Path(path)
    if path.is_symlink():
        target = path.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and not target.is_file() and not target.is_dir():
        write(target)
        return path
    # the name starts with a dot and ends in the target's suffix, from which some writers take their format
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}{_MARK}", suffix=target.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes private files; give the target the permissions an ordinary file would have
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def is_half_written(path: Path) -> bool:
    """Return whether a file is one that `write_atomically` did not finish.

    Example:
        >>> is_half_written(Path(".config.half-written-x1.json")), is_half_written(Path(".gitlab-ci.yml"))
        (True, False)
    """
    return path.name.startswith(".") and _MARK in path.name


def remove_half_written(folder: Path, pattern: str = "*") -> None:
    """Delete the temporary files of `write_atomically` that a killed process left in a folder.

    Args:
        folder: folder to clear; it need not exist.
        pattern: glob pattern for the targets' names without their suffixes.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in (".a.half-written-xyz.json", ".gitlab-ci.yml"):
        ...     _ = (folder / name).write_text("")
        >>> remove_half_written(folder)
        >>> [entry.name for entry in folder.iterdir()]
        ['.gitlab-ci.yml']
    """
    for path in folder.glob(f".{pattern}{_MARK}*"):
        path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, error: type[SimmstError]) -> Iterator[None]:
    """Lock a folder for this process until the block or the process ends.

    The lock is the system's, on the open folder: a killed process leaves no lock behind, and there is no lock file.

    Args:
        folder: folder to lock; it is made if missing.
        error: type of the error to raise.

    Raises:
        SimmstError: another process works in the folder, or it is a file; the error has the type `error`.

    Example:
        >>> with locked(Path(tempfile.mkdtemp()), SimmstError):
        ...     pass
    """
    if folder.exists() and not folder.is_dir():
        raise error(f"the folder {folder} is a file; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise error(f"another process works in {folder}; wait until it ends, or choose another folder") from None
        except OSError:  # a file system without locks cannot report another process
            pass
        yield
    finally:
        os.close(handle)


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as indented JSON with sorted keys, atomically; NaN and infinities are refused.

    Raises:
        ValueError: `value` holds a NaN or an infinity.

    Example:
        >>> json.loads(write_json(Path(tempfile.mkdtemp()) / "a.json", {"b": 1}).read_text())
        {'b': 1}
    """
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
