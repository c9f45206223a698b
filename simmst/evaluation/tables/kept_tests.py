"""Stored paired tests of a table, so that a finished table needs no import of scipy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import numpy.typing as npt

from simmst.evaluation import significance
from simmst.foundation.documents import DocumentError, read_json
from simmst.foundation.files import write_json

Errors = npt.NDArray[np.floating]
PairedTest = Callable[[Errors, Errors, int], tuple[float, int]]


def paired(one: Errors, other: Errors, steps_per_day: int) -> tuple[float, int]:
    """Test a pair without keeping the result: see `simmst.evaluation.significance.paired_test`."""
    return significance.paired_test(one, other, steps_per_day=steps_per_day)


class KeptTests:
    """Paired tests whose results are kept in a file, so that no pair of the same errors is tested twice.

    Results from another version of the test or of scipy are not used, nor is a damaged file.

    Args:
        path: file of the results, which need not exist yet.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "tests.json"
        >>> tests = KeptTests(path)
        >>> tests(np.ones(168), np.full(168, 2.0), 24)
        (0.015625, 7)
        >>> tests.save()
        >>> KeptTests(path).known == tests.known
        True
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.by = method()
        try:
            kept = read_json(self.path, _Kept)
        except (OSError, DocumentError):
            kept = _Kept("", {})
        self.known = kept.found if kept.by == self.by else {}
        self._saved = dict(self.known)
        self._asked: set[str] = set()

    def __call__(self, one: Errors, other: Errors, steps_per_day: int) -> tuple[float, int]:
        """Return the p value and the number of blocks, as `paired` does."""
        key = _key(one, other, steps_per_day)
        self._asked.add(key)
        if key not in self.known:
            self.known[key] = paired(one, other, steps_per_day)
        return self.known[key]

    def save(self) -> None:
        """Write only the results that this table asked for, and nothing where they have not changed."""
        self.known = {key: self.known[key] for key in sorted(self._asked)}
        if self.known != self._saved:
            write_json(self.path, asdict(_Kept(self.by, self.known)))
            self._saved = dict(self.known)


def method() -> str:
    """Return a hash of the code of the test and of the version of scipy, which decide a p value."""
    try:
        library = version("scipy")
    except PackageNotFoundError:
        library = ""
    return hashlib.sha256(Path(significance.__file__).read_bytes() + library.encode()).hexdigest()[:16]


@dataclass
class _Kept:
    """The content of the file: the method, and the p value and number of blocks of each pair."""

    by: str
    found: dict[str, tuple[float, int]]

    def __post_init__(self) -> None:
        for p_value, blocks in self.found.values():
            if not 0 < p_value <= 1 or blocks < 0:
                raise ValueError(f"a p value of {p_value} on {blocks} blocks")


def _key(one: Errors, other: Errors, steps_per_day: int) -> str:
    digest = hashlib.sha256(f"{one.shape} {other.shape} {steps_per_day}".encode())
    for errors in (one, other):
        digest.update(np.ascontiguousarray(errors, dtype=np.float64).tobytes())
    return digest.hexdigest()[:16]
