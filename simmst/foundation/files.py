"""Files that are either whole or absent."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file beside `path`, then rename it into place.

    A reader sees the old file or the new one, never a part of it; when `write` fails nothing is left behind. A symbolic
    link stays, and the file that it points to is replaced; pipes and devices are written to as they are.

    Args:
        path: the target; its folder is made when missing.
        write: gets the temporary path, which has the target's suffix, and writes the whole content there.

    Returns:
        The target as a `Path`.

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
    # the name starts with a dot and ends in the target's suffix, which some writers take their format from
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}-", suffix=target.suffix)
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
