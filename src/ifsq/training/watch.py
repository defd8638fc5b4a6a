"""Whether the other processes of a run are there, and the end of this one where they are not.

A collective operation fails when a process at its other end dies, but waits for one that is stopped or whose host is
gone as long as for one that works alone for hours. So each process has a thread that meets those of the others every
second, whatever the processes themselves are doing; and one that torchrun started stops when torchrun is gone.
"""

import contextlib
import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from ifsq.config import InputError

PATIENCE = "IFSQ_PATIENCE"
"""Environment variable: seconds that a process waits for another that does not answer; default 300."""
EVERY = 1.0  # seconds between meetings
SETTLED = 5.0  # seconds for what is not to be waited for
TO_UNWIND = 60.0  # seconds for a process to end by itself when another has
ENDED = "another process of this run has ended; see its message above"


class LostProcessError(InputError):
    """Another process of the run has ended, does not answer, or has never come."""


def patience() -> float:
    """Seconds that a process waits for another that does not answer. Raises InputError."""
    text = os.environ.get(PATIENCE, "300")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 1e6:
        raise InputError(f"{PATIENCE}={text!r}: expected seconds, 1 to 1000000")
    return seconds


def wait_for_store(seconds: float) -> None:
    """Return when somebody listens at MASTER_ADDR and MASTER_PORT, for torch writes its stack while it waits.

    Raises TimeoutError. The first process does not wait: it listens, unless torchrun does.
    """
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if os.environ.get("RANK", "0") == "0" or not address or not port.isdecimal():
        return
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            socket.create_connection((address, int(port)), timeout=max(EVERY, end - time.monotonic())).close()
        except (OSError, OverflowError):
            time.sleep(EVERY / 10)
        else:
            return
    raise TimeoutError(f"nobody listens at {address}:{port}")


class Watch:
    """A thread that meets those of the other processes; every process makes one at the same point.

    store     where processes leave word for each other
    patience  seconds without an answer after which this process ends

    Where another process has ended, this one has `TO_UNWIND` seconds to notice and raise; where one does not answer,
    it can only be waiting. Then the thread ends the process itself: one line and exit code 2.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, patience: float) -> None:
        self.store, self.rank, self.size, self.patience = store, rank, size, patience
        self.lost = ""
        self._group = dist.new_group(backend="gloo", timeout=timedelta(days=100))
        self._begun = self._met = 0  # meetings
        self._news = threading.Condition()  # of these, and of somebody lost
        self._last, self._left, self._awake = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._meet, daemon=True)
        self._thread.start()

    def verdict(self) -> str:
        """What has become of another process, in words; "" once all have come to a meeting that begins from now on."""
        with self._news:
            begun = self._begun
            while not self.lost and self._met <= begun and self._thread.is_alive():
                self._news.wait(EVERY)
            return self.lost

    def leave(self) -> None:
        """End with a last meeting, in every process at the same point."""
        self._last.set()
        self._awake.set()
        self._thread.join()

    def close(self) -> None:
        """End at once; the others find this process missing at their next meeting, unless there was a last one."""
        self._left.set()
        self._awake.set()
        self._thread.join(SETTLED)
        if not self._thread.is_alive():
            dist.destroy_process_group(self._group)  # before the others notice anything else

    def _meet(self) -> None:
        last = torch.zeros(1)
        while not self._left.is_set() and not last:
            last.fill_(float(self._last.is_set()))
            self._begun += 1
            try:
                meeting = dist.all_reduce(last, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
            except RuntimeError:
                self._lose(ENDED, TO_UNWIND)
                return
            if not self._is_over(meeting):
                return
            with self._news:
                self._met = self._begun
                self._news.notify_all()
            self._awake.wait(EVERY)

    def _is_over(self, meeting: dist.Work) -> bool:
        """Wait until everybody has come; False where somebody will not, or this process leaves."""
        for look in itertools.count(1):  # not a clock: it goes on while all processes are stopped together
            ended = meeting.is_completed()
            try:
                meeting.wait(timedelta(seconds=EVERY))
            except RuntimeError:  # torch raises no other where it has waited long enough
                if ended:  # before it was waited for: since then it may have ended well, right after the wait
                    self._lose(ENDED, TO_UNWIND)
                    return False
            else:
                return True
            if self._left.is_set():
                return False
            if look * EVERY >= self.patience:
                self._lose(self._who_is_silent(), 0.0)
                return False
        return False

    def _lose(self, what: str, wait: float) -> None:
        with self._news:
            self.lost = what
            self._news.notify_all()
        if not self._last.is_set() and not self._left.wait(wait):
            # The main thread waits in an operation that no signal and no other thread can end.
            name = "ifsq" if self.rank == 0 else f"ifsq (process {self.rank})"
            sys.stderr.write(f"{name}: {what}\n")
            sys.stderr.flush()
            os._exit(2)

    def _who_is_silent(self) -> str:
        """All that still answer leave word in the store, within moments of each other."""
        silent: list[int] = []

        def ask() -> None:
            with contextlib.suppress(dist.DistError):
                self.store.set(f"ifsq/awake/{self.rank}", "")
                self._left.wait((4 if self.rank == 0 else 2) * EVERY)  # the store may end with the first process
                silent.extend(rank for rank in range(self.size) if not self.store.check([f"ifsq/awake/{rank}"]))

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(SETTLED)
        # The store lies with the first process, or with torchrun on its host.
        who = f"process {silent[0]}" if silent else "process 0" if asking.is_alive() else "another process"
        return f"{who} of this run has not answered for {self.patience:.0f} s: it is stopped, or its host is gone"


@contextmanager
def following_torchrun() -> Iterator[None]:
    """Ask this process to stop, as SIGTERM does, once the torchrun that started it is gone: nobody would end it."""
    if not dist.is_torchelastic_launched():
        yield
        return
    torchrun, left = os.getppid(), threading.Event()

    def follow() -> None:
        while not left.wait(EVERY):
            if os.getppid() != torchrun:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=follow, daemon=True).start()
    try:
        yield
    finally:
        left.set()
