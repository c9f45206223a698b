"""Imports of optional packages, with an error that names the extra to install."""

from __future__ import annotations

import importlib
from types import ModuleType

from simmst.errors import MissingExtraError


def import_extra(module: str, *, extra: str) -> ModuleType:
    """Import an optional module.

    Args:
        module: dotted name, such as ``"pandas"``.
        extra: extra of simmst that installs it, such as ``"forecast"``.

    Raises:
        MissingExtraError: the package is not installed.

    Example:
        >>> import_extra("json", extra="forecast").dumps(1)
        '1'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"this feature needs the package {error.name!r}, which is not installed; "
            f"install it with: pip install 'simmst[{extra}]'"
        ) from error
