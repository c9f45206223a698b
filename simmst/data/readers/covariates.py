"""Tables of covariates: one column of times, and one column for each covariate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from simmst.data.covariates import Covariates
from simmst.data.readers.frames import read_dataframe
from simmst.data.readers.tables import TABLES, read_tables
from simmst.errors import DataError


def read_covariates(source: Any, timezone: str, **options: Any) -> Covariates:
    """Read covariates from a table with one column of times and one column for each covariate.

    Args:
        source: a pandas or polars data frame, or the path of a table (.csv, .tsv or .parquet, packed or not);
            covariates are returned unchanged.
        timezone: IANA name of the time zone of times that carry none.
        **options: options of `read_dataframe`, such as `time_col`, `dayfirst` and `decimal`; `target_col` chooses
            columns.

    Raises:
        DataError: the table holds no such columns; the message says what is wrong with it.

    Example:
        >>> import pandas as pd
        >>> hours = pd.date_range("2013-11-01", periods=3, freq="h")
        >>> table = pd.DataFrame({"time": hours, "temperature": [7, 6.5, -1]})
        >>> read_covariates(table, "Europe/Rome").values.ravel().tolist()
        [7.0, 6.5, -1.0]
    """
    if isinstance(source, Covariates):
        return source
    where = "the covariates"
    if isinstance(source, (str, Path)):
        path, where = Path(source).expanduser(), f"the covariates of {source}"
        if not path.is_file():
            raise DataError(f"{path} does not exist; give a table of covariates ({', '.join(TABLES)})")
        source = read_tables([path])
    options = {"layout": "cells", "unit": "z-score", "country": None, "timezone": timezone, **options}
    try:
        found = read_dataframe(source, **options)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    names = found["cell_id"] if found["cell_name"] is None else found["cell_name"]
    values = np.ascontiguousarray(found["activity"][:, 0, 0], dtype=np.float32)
    return Covariates(tuple(str(name) for name in names[0]), found["time"], values)
