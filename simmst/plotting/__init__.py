"""Pictures: the page of a run."""

from __future__ import annotations

from simmst.plotting.page import Page, write_page

__all__ = ["Page", "write_page"]
