"""Processes that load batches ahead of the one that needs them, and how they end.

A worker passes its batches through a socket, so images of any size fit where shared memory is small, as in containers,
and the death of one is seen where its batch is asked for. Workers hold nothing worth saving: their end is a SIGKILL, by
whoever owns the iterator, at the latest when Python exits. Where nobody is left to do it, they end by themselves.
"""

import atexit
import contextlib
import functools
import gc
import multiprocessing
import os
import pickle
import queue
import signal
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from ifsq.data.images import DataError
from ifsq.store.files import reason

Items = list[tuple[int, int]]
"""Pairs of image index and item seed."""
PATIENCE = 30.0  # seconds that a worker may be stopped by a signal
LOOK_EVERY = 1.0  # seconds
_SIZE = struct.Struct("=Q")


@dataclass(frozen=True)
class Loaded:
    """Images and labels as they come from the source.

    skipped    what was left out, a line an image with its name and the reason
    indices    of the images in their source
    stands_in  whether these are other images, in the place of a batch with nothing left
    """

    images: UInt8[Tensor, "b H W c"]
    labels: Int[Tensor, "b"]
    skipped: tuple[str, ...]
    indices: tuple[int, ...] = ()
    stands_in: bool = False


class WorkerError(DataError):
    """A process that loads images has ended, was stopped, or cannot be started."""


def load_ahead(
    load: Callable[[Items], Loaded],
    batches: Iterable[Items],
    workers: int,
    prefetch: int = 2,
    gpu: int | None = None,
) -> Generator[Loaded, None, None]:
    """What ``load`` makes of each of the batches, in their order, loaded ahead by processes.

    It owns them: close it (``contextlib.closing``) where it may be left before its end.

    prefetch  batches that each worker loads ahead
    gpu       number of the CUDA device for which images lie in memory that it copies from without waiting

    Raises the DataError that ``load`` raises, and WorkerError.
    """
    team = _start(load, workers, gpu)
    end = functools.partial(_end, team)
    atexit.register(end)
    try:
        ahead: deque[_Worker] = deque()
        for number, items in enumerate(batches):
            ahead.append(team[number % workers])
            ahead[-1].asked.put(items)
            if len(ahead) == workers * prefetch:
                yield ahead.popleft().answer()
        while ahead:
            yield ahead.popleft().answer()
    finally:
        atexit.unregister(end)
        end()


