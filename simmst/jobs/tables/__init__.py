"""The paper's tables and figure: finished cells are kept, missing ones are trained."""

from simmst.jobs.tables.make import Made, make_table
from simmst.jobs.tables.systems import FULL, QUICK, TABLES, Effort, System

__all__ = ["FULL", "QUICK", "TABLES", "Effort", "Made", "System", "make_table"]
