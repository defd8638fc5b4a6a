"""What a row of the table is made of: attempts with a name, and what is right for each."""

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.trial import Ended, forked
from tests.faults.world import copy

BAD = ("traceback", "hang", "memory", "crash", "untidy")


@dataclass(frozen=True)
class Found:
    """How one attempt went.

    kind    see `Ended.kind`
    wrong   what was silently wrong, in words; empty where nothing was
    detail  the last line said
    """

    row: str
    name: str
    kind: str
    wrong: str = ""
    detail: str = ""

    @property
    def bad(self) -> bool:
        """Whether this is a fault of ifsq."""
        return self.kind in BAD or bool(self.wrong)


@dataclass(frozen=True)
class Case:
    """One attempt on a copy of the world.

    arrange    damages the copy
    arguments  of ifsq
    judge      what is silently wrong with an accepted attempt, in words, or nothing
    before     runs in the process of the command, first
    """

    row: str
    name: str
    arrange: Callable[[Path], None]
    arguments: tuple[str, ...]
    judge: Callable[[Path, Ended], str] = lambda folder, ended: ""
    before: Callable[[], None] | None = None
    limit: float = 60

    def attempt(self, world: Path, place: Path) -> Found:
        """Copy, damage, run, judge, clean up."""
        folder = copy(world, place)
        try:
            self.arrange(folder)
            ended = forked(self.arguments, folder, self.limit, self.before)
            wrong = self.judge(folder, ended) if ended.kind not in BAD else ""
            detail = ended.line if ended.kind != "traceback" else f"{ended.line} <- {_place(ended.err)}"
            return Found(self.row, self.name, ended.kind, wrong, detail)
        finally:
            _writable(folder)
            shutil.rmtree(folder)


def _place(err: str) -> str:
    """The last line of ifsq in a traceback."""
    lines = [line.strip() for line in err.splitlines() if "/ifsq/" in line and line.strip().startswith("File ")]
    return lines[-1].rpartition("/ifsq/")[2] if lines else "no line of ifsq"


def _writable(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            with contextlib.suppress(OSError):
                path.chmod(0o755)
