"""Settings of the site: `make docs` builds it into build/docs."""

import contextlib
import dataclasses
import inspect
import io
import math
import re
from typing import Any

from sphinx.ext.napoleon import Config, GoogleDocstring

import msefpn
from msefpn import cli, plugins
from msefpn.config import Config as RunConfig

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
nitpicky = True
nitpick_ignore_regex = [
    (
        "py:class",
        r"(torch|nn|np|numpy|PIL|supervision|pathlib|collections\.abc)\.\S+",
    ),  # a build without a network asks no other site
    ("py:class", r"msefpn\.prediction\.loaded\.PredictArguments"),  # for the type checker only
    ("py:class", r"[A-Z]\w+"),  # imported for the type checker only, which has checked it
]

html_theme = "furo"
html_title = "msefpn"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False

COMMANDS = "<!-- the commands' help -->"
"""In a page, replaced by what each command prints for --help."""
FUNCTIONS = "<!-- the public functions -->"
"""In a page, replaced by the docstrings of the functions of `msefpn`."""
OPTIONS = "<!-- the configuration's keys -->"
"""In a page, replaced by a table of the keys of `msefpn.config.Config`."""
NAMES = "<!-- the names of each kind -->"
"""In a page, replaced by a table of the names that the package registers."""


def help_of(command: str) -> str:
    """Return what `msefpn COMMAND --help` prints; without a command, the overview."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        cli.main([command, "--help"] if command else ["--help"])
    return printed.getvalue()


def _literal(text: str) -> str:
    return f"```{{code-block}} text\n:class: help\n{text}```"


def options_table() -> str:
    """Return a Markdown table of the keys of a configuration: default, bounds, text."""
    rows = ["| key | default | values | what |", "|---|---|---|---|"]
    for item in dataclasses.fields(RunConfig):
        if item.default_factory is not dataclasses.MISSING:
            default: Any = item.default_factory()
        else:
            default = list(item.default) if isinstance(item.default, tuple) else item.default
        flag = "" if item.metadata["flag"] else "; no flag"
        shown = f"`{str(default).lower() if isinstance(default, bool) else default}`"
        rows.append(f"| `{item.name}` | {shown} | {_values(item)} | {item.metadata['text']}{flag} |")
    return "\n".join(rows)


def _values(item: dataclasses.Field[Any]) -> str:
    about = item.metadata
    if about["choices"]:
        return ", ".join(f"`{choice}`" for choice in about["choices"])
    bounds = {"at least": about["low"], "above": about["above"], "below": about["below"]}
    words = [f"{word} {limit:.3g}" for word, limit in bounds.items() if math.isfinite(limit)]
    return " and ".join(words) or str(item.type).partition("[")[0]


def names_table() -> str:
    """Return a Markdown table of the names of each kind that the package registers."""
    rows = ["| kind | names |", "|---|---|"]
    for kind in plugins.KINDS:
        names = [name for name, plugin in plugins.known(kind).items() if plugin.origin == plugins.OURS]
        if names:
            rows.append(f"| {kind} | {', '.join(f'`{name}`' for name in names)} |")
    return "\n".join(rows)


def write_lists(app: Any, docname: str, source: list[str]) -> None:
    """Replace the marks in a page by what they stand for."""
    source[0] = source[0].replace(OPTIONS, options_table()) if OPTIONS in source[0] else source[0]
    source[0] = source[0].replace(NAMES, names_table()) if NAMES in source[0] else source[0]
    if COMMANDS in source[0]:
        sections = [_literal(help_of(""))]
        sections += [f"## {name}\n\n{_literal(help_of(name))}" for name in cli.COMMANDS]
        source[0] = source[0].replace(COMMANDS, "\n\n".join(sections))
    if FUNCTIONS in source[0]:
        names = dict.fromkeys([function.__name__ for function in cli.COMMANDS.values()])
        names |= dict.fromkeys(sorted(msefpn.__all__))
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
