"""Whose turn it is: one piece of work on the models at a time, in a thread beside the server's loop."""

import asyncio
import threading
from collections.abc import Callable

from ifsq.config import InputError

MOST_WAITING = 20
"""Visitors in the line; another one is refused."""


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """The visitor pressed stop, or went away."""


class Turn:
    """One visitor's piece of work. ``moved`` is told how many come before it, whenever that changes."""

    def __init__(self, moved: Callable[[int], None] = lambda ahead: None) -> None:
        self.moved = moved
        self._stop = threading.Event()

    def stop(self) -> None:
        """Ask it to end; from any thread."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        """Whether it was asked to end."""
        return self._stop.is_set()

    def check(self) -> None:
        """Raise Stopped if it was asked to end."""
        if self.stopped:
            raise Stopped


class Line:
    """The visitors in the order in which they came. To be used from one event loop."""

    def __init__(self, most: int = MOST_WAITING) -> None:
        self.most = most
        self._turns: list[Turn] = []
        self._free = asyncio.Lock()  # the first who waits is the first to get it

    async def run(self, turn: Turn, work: Callable[[], None]) -> None:
        """Wait for the turn, then do the work in a thread.

        Raises what the work raises, Stopped where it was stopped before it began, and InputError where too many wait.
        """
        if len(self._turns) >= self.most:
            raise InputError(f"{len(self._turns)} visitors wait already; try again later")
        self._turns.append(turn)
        self._tell()
        try:
            async with self._free:
                turn.check()
                await asyncio.to_thread(work)
        finally:
            self._turns.remove(turn)
            self._tell()

    def stop(self) -> None:
        """Ask all to end."""
        for turn in self._turns:
            turn.stop()

    def _tell(self) -> None:
        for ahead, turn in enumerate([each for each in self._turns if not each.stopped]):
            turn.moved(ahead)
