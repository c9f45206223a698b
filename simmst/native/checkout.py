"""The warning about a source tree that hides an installation with compiled modules."""

from __future__ import annotations

import sys
import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def warn_of_hidden_installation() -> None:
    """Warn if simmst runs without its compiled modules although a folder in ``sys.path`` has them.

    Python started in a checkout imports its sources, which have no compiled modules.
    """
    for folder in map(Path, sys.path):
        other = (folder / "simmst").resolve()
        if other != PACKAGE and any((other / f"_cpu{suffix}").is_file() for suffix in EXTENSION_SUFFIXES):
            warnings.warn(
                f"simmst was imported from the sources in {PACKAGE}, which have no compiled kernels, so it runs on the "
                f"slower reference; the installation in {other} has them. Start Python in another folder, or with -P "
                "(PYTHONSAFEPATH=1), to use it",
                RuntimeWarning,
                stacklevel=2,
            )
            return
