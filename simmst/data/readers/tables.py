"""Tables in files: CSV with any separator, and Parquet, plain or packed."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simmst.data.readers.frame_columns import is_identifier, plain_name
from simmst.data.readers.unpacking import inner_name, members, plain_file
from simmst.errors import DataError
from simmst.foundation.extras import import_extra

if TYPE_CHECKING:
    import pandas

TABLES = (".csv", ".tsv", ".parquet")
_MOST_FIELDS = 200_000_000  # of a Parquet file
_SEPARATORS = ",;\t|"
_WHOLE = r"-?(?:0|[1-9]\d{0,17})"
_OFFICIAL = re.compile(r"\d{1,5}\t\d{12,13}\t\d+(\t[^\t]*){0,5}\s*")


def read_tables(files: Sequence[Path], *, text_columns: Sequence[str | None] = ()) -> pandas.DataFrame:
    """Read one table from one or more files, and join their rows in turn.

    Args:
        files: CSV or Parquet files, plain, .gz or .zip, all with the same columns.
        text_columns: columns of identifiers, whose text stays unchanged.

    Returns:
        Frame whose index ("line") gives each row's line in its CSV file, for messages.

    Raises:
        DataError: a file is damaged, has no header or no rows, has lines of different lengths, or has other columns
            than the first.
    """
    pd = import_extra("pandas", extra="forecast")
    frames: list[pandas.DataFrame] = []
    for path in files:
        for member in members(path):
            if Path(member).suffix.lower() not in TABLES:
                continue
            frame = _read(path, member, text_columns, pd)
            if frames and list(frame.columns) != list(frames[0].columns):
                raise DataError(
                    f"{path} has columns {', '.join(map(str, frame.columns[:8]))}, and {files[0]} has "
                    f"{', '.join(map(str, frames[0].columns[:8]))}; give files of the same columns"
                )
            if len(files) > 1 and frame.index.name == "line":
                frame.index = pd.Index([f"{path.name}, line {line}" for line in frame.index], name="line")
            frames.append(frame)
    if not frames:
        raise DataError(f"{files[0]} holds none of {', '.join(TABLES)}; unpack it and give the table")
    return frames[0] if len(frames) == 1 else pd.concat(frames)


def is_official_text(path: Path) -> bool:
    """Return whether a file holds official rows: numbers separated by tabs, without a header."""
    try:
        with plain_file(path, members(path)[0]) as plain, plain.open("rb") as stream:
            return _OFFICIAL.fullmatch(stream.readline(1000).decode("latin-1")) is not None
    except OSError:
        return False


def _read(path: Path, member: str, text_columns: Sequence[str | None], pd: Any) -> pandas.DataFrame:
    with plain_file(path, member) as plain:
        if Path(member).suffix.lower() != ".parquet":
            return _read_csv(path, plain.read_bytes(), text_columns, pd)
        try:
            _check_parquet(path, plain)
            frame: pandas.DataFrame = pd.read_parquet(plain)
        except DataError:
            raise
        except Exception as error:  # pyarrow, pandas and their decoders raise many kinds of errors for damaged bytes
            raise DataError(f"{path} cannot be read as Parquet ({error}); fetch it again, or write it again") from error
        return frame


def _check_parquet(path: Path, plain: Path) -> None:
    parquet = import_extra("pyarrow.parquet", extra="forecast")
    with parquet.ParquetFile(plain) as file:
        rows, columns = file.metadata.num_rows, file.metadata.num_columns
    if rows * columns > _MOST_FIELDS:
        raise DataError(
            f"{path} has {rows:,} rows of {columns} columns, at most {_MOST_FIELDS:,} fields are read; give it in parts"
        )


def _read_csv(path: Path, raw: bytes, text_columns: Sequence[str | None], pd: Any) -> pandas.DataFrame:
    text = _decoded(path, raw)
    first, _, rest = text.partition("\n")
    if not first.strip() or not rest.strip():
        raise DataError(f"{path} has no rows below a first line with the names of columns")
    separator = max(_SEPARATORS, key=first.count)
    header = [name.strip() for name in _fields(path, first, separator)]
    if all(re.fullmatch(r"[\d.,:+\- ]*", name) for name in header):
        raise DataError(
            f"{path}: the first line has no names of columns: {first.strip()[:80]!r}; write them above the rows"
        )
    repeated = next((name for name in header if name and header.count(name) > 1), None)
    if repeated is not None:
        raise DataError(f"{path}: two columns are named {repeated!r}; give each a name of its own")
    more = len(_fields(path, rest.lstrip("\r\n").partition("\n")[0], separator)) - len(header)
    names = [name or f"Unnamed: {i}" for i, name in enumerate(header)]
    names += [f"Unnamed: {len(header) + i}" for i in range(max(more, 0))]
    try:
        frame = pd.read_csv(
            io.StringIO(text),
            sep=separator,
            names=names,
            header=0,
            dtype=str,
            index_col=False,
            skip_blank_lines=False,
            skipinitialspace=True,
        )
    except (pd.errors.ParserError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: {error}; every line must have the {len(names)} fields of the first") from error
    frame.index = pd.RangeIndex(2, len(frame) + 2, name="line")
    frame = frame[~frame.isna().all(axis=1)]
    if frame.empty:
        raise DataError(f"{path} has no rows below a first line with the names of columns")
    return _with_numbers(frame, set(text_columns), pd)


def _fields(path: Path, line: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([line.rstrip("\r")], delimiter=separator))
    except csv.Error as error:
        raise DataError(f"{path}: {line[:80]!r} is not a row of a table ({error}); write the file again") from error


def _decoded(path: Path, raw: bytes) -> str:
    marks = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
    encoding = next((encoding for mark, encoding in marks.items() if raw.startswith(mark)), "utf-8")
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8" or b"\0" in raw:
            raise DataError(f"{path} is not text ({error}); write it as UTF-8") from error
        return raw.decode("latin-1")  # an old export; every byte is a character there


def _with_numbers(frame: pandas.DataFrame, text_columns: set[str | None], pd: Any) -> pandas.DataFrame:
    """Turn columns that hold plain numbers into numbers; an identifier such as 0042 stays text."""
    commas = any(frame[name].str.contains(r"\d,\d", na=False).any() for name in frame.columns)
    numbers: dict[Any, Any] = {}
    for name in frame.columns:
        column = frame[name]
        filled = column.dropna()
        if filled.empty or filled.str.fullmatch(_WHOLE).all():
            numbers[name] = pd.to_numeric(column)
        elif not commas and name not in text_columns and not is_identifier(name):
            plain = not filled.str.contains(r"^[+-]?0\d|[A-DF-Za-df-z_]", regex=True).any()
            read = pd.to_numeric(filled, errors="coerce") if plain else None
            numbers[name] = pd.to_numeric(column) if read is not None and read.notna().all() else column
        else:
            numbers[name] = column
    table = pd.DataFrame(numbers, index=frame.index)
    others = [name for name in table.columns if not re.fullmatch(_WHOLE, str(name))]
    if len(others) <= 2 and all(plain_name(name).startswith("unnamed") or not is_identifier(name) for name in others):
        table.columns = [int(name) if re.fullmatch(_WHOLE, str(name)) else name for name in table.columns]
    return table


def table_name(path: Path) -> str:
    """Return a short name for a table's data set, from the name of its file.

    Example:
        >>> table_name(Path("north.csv.gz"))
        'north'
    """
    return Path(inner_name(path)).stem
