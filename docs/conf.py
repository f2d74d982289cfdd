"""Settings of the site: `make docs` builds it into build/docs."""

import contextlib
import inspect
import io
import re
from typing import Any

from sphinx.ext.napoleon import Config, GoogleDocstring

import msefpn
from msefpn import cli

project = "msefpn"
author = "The msefpn authors"
copyright = author
version = release = msefpn.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_static"]

nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 180
nb_merge_streams = True
nb_output_stderr = "remove"

default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
nitpicky = True
nitpick_ignore_regex = [
    (
        "py:class",
        r"(torch|nn|np|sv|pathlib|collections\.abc)\.\S+",
    ),  # a build without a network asks no other site
    ("py:class", r"\S+\.(RegionHead|DenseHead)"),  # type variables
    ("py:class", r"[A-Z]\w+"),  # imported for the type checker only, which has looked at it
]

html_theme = "furo"
html_title = "msefpn"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False

COMMANDS = "<!-- the commands' help -->"
"""A page with this line gets there what each command prints for --help."""
FUNCTIONS = "<!-- the public functions -->"
"""A page with this line gets there the docstrings of the functions of `msefpn`."""


def help_of(command: str) -> str:
    """Return what `msefpn COMMAND --help` prints; without a command, the overview."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        cli.main([command, "--help"] if command else ["--help"])
    return printed.getvalue()


def _literal(text: str) -> str:
    return f"```{{code-block}} text\n:class: help\n{text}```"


def write_lists(app: Any, docname: str, source: list[str]) -> None:
    """Put the commands' help and the public functions into the pages that ask for them."""
    if COMMANDS in source[0]:
        sections = [_literal(help_of(""))]
        sections += [f"## {name}\n\n{_literal(help_of(name))}" for name in cli.COMMANDS]
        source[0] = source[0].replace(COMMANDS, "\n\n".join(sections))
    if FUNCTIONS in source[0]:
        names = [*cli.COMMANDS, *sorted(set(msefpn.__all__) - set(cli.COMMANDS))]
        lines = [f".. autofunction:: {name}" for name in names if inspect.isfunction(getattr(msefpn, name))]
        body = "\n".join([".. currentmodule:: msefpn", *lines])
        source[0] = source[0].replace(FUNCTIONS, f"```{{eval-rst}}\n{body}\n```")


def read_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn a docstring's sections into what Sphinx reads, and its indented blocks into literal ones."""
    if what in ("attribute", "property"):
        return
    about, *sections = re.split(r"\n(?=(?:Args|Attributes|Returns|Raises):\n)", "\n".join(lines))
    about = re.sub(r"\n\n(?= {4}\S)", "\n\n::\n\n", about)
    # the empty name before the colon: the text of our Returns is prose and begins with no type
    sections = [section.replace("Returns:\n    ", "Returns:\n    : ") for section in sections]
    lines[:] = GoogleDocstring("\n".join([about, *sections]), Config(napoleon_use_ivar=True)).lines()


def setup(app: Any) -> None:
    """Register what this file adds to Sphinx."""
    app.connect("source-read", write_lists)
    app.connect("autodoc-process-docstring", read_docstring)
