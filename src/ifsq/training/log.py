"""What a run says while it goes: lines of ``metrics.jsonl``, and a reporter for whoever watches.

Called by ``loop``. The terminal's progress bar is a `Reporter` too, but it lives in ``cli``, the only room that prints.
"""

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from ifsq.config import InputError


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
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(partial, self.path)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Append one line."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


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
