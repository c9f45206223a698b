"""Configuration of the documentation: `sphinx-build -W docs OUT`, without a network."""

from __future__ import annotations

from typing import Any

import simmst

project = "simmst"
author = "The simmst developers"
copyright = author  # noqa: A001 - the name that Sphinx reads
version = release = simmst.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown"}
# The tables of the results are files to look up; the page of them is in the site.
exclude_patterns = ["_build", "results/*/**"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# A name of simmst that a page or docstring refers to must be documented; those of other packages are not looked up.
# Names with four parts are types in signatures, written with the file that they come from.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!simmst\.).*"), (r"py:.*", r"simmst(\.\w+){3,}")]

# In docstrings, one pair of backticks is code, as in Markdown.
default_role = "literal"
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Fields of dataclasses and named tuples are documented in their "Attributes" alone.
napoleon_use_ivar = True
napoleon_custom_sections = ["Source"]

html_theme = "furo"
html_title = f"simmst {version}"
html_show_sphinx = False


def skip_member(app: Any, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of named tuples, which the class describes."""
    return True if (getattr(member, "__doc__", None) or "").startswith("Alias for field number") else None


def setup(app: Any) -> None:
    """Connect the handlers."""
    app.connect("autodoc-skip-member", skip_member)
