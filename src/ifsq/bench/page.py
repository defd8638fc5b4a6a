"""What a report says, apart from how it is written: sections of text, tables, charts, pictures and commands.

`ifsq.bench.render` writes a page as HTML, as Markdown or as CSV.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells as they are shown.

    caption  what the numbers are, and which is better
    numbers  positions of the columns that hold figures
    """

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()


@dataclass(frozen=True)
class Details:
    """A table that is folded away under a line."""

    kind: ClassVar[str] = "details"
    summary: str
    table: Table


@dataclass(frozen=True)
class Chart:
    """A figure.

    draw  gives it as SVG with the colours of the page, see `ifsq.bench.charts.svg`; only HTML asks for it
    alt   what is to be seen, for those who do not see it
    data  its points, where they are few
    """

    title: str
    draw: Callable[[], str]
    alt: str
    data: Table | None = None

    @property
    def svg(self) -> str:
        """Drawn."""
        return self.draw()


@dataclass(frozen=True)
class Mark:
    """How a line is drawn: a colour of the page by number, and a dash of SVG, empty for a solid line."""

    name: str
    colour: int
    dash: str


@dataclass(frozen=True)
class Charts:
    """Figures side by side with one legend, empty where each has one line alone."""

    kind: ClassVar[str] = "charts"
    charts: Sequence[Chart]
    caption: str
    legend: Sequence[Mark] = ()


@dataclass(frozen=True)
class Picture:
    """A picture of pixels.

    image   as a data address
    path    of its file
    width   at which it is shown, CSS pixels
    """

    title: str
    image: str
    path: Path
    width: int
    alt: str


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side, in a box that scrolls.

    rows        names of their rows; empty: none
    row_height  CSS pixels
    """

    kind: ClassVar[str] = "pictures"
    pictures: Sequence[Picture]
    caption: str
    rows: Sequence[str] = ()
    row_height: int = 0


@dataclass(frozen=True)
class Commands:
    """Lines of a shell."""

    kind: ClassVar[str] = "commands"
    lines: Sequence[str]


Block = Text | Table | Details | Charts | Pictures | Commands


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Fact:
    """A figure that stands out, and what it is."""

    figure: str
    label: str


@dataclass(frozen=True)
class Page:
    """A report.

    about     what was run, in a line
    question  that it answers
    verdict   the answer in a sentence
    figures   every figure with its command, a row each: the CSV
    """

    title: str
    about: str
    question: str
    verdict: str
    figures: Table
    facts: Sequence[Fact] = ()
    sections: Sequence[Section] = field(default_factory=list)
    footer: str = ""


def without_pictures(page: Page) -> Page:
    """The page without its pictures, and without sections that hold nothing else."""
    kept = [
        replace(section, blocks=[block for block in section.blocks if not isinstance(block, Pictures)])
        for section in page.sections
    ]
    return replace(page, sections=[section for section in kept if section.blocks])
