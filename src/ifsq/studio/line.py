"""Whose turn it is: one piece of work on the models at a time, in a thread beside the server's loop."""

import asyncio
from collections.abc import Callable

from ifsq.config import InputError

MOST_WAITING = 20
"""Visitors in the line; another one is refused."""


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """The visitor pressed stop, or went away."""


class Turn:
    """One visitor's piece of work. ``moved`` is told how many come before it, whenever that changes.

    To be used from one event loop, but for `stopped` and `check`, which the thread that works asks.
    """

    def __init__(self, moved: Callable[[int], None] = lambda ahead: None) -> None:
        self.moved = moved
        self._stopped = False
        self._called = asyncio.Event()

    def stop(self) -> None:
        """Ask it to end: one that waits leaves the line, one that works is told where it calls `check`."""
        self._stopped = True
        self.call()

    @property
    def stopped(self) -> bool:
        """Whether it was asked to end."""
        return self._stopped

    def check(self) -> None:
        """Raise Stopped if it was asked to end."""
        if self.stopped:
            raise Stopped

    def call(self) -> None:
        """Have it look whether it is its turn."""
        self._called.set()

    async def wait(self, first: Callable[[], bool]) -> None:
        """Until it is ``first``. Raises Stopped once it is asked to end."""
        self.check()
        while not first():
            self._called.clear()
            await self._called.wait()
            self.check()


class Line:
    """The visitors in the order in which they came; the first works. To be used from one event loop."""

    def __init__(self, most: int = MOST_WAITING) -> None:
        self.most = most
        self._turns: list[Turn] = []

    async def run(self, turn: Turn, work: Callable[[], None]) -> None:
        """Wait for the turn, then do the work in a thread.

        Raises what the work raises, Stopped where it was stopped before it began, and InputError where too many wait.
        """
        if len(self._turns) >= self.most:
            raise InputError(f"{len(self._turns)} visitors wait already; try again later")
        self._turns.append(turn)
        self._tell()
        try:
            await turn.wait(lambda: self._turns[0] is turn)
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
        if self._turns:
            self._turns[0].call()
