"""The paper's tables and its figure: what is missing is trained, what is finished is kept."""

from simmst.jobs.tables.make import Made, make_table
from simmst.jobs.tables.systems import FULL, QUICK, TABLES, Effort, System

__all__ = ["FULL", "QUICK", "TABLES", "Effort", "Made", "System", "make_table"]
