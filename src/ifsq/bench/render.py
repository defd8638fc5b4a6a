"""A page as HTML, Markdown or CSV. The HTML holds all that it shows: it loads nothing and runs no script."""

import csv
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

import jinja2

from ifsq.bench.page import Block, Charts, Commands, Details, Page, Pictures, Table, Text
from ifsq.config import InputError
from ifsq.store.files import make_folder, write_text
from ifsq.training.distributed import first_process

SUFFIXES = {".html": "html", ".htm": "html", ".md": "md", ".csv": "csv"}
FORMATS = ("html", "md", "csv")
FORMULA = tuple("=+-@\t\r")  # with which a spreadsheet takes a cell for a formula


def target_of(folder: Path, out: Path | None, form: str | None) -> tuple[Path, str]:
    """Where a report goes, and in which of `FORMATS`; ``report.html`` in ``folder`` where nothing is asked for.

    Raises InputError for an ending that says nothing, or that contradicts the format.
    """
    if form is not None and form not in FORMATS:
        raise InputError(f"format {form!r}: expected {', '.join(FORMATS)}")
    target = out or folder / f"report.{form or 'html'}"
    named = SUFFIXES.get(target.suffix)
    if named is None:
        raise InputError(f"{target}: expected a name that ends in {', '.join(SUFFIXES)}")
    if form not in (None, named):
        raise InputError(f"{target}: ends as {named} does; expected a name for format {form}")
    return target, named


def write_page(page: Page, target: Path, form: str) -> None:
    """Write it, whole or not at all, in the first process. Raises InputError."""
    text = markdown(page, target.parent) if form == "md" else {"html": html, "csv": comma_separated}[form](page)
    if first_process():
        make_folder(target.parent)
        write_text(target, text)


def html(page: Page) -> str:
    """One file for a browser."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ifsq.bench", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(page=page)


def comma_separated(page: Page) -> str:
    """The figures alone, a row each under one line of names."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([_harmless(cell) for cell in row] for row in (page.figures.columns, *page.figures.rows))
    return out.getvalue()


def markdown(page: Page, folder: Path) -> str:
    """The page for a reader of text; its charts are tables of their points, its pictures links from ``folder``."""
    parts = [f"# {_line(page.title)}", _line(page.about), f"**Question.** {_line(page.question)}"]
    parts.append(f"**Verdict.** {_line(page.verdict)}")
    if page.facts:
        parts.append("\n".join(f"- {_line(fact.label)}: {_line(fact.figure)}" for fact in page.facts))
    for section in page.sections:
        parts.append(f"## {_line(section.title)}")
        parts += [text for block in section.blocks if (text := _block(block, folder))]
    parts.append(_line(page.footer))
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block, folder: Path) -> str:
    match block:
        case Text():
            return _line(block.text)
        case Table():
            return _table(block)
        case Details():
            return f"{_line(block.summary)}\n\n{_table(block.table)}"
        case Commands():
            return _fenced(block.lines)
        case Pictures():
            links = [f"![{_line(each.title)}]({_link(each.path, folder)})" for each in block.pictures]
            return "\n\n".join([" ".join(links), _line(block.caption)])
        case Charts():
            tables = [_table(chart.data) for chart in block.charts if chart.data is not None]
            return "\n\n".join([*tables, _line(block.caption)]) if tables else ""


def _table(table: Table) -> str:
    if not table.rows:
        return ""
    columns = ["---:" if at in table.numbers else "---" for at in range(len(table.columns))]
    lines = [_row(table.columns), _row(columns), *map(_row, table.rows)]
    return "\n".join(([f"{_line(table.caption)}\n"] if table.caption else []) + lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_line(cell).replace("|", "\\|") for cell in cells) + " |"


def _fenced(lines: Sequence[str]) -> str:
    text = "\n".join(lines)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def _line(text: str) -> str:
    """As a part of a line: no breaks, no tags."""
    return " ".join(text.split()).replace("<", "&lt;")


def _link(path: Path, folder: Path) -> str:
    relative = os.path.relpath(path, folder)
    return f"<{relative}>" if re.search(r"[\s()<>]", relative) else relative


def _harmless(cell: str) -> str:
    """Text that a spreadsheet would take for a formula, quoted; figures as they are."""
    try:
        float(cell)
    except ValueError:
        return f"'{cell}" if cell.startswith(FORMULA) else cell
    return cell