class _Worker:
    """A process, and a thread that hands it what is asked for and takes what it answers."""

    def __init__(self, load: Callable[[Items], Loaded], gpu: int | None) -> None:
        self.gpu = gpu
        self.asked: queue.SimpleQueue[Items | None] = queue.SimpleQueue()
        self.answers: queue.SimpleQueue[Loaded | Exception] = queue.SimpleQueue()
        self.socket, theirs = socket.socketpair()
        self.process = multiprocessing.Process(target=_work, args=(load, theirs, os.getpid()), daemon=True)
        with theirs, _no_collection():
            self.process.start()
        self.thread = threading.Thread(target=self._exchange, daemon=True)

    def answer(self) -> Loaded:
        """The oldest answer that was not taken yet."""
        stopped = 0
        while True:
            try:
                answer = self.answers.get(timeout=LOOK_EVERY)
            except queue.Empty:
                stopped = stopped + 1 if self._is_stopped() else 0
                if stopped * LOOK_EVERY >= PATIENCE:
                    raise WorkerError(
                        f"loading worker {self.process.pid} has been stopped (SIGSTOP) for {PATIENCE:.0f} s;"
                        " expected it to load images"
                    ) from None
                continue
            if isinstance(answer, (EOFError, OSError)):
                raise WorkerError(self._how_it_ended()) from answer
            if isinstance(answer, Exception):
                raise answer
            return answer

    def end(self) -> None:
        """Kill the process, whatever it is doing."""
        self.process.kill()  # to SIGTERM it is deaf
        with contextlib.suppress(OSError):  # it may have ended before
            self.socket.shutdown(socket.SHUT_RDWR)
        self.asked.put(None)
        self.process.join()
        if self.thread.ident is not None:
            self.thread.join()
        self.socket.close()

    def _exchange(self) -> None:
        try:
            if self.gpu is not None:  # else pinned memory would take some of the first GPU, whichever is this one's
                torch.cuda.set_device(self.gpu)
            while (items := self.asked.get()) is not None:
                _send(self.socket, items)
                answer = _receive(self.socket)
                if not isinstance(answer, Exception):
                    shape, labels, *others = answer
                    images = torch.empty(shape, dtype=torch.uint8, pin_memory=self.gpu is not None)
                    _fill(self.socket, images.numpy().reshape(-1).data)
                    answer = Loaded(images, torch.tensor(labels, dtype=torch.int64), *others)
                self.answers.put(answer)
        except (EOFError, OSError, RuntimeError, MemoryError) as error:  # the process is gone, or no memory is left
            self.answers.put(error)

    def _is_stopped(self) -> bool:
        if not hasattr(os, "waitid"):  # macOS
            return False
        try:
            return os.waitid(os.P_PID, self.process.pid or 0, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # it has ended
            return False

    def _how_it_ended(self) -> str:
        self.process.join(LOOK_EVERY)
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"loading worker {self.process.pid} ended (exit code {code}); what it said tells why"
        told = f"loading worker {self.process.pid} was ended by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            told += ", which a system that is short of memory sends; if so, lower train.engine.workers or prefetch"
        return told


def _start(load: Callable[[Items], Loaded], workers: int, gpu: int | None) -> list[_Worker]:
    team: list[_Worker] = []
    # A stop request reaches the whole process group; workers that died of it would end the run before it saves. They
    # inherit what is blocked, and so are deaf from their first moment on.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        for _ in range(workers):
            team.append(_Worker(load, gpu))
    except OSError as error:
        _end(team)
        raise WorkerError(
            f"loading worker {len(team) + 1} of {workers} cannot be started: {reason(error)};"
            " lower train.engine.workers"
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for worker in team:  # only now: what starts a process should have as few threads as can be
        worker.thread.start()
    return team


def _end(team: list[_Worker]) -> None:
    for worker in team:
        worker.end()


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage is collected in the block, nor in a process that is forked in it."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _work(load: Callable[[Items], Loaded], channel: socket.socket, parent: int) -> None:
    """What a worker does: answer until nobody asks any more."""
    # What the parent has left lying is not this process's to end: the decoder of an AVIF waits for threads of its own,
    # which no fork takes along.
    gc.freeze()
    gc.enable()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    with channel, contextlib.suppress(EOFError, ConnectionError):
        while True:
            items = _receive(channel)
            try:
                loaded = load(items)
            except DataError as error:
                _send(channel, error)
                continue
            told = loaded.skipped, loaded.indices, loaded.stands_in
            _send(channel, (tuple(loaded.images.shape), loaded.labels.tolist(), *told))
            channel.sendall(np.ascontiguousarray(loaded.images.numpy()).reshape(-1).data)


def _end_with(parent: int) -> None:
    """End when the parent has, however: its other children may hold this worker's socket open."""
    while os.getppid() == parent:
        time.sleep(LOOK_EVERY)
    os._exit(1)


def _send(channel: socket.socket, what: Any) -> None:
    content = pickle.dumps(what)
    channel.sendall(_SIZE.pack(len(content)) + content)


def _receive(channel: socket.socket) -> Any:
    size = bytearray(_SIZE.size)
    _fill(channel, memoryview(size))
    content = bytearray(_SIZE.unpack(size)[0])
    _fill(channel, memoryview(content))
    return pickle.loads(content)  # noqa: S301 - from this program


def _fill(channel: socket.socket, place: memoryview) -> None:
    """Receive as many bytes as there is place for. Raises EOFError when the other side has ended."""
    while len(place):
        count = channel.recv_into(place, 0, socket.MSG_WAITALL)  # one wait for the whole, without Python's lock
        if not count:
            raise EOFError("the other side has ended")
        place = place[count:]
