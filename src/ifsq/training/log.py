"""What a run says while it goes: lines of ``metrics.jsonl`` and ``skipped.txt``, and a reporter for whoever watches.

Called by ``loop``. The terminal's progress bar is a `Reporter` too, but it lives in ``cli``, the only room that prints.
"""

import json
import math
import resource
import sys
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from ifsq.config import InputError
from ifsq.store.files import append_text, write_text
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

    def rewind(self, step: int) -> None:
        """Drop the lines after ``step``: the run goes on from there and will write them again."""
        kept = [row for row in read_metrics(self.path) if row["step"] <= step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))

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
        self._waiting += [(step, line) for line in lines]

    def write(self, world: World) -> None:
        """Append what all processes keep. Every process must call it."""
        told = sorted((row for rows in world.gather(self._waiting) for row in rows), key=lambda row: row[0])
        self._waiting = []
        self.count += len(told)
        if world.first and told:
            append_text(self.path, "".join(f"{step}\t{line}\n" for step, line in told))

    def rewind(self, step: int) -> None:
        """Drop the lines after ``step``: the run goes on from there and will write them again."""
        if not self.path.exists():
            return
        text = self.path.read_text(encoding="utf-8")
        lines = text.split("\n")[:-1]  # a kill may have cut the last one short
        kept = [f"{line}\n" for line in lines if int(line.partition("\t")[0]) <= step]
        write_text(self.path, "".join(kept))
        self.count = len(kept)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a ``metrics.jsonl``; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    text = path.read_text()
    try:
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: a line is no JSON: {error}") from error


def memory_gib(device: torch.device) -> float:
    """Most memory that this process has held so far, GiB: on a CUDA device what torch allocated there, else in all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
