"""One style for all pictures: colours, figures, and files that are whole or absent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from simmst.errors import ConfigError
from simmst.foundation.extras import import_extra
from simmst.foundation.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can distinguish; the truth is always black
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
FORMATS = (".png", ".svg", ".pdf")


def colours(number: int) -> list[str]:
    """Return `number` colours; after the sixth they repeat.

    Example:
        >>> colours(2)
        ['#0072B2', '#D55E00']
    """
    return [COLOURS[i % len(COLOURS)] for i in range(number)]


def new_figure(width: float, height: float, *, dpi: int = 120) -> Figure:
    """Return an empty figure of a size in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    # a Figure made without pyplot draws with Agg, and leaves the user's backend alone
    figure: Figure = import_extra("matplotlib.figure", extra="forecast").Figure(
        figsize=(width, height), layout="constrained", dpi=dpi
    )
    return figure


def panels(figure: Figure, rows: int, columns: int, **options: Any) -> list[Any]:
    """Divide a figure into panels and return their axes, row by row."""
    axes: list[Any] = figure.subplots(rows, columns, squeeze=False, **options).ravel().tolist()
    return axes


def checked_format(path: str | Path) -> Path:
    """Check the path of a picture to write, and return it.

    Raises:
        ConfigError: the path does not end in ``.png``, ``.svg`` or ``.pdf``.

    Example:
        >>> checked_format("loss.png").name
        'loss.png'
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ConfigError(f"the picture {path} should end in one of: {', '.join(FORMATS)}")
    return path


def save_picture(figure: Figure, path: str | Path) -> Path:
    """Write a figure to a file; the same figure gives the same bytes.

    Raises:
        ConfigError: the path does not end in ``.png``, ``.svg`` or ``.pdf``.
    """
    path = checked_format(path)
    from matplotlib import rc_context

    # Matplotlib writes its version, the time and random names unless it is told not to.
    metadata = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}[path.suffix]

    def write(temporary: Path) -> None:
        with rc_context({"svg.hashsalt": "simmst"}):
            figure.savefig(temporary, metadata=metadata)

    return write_atomically(path, write)
