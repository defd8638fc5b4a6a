"""What a parser that is fuzzed is made of."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st
from tests.fuzz.damaged import Case


@dataclass(frozen=True)
class Parser:
    """What is fuzzed.

    name   in the table
    cases  that a full run takes: a million, or as many as an hour allows
    make   of it in a folder of its own, where reading raises InputError for a bad case
    """

    name: str
    cases: int
    make: Callable[[Path], "Made"]


class Made(NamedTuple):
    """A parser in a folder: the strategy of its cases, what reads one, and cases that it must accept."""

    cases: st.SearchStrategy[Case]
    parse: Callable[[Case], None]
    valid: Iterable[Case]


def files_in(folder: Path, read: Callable[[str], None]) -> Callable[[Case], None]:
    """What reads a case whose file takes the place of a valid one in a folder, which is put back afterwards."""

    def parse(case: Case) -> None:
        name, content = case
        path = folder / name
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(content)
        try:
            read(name)
        finally:
            if before is not None:
                path.write_bytes(before)

    return parse


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def latin(value: Any) -> bytes:
    return str("" if value is None else value).encode("latin-1", "replace")
