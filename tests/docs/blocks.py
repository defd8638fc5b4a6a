"""Code blocks of the documentation, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for pattern in ("README.md", "CONTRIBUTING.md", "docs/**/*.md", "experiments/README.md", "findings/README.md")
    for path in ROOT.glob(pattern)
    if path.name != "log.md"  # its figures are of the day
)
FENCE = re.compile(r"^```(?P<language>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"<!-- (?P<what>not run|over): (?P<text>[^>]+) -->\n+\Z")
INLINE = re.compile(r"`(ifsq [a-z][^`\n]*(?:\n[^`\n]+)?)`")


@dataclass(frozen=True)
class Block:
    """A code block.

    page      path below the repository
    line      of the file, from 1
    language  as the fence says, in small letters: ``python``, ``toml``, ``bash``; empty: commands or output
    text      what is in it
    why_not   why it is not run, in the words of the comment above it; empty: it is
    over      the experiment that a piece of TOML is laid over, by the comment above it
    """

    page: str
    line: int
    language: str
    text: str
    why_not: str
    over: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """All of a page."""
    text, found = page.read_text(), []
    for match in FENCE.finditer(text):
        before = text[: match.start()]
        marks = {mark["what"]: mark["text"] for mark in [MARK.search(before)] if mark}
        where, line = str(page.relative_to(ROOT)), before.count("\n") + 1
        found.append(
            Block(
                where, line, match["language"].strip(), match["text"], marks.get("not run", ""), marks.get("over", "")
            )
        )
    return found


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a block of a shell, split into words; comments and ``$`` in front are left out.

    Text without a command in it, as output that is shown, has none.
    """
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        bare = line.strip().removeprefix("$ ")
        if re.match(r"(ifsq|torchrun|srun|make|pip|python|bash|git|sbatch) ", bare):
            yield shlex.split(bare, comments=True)


def of_ifsq(words: list[str]) -> list[str] | None:
    """What is said to ``ifsq``, be it by itself, by ``python -m`` or by ``torchrun -m``; None of other commands."""
    if words[0] == "ifsq":
        return words[1:]
    if words[0] in ("torchrun", "python", "srun") and "ifsq" in words and words[words.index("ifsq") - 1] == "-m":
        return words[words.index("ifsq") + 1 :]
    return None


ALL = [block for page in PAGES for block in blocks(page)]
