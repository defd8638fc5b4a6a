"""A table of text, and how figures are found for it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Cells of text to print."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
