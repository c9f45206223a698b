"""Text files packed as .gz or .zip, unpacked one at a time into a temporary folder."""

from __future__ import annotations

import gzip
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from simmst.errors import DataError

PACKED = (".gz", ".zip")
_PLENTY = 64 << 20  # bytes that any file may unpack to
_MOST_TIMES = 100  # times its size, beyond those bytes; text with many zeros unpacks to thirty times its size
_DAMAGED = (EOFError, LookupError, OSError, zlib.error, zipfile.BadZipFile, RuntimeError, NotImplementedError)


def inner_name(path: Path) -> str:
    """Return the name of a file without the suffix of its packing.

    Example:
        >>> inner_name(Path("data/a.csv.gz")), inner_name(Path("b.csv"))
        ('a.csv', 'b.csv')
    """
    return path.stem if path.suffix.lower() in PACKED else path.name


def members(path: Path) -> list[str]:
    """Return the names of the files in a .zip, sorted, or the name of a file that is not a .zip.

    Raises:
        DataError: the .zip is damaged or empty.
    """
    if path.suffix.lower() != ".zip":
        return [inner_name(path)]
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(
                item.filename
                for item in archive.infolist()
                if not item.is_dir() and not item.filename.startswith("__MACOSX") and Path(item.filename).suffix
            )
    except _DAMAGED as error:
        raise _damaged(path, error) from error
    if not names:
        raise DataError(f"{path} holds no file; fetch it again")
    return names


@contextmanager
def plain_file(path: Path, member: str) -> Iterator[Path]:
    """Yield the plain file inside a packed one, or the file itself if it is not packed.

    Raises:
        DataError: the packed file is damaged or cut short.
    """
    if path.suffix.lower() not in PACKED:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="simmst-") as folder:
        plain = Path(folder) / Path(member).name
        try:
            most = max(_PLENTY, _MOST_TIMES * path.stat().st_size)
            with _opened(path, member) as packed, plain.open("wb") as out:
                while block := packed.read(1 << 20):
                    out.write(block)
                    if out.tell() > most:
                        raise DataError(
                            f"{path} unpacks to more than {_MOST_TIMES} times its size, which no traffic file does; "
                            "unpack it yourself if you trust it"
                        )
        except _DAMAGED as error:
            raise _damaged(path, error) from error
        yield plain


@contextmanager
def _opened(path: Path, member: str) -> Iterator[IO[bytes]]:
    if path.suffix.lower() == ".gz":
        with gzip.open(path, "rb") as stream:
            yield cast(IO[bytes], stream)
    else:
        with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            yield stream


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be unpacked ({error}); it is damaged or was cut short: fetch it again")
