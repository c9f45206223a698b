"""Configuration of the documentation: `sphinx-build -W docs OUT`, without a network."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import logging

import simmst

project = "simmst"
author = "The simmst developers"
copyright = author  # noqa: A001 - the name that Sphinx reads
version = release = simmst.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
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
html_static_path = ["static"]
html_css_files = ["site.css"]
# Mathematics is in the pages themselves, as MathML, so that they need no network.
html_math_renderer = "mathml"


def skip_member(app: Any, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of named tuples, which the class describes."""
    return True if (getattr(member, "__doc__", None) or "").startswith("Alias for field number") else None


def mathml(formula: str, display: str) -> str:
    """Return a formula as MathML, and warn of a command that the converter leaves as it is."""
    converted: str = convert(formula.replace(r"\arg", r"\operatorname{arg}"), display=display)
    if "\\" in converted or "&#x0005C;" in converted:
        logging.getLogger(__name__).warning("a command of this formula has no MathML: %s", formula)
    return converted


def inline_math(translator: Any, node: nodes.math) -> None:
    """Write an inline formula."""
    translator.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def block_math(translator: Any, node: nodes.math_block) -> None:
    """Write a formula on lines of its own."""
    translator.body.append(f'<div class="math-block">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Connect the handlers."""
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("autodoc-skip-member", skip_member)
