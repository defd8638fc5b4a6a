"""What a run says while it goes: lines of ``metrics.jsonl`` and ``skipped.txt``, and a reporter for whoever watches.

The terminal's progress bar is a `Reporter` too, but it lives in ``cli``, the only room that prints.
"""

import json
import math
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from ifsq.config import InputError, parse_json
from ifsq.store.files import append_text, write_bytes
from ifsq.training.distributed import World


@runtime_checkable
class Reporter(Protocol):
    """Somebody who watches a run."""

    def start(self, what: str, done: int, total: int) -> None:
        """A piece of work begins at ``done`` of ``total`` steps."""

    def advance(self, done: int, facts: dict[str, float]) -> None:
        """``done`` steps are behind; ``facts`` holds the newest figures, or nothing."""

    def finish(self, facts: dict[str, float]) -> None:
        """The piece of work is complete."""

    def say(self, line: str) -> None:
        """A sentence worth reading."""


class Silent:
    """A reporter for nobody: the library's default."""

    def start(self, what: str, done: int, total: int) -> None:
        pass

    def advance(self, done: int, facts: dict[str, float]) -> None:
        pass

    def finish(self, facts: dict[str, float]) -> None:
        pass

    def say(self, line: str) -> None:
        pass


class MetricsLog:
    """``metrics.jsonl``: one JSON object a line, each with its ``step``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, step: int) -> str:
        """Drop the lines after ``step``: the run goes on from there and will write them again.

        Returns a sentence where there were damaged lines, which are set aside; else nothing. Raises InputError.
        """
        return _rewind(self.path, lambda line: _row(line)["step"], step)[1]

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Append one line. Raises InputError where there is no room for it."""
        known = {name: value if math.isfinite(value) else None for name, value in values.items()}
        append_text(self.path, json.dumps({"step": step, **known}) + "\n")  # JSON has no infinity


class SkippedLog:
    """``skipped.txt``: a line ``STEP <tab> WHAT`` each time that training had to do without an example.

    Processes collect their own; `write` brings them into the first one's file, ordered by step and process, so that a
    run that goes on from a checkpoint writes the same file as one that was never stopped.

    count  lines written so far; known to the first process
    """

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0
        self._waiting: list[tuple[int, str]] = []

    def add(self, step: int, lines: tuple[str, ...]) -> None:
        """Keep lines about a step (steps count from 1, as in metrics.jsonl) until `write`."""
        self._waiting += [(step, _printable(line)) for line in lines]

    def write(self, world: World) -> None:
        """Append what all processes keep. Every process must call it."""
        told = sorted((row for rows in world.gather(self._waiting) for row in rows), key=lambda row: row[0])
        self._waiting = []
        self.count += len(told)
        if world.first and told:
            append_text(self.path, "".join(f"{step}\t{line}\n" for step, line in told))

    def rewind(self, step: int) -> str:
        """Drop what it says of later steps, see `MetricsLog.rewind`; returns what there is to say of it."""
        self.count, told = _rewind(self.path, _step_of, step)
        return told


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a ``metrics.jsonl``; a last line cut short by a kill is left out.

    Raises InputError naming the first line that is damaged.
    """
    rows = []
    for number, line in enumerate(_lines(path), start=1):
        try:
            rows.append(_row(line))
        except ValueError as error:
            raise InputError(
                f"{path}: line {number} is damaged ({error}); remove it, or train on, which sets it aside"
            ) from error
    return rows


def _rewind(path: Path, step_of: Callable[[bytes], int], step: int) -> tuple[int, str]:
    """Keep the lines up to ``step``; their number, and a sentence about those that have none, which are set aside."""
    kept, damaged = [], []
    lines = _lines(path)
    for line in lines:
        try:
            if step_of(line) <= step:
                kept.append(line)
        except ValueError:
            damaged.append(line)
    aside = path.with_name(f"{path.name}.damaged")
    if damaged:
        append_text(aside, b"".join(line + b"\n" for line in damaged).decode(errors="backslashreplace"))
    if path.exists():
        write_bytes(path, b"".join(line + b"\n" for line in kept))
    return len(kept), f"{path}: {len(damaged)} damaged lines are set aside in {aside.name}" if damaged else ""


def _lines(path: Path) -> list[bytes]:
    """The complete lines of a file, which may not be there; a kill may have cut the last one short."""
    if not path.exists():
        return []
    if not path.is_file():  # a pipe would wait
        raise InputError(f"{path}: is no regular file; remove it")
    return path.read_bytes().split(b"\n")[:-1]


def _row(line: bytes) -> dict[str, Any]:
    """A line of ``metrics.jsonl``: figures, or None, at a step. Raises ValueError."""
    row = parse_json(line.decode(), "the line")
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        raise ValueError("it names no step")
    if not all(value is None or type(value) in (int, float) for value in row.values()):
        raise ValueError("it holds more than numbers")
    return row


def _step_of(line: bytes) -> int:
    """The step that a line of ``skipped.txt`` is of. Raises ValueError."""
    step, tab, _ = line.decode().partition("\t")
    if not tab or not (step.isascii() and step.isdigit()):
        raise ValueError("it names no step")
    return int(step)


def _printable(line: str) -> str:
    """In one line of UTF-8, whatever a file is called."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def memory_gib(device: torch.device) -> float:
    """Most memory that this process has held so far, GiB: on a CUDA device what torch allocated there, else in all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
