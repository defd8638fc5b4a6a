"""The site: ``make docs``. Pages are Markdown (MyST), the reference is read from docstrings.

Sphinx rather than MkDocs, because the docstrings are its dialect: ``code`` in double and `names` in single backticks.
What is our own in them, tables of arguments, becomes definition lists in `tables_to_lists`. Its source is the whole
repository, so that links between pages, benchmarks and findings are those that one follows in a checkout.
"""

import argparse
import re
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from ifsq.cli.main import parser

project = "ifsq"
html_title = "ifsq"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "docs/index"
include_patterns = [
    *("docs/**", "benchmarks/*.md", "experiments/README.md", "findings/README.md", "CONTRIBUTING.md", "CHANGELOG.md"),
]
default_role = "py:obj"
html_theme = "furo"
html_extra_path = ["site"]
html_static_path: list[str] = []
html_show_copyright = False
html_copy_source = False
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
suppress_warnings = ["misc.highlighting_failure"]  # output of commands is no language
highlight_language = "none"
python_display_short_literal_types = True
maximum_signature_line_length = 100

ROW = re.compile(r"(?P<name>\S+(?:, +\S+)*) {2,}(?P<text>\S.*)|(?P<long>\w+)")  # a long name has a line of its own


def tables_to_lists(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn paragraphs of ``name  what it is`` into definition lists, in place."""
    found: list[str] = []
    for paragraph in _paragraphs(lines):
        rows = [ROW.fullmatch(line) for line in paragraph]
        told = all(row or line.startswith("    ") for row, line in zip(rows, paragraph, strict=True))
        if not (told and rows[0] and rows[0]["name"]):
            found += [*paragraph, ""]
            continue
        for row, line in zip(rows, paragraph, strict=True):
            found += [f"    {line.strip()}"] if row is None else [f"``{row['name'] or row['long']}``"]
            found += [f"    {row['text']}"] if row and row["text"] else []
        found.append("")
    lines[:] = found


def _paragraphs(lines: list[str]) -> Iterator[list[str]]:
    paragraph: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield paragraph
            paragraph = []


class Verbs(SphinxDirective):
    """The help of every verb, as the command prints it."""

    def run(self) -> list[nodes.Node]:
        return [part for title, text in _verbs(parser(), "ifsq") for part in self._section(title, text)]

    def _section(self, title: str, text: str) -> list[nodes.Node]:
        section = nodes.section(ids=[nodes.make_id(title)])
        section += nodes.title(text=title)
        section += nodes.literal_block(text, text, language="none")
        return [section]


def _verbs(command: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, str]]:
    inner = next((a for a in command._actions if isinstance(a, argparse._SubParsersAction)), None)
    if inner is None:
        yield name, command.format_help()
        return
    for verb, below in inner.choices.items():
        yield from _verbs(below, f"{name} {verb}")


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", tables_to_lists)
    app.add_directive("verbs", Verbs)
