"""What is said to a person: results on standard output, progress and refusals on stderr."""

import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ifsq.config import InputError, Remark

LONGEST = 500  # characters of a line about what went wrong
EVERY = 10.0  # seconds between plain lines about work that has no figures to tell


class Terminal:
    """A `ifsq.training.log.Reporter` on stderr: bars with rate and time left on a terminal, plain lines elsewhere.

    Once stderr cannot be written (its disk is full, its reader is gone) nothing more is said there, and the run goes
    on: what it says is a copy of what its folder holds.
    """

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, quiet=not _first_process(), highlight=False, markup=False, emoji=False)
        self._bar: Any = None
        self._task: Any = None
        self._has_facts = False
        self._what, self._first, self._total = "", 0, 0
        self._started = self._told = 0.0

    def start(self, what: str, done: int, total: int) -> None:
        self._what, self._first, self._total = what, done, total
        self._started = self._told = time.perf_counter()
        if done:
            self.say(f"{what}: continues at {done} of {total}")
        if self.console.is_terminal:
            self._bar = _progress(self.console)
            self._has_facts = False
            self._task = self._bar.add_task(what, completed=done, total=total, facts="")
            self._bar.start()

    def advance(self, done: int, facts: dict[str, float]) -> None:
        text, now = _facts(facts), time.perf_counter()
        rate = (done - self._first) / max(now - self._started, 1e-6)
        if self._bar is not None:
            self._has_facts |= bool(text)
            shown = text or ("" if self._has_facts else f"{rate:.3g}/s")
            self._bar.update(self._task, completed=done, **({"facts": shown} if shown else {}))
        elif text or now - self._told >= EVERY:
            self._told = now
            left = f"  {_duration((self._total - done) / rate)} left" if rate > 0 and done < self._total else ""
            self.say(f"{self._what} {done}/{self._total}  {text or f'{rate:.3g}/s'}{left}")

    def finish(self, facts: dict[str, float]) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        text = _facts({name: value for name, value in facts.items() if name.startswith("val/")})
        self.say(f"{self._what}: done in {time.perf_counter() - self._started:.0f} s  {text}".rstrip())

    def say(self, line: str) -> None:
        try:
            self.console.print(_tidy(line), soft_wrap=True)
        except OSError:
            self.console.quiet = True

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:  # the run ended early: give the person's cursor back
            self._bar.stop()


def _progress(console: Any) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[facts]}"),
        console=console,
    )


def _duration(seconds: float) -> str:
    """In the two largest units, or in seconds: ``40 s``, ``3 min``, ``2 h 5 min``, ``3 d 4 h``."""
    minutes, hours = int(seconds / 60), int(seconds / 3600)
    if minutes < 2:
        return f"{seconds:.0f} s"
    if hours < 1:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def _facts(facts: dict[str, float]) -> str:
    shown = {name: value for name, value in facts.items() if name not in ("lr", "seconds", "grad_norm")}
    return "  ".join(f"{name.replace('_per_second', '/s')} {value:.4g}" for name, value in shown.items())


def print_cards(measured: Sequence[Any]) -> None:
    """The results of an evaluation, and what they were taken with."""
    if not _first_process():
        return
    from rich.console import Console
    from rich.table import Table

    from ifsq.data.images import size_text

    table = Table("metric", "value", "images", "on", box=None)
    for card in measured:
        table.add_row(card.metric, _values(card.values), str(card.n), card.reference)
    with _standard_output():
        Console(highlight=False, markup=False, emoji=False).print(table)
    for card in measured[:1]:  # all were taken together
        size = size_text(card.size)
        say(f"{size} px, crop {card.crop}, resize {card.resize_kernel}, {card.dtype}, ifsq {card.code_version}")
    for features in dict.fromkeys(card.features for card in measured if card.features):
        say(f"features: {features}")


def _values(values: Mapping[str, float]) -> str:
    """The figure with its interval, where it has one, then the others."""
    told = [f"{name} {_number(value)}" for name, value in values.items() if name not in ("low", "high")]
    if {"low", "high"} <= values.keys():
        told[0] += f" ({_number(values['low'])} to {_number(values['high'])})"
    return ", ".join(told)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e12 else f"{value:.4g}"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table of text."""
    if not _first_process():
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None)
    for i, column in enumerate(columns):
        numbers = bool(rows) and rows[0][i].replace(".", "").isdecimal()
        table.add_column(column, justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*row)
    with _standard_output():
        console = Console(highlight=False, markup=False, emoji=False)
        console.print(table)
        console.print()


def say(line: str, *, everyone: bool = False, indent: int = 0) -> None:
    """A line on standard output, by the first process or by each, behind so many blanks."""
    if everyone or _first_process():
        with _standard_output():
            print(" " * indent + _tidy(line))


@contextmanager
def _standard_output() -> Iterator[None]:
    """Print, and know that it is printed. Raises InputError where it cannot be."""
    if sys.stdout is None:  # so Python has it where the caller closed it
        raise InputError("standard output: is closed; expected somewhere to write to")
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where Python will flush what is left
        raise InputError(f"standard output: cannot be written: {error.strerror}") from error


def _tidy(text: str) -> str:
    """One line without the codes that terminals obey, of which names may be full."""
    plain = " ".join(text.split())
    return plain if plain.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in plain)


def _tell(text: str) -> None:
    """A line on stderr, its middle left out where a name makes it long."""
    line = _tidy(text)
    with suppress(OSError):  # then nobody is left to tell, but for the exit code
        print(line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}", file=sys.stderr)


def _first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def remarks() -> Iterator[None]:
    """Print every `Remark` once, in a line of the command's own; other warnings as ever."""
    told: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("always", Remark)
        as_ever = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if not issubclass(category, Remark):
                as_ever(message, category, *where, **more)
            elif str(message) not in told and _first_process():
                told.add(str(message))
                _tell(f"ifsq: {message}")

        warnings.showwarning = show
        yield


def refuse(message: str) -> int:
    """Say what was wrong; returns the exit code."""
    # What every process refuses, the first says; what only another one met (its image is broken), that one says.
    prefix = "ifsq" if _first_process() else f"ifsq (process {os.environ['RANK']})"
    _tell(f"{prefix}: {message}")
    return 2


def stopped(message: str) -> int:
    """Say that the run was stopped; returns the exit code."""
    if _first_process():
        _tell(f"ifsq: {message}")
    return 130
