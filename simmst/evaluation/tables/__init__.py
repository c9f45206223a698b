"""Tables of finished cells, with means over seeds, a paired test and the paper's numbers, and their files."""

from simmst.evaluation.tables.cell import Cell, finite
from simmst.evaluation.tables.figure import plot_against_second
from simmst.evaluation.tables.kept_tests import KeptTests
from simmst.evaluation.tables.summary import Entry, Line, Section, Table, reported, summarise
from simmst.evaluation.tables.writing import comma_separated, latex, markdown, print_table, write_table

__all__ = [
    "Cell",
    "Entry",
    "KeptTests",
    "Line",
    "Section",
    "Table",
    "comma_separated",
    "finite",
    "latex",
    "markdown",
    "plot_against_second",
    "print_table",
    "reported",
    "summarise",
    "write_table",
]
