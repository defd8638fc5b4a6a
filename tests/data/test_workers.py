"""Processes that load: in order, and gone when they should be, whatever happened to them or to their owner."""

import errno
import gc
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest
import torch

from ifsq.data import DataError
from ifsq.data import workers as module
from ifsq.data.workers import Loaded, WorkerError, load_ahead

BIG, STUCK, BROKEN, BUG = 9, 100, 101, 102


def load(items):
    """Pictures as bright as their seeds; index 0 is missing, and `BIG` is larger than a socket holds at once."""
    index, seed = items[0]
    if index == STUCK:
        time.sleep(600)
    if index == BROKEN:
        raise DataError(f"image {seed} cannot be read")
    if index == BUG:
        os._exit(3)
    side = 700 if index == BIG else 2
    kept = [seed for index, seed in items if index]
    images = torch.tensor(kept, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, side, side, 3)
    return Loaded(images, torch.tensor(kept, dtype=torch.int64), ("left out",) * (len(items) - len(kept)))


@pytest.fixture(autouse=True)
def _nobody_is_left():
    yield
    assert multiprocessing.active_children() == []


@pytest.fixture
def _impatient(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.4)
    monkeypatch.setattr(module, "LOOK_EVERY", 0.1)


def endless(index=1):
    return ([(index, number % 256)] for number in count())


def take(ahead, count=20):
    return [next(ahead) for _ in range(count)]


def pids():
    return [child.pid for child in multiprocessing.active_children()]


@pytest.mark.parametrize(("workers", "prefetch"), [(1, 1), (2, 2), (3, 1), (5, 3)])
def test_batches_come_in_order_whatever_their_size(workers, prefetch):
    batches = [[(index, seed), (3, 4)] for seed, index in enumerate((0, BIG, 1, BIG, BIG, 2, 5))] + [[(0, 7)]]
    with closing(load_ahead(load, batches, workers, prefetch)) as ahead:
        for items, loaded in zip(batches, ahead, strict=True):
            expected = load(items)
            assert torch.equal(loaded.images, expected.images)
            assert torch.equal(loaded.labels, expected.labels)
            assert loaded.skipped == expected.skipped
        assert multiprocessing.active_children() == []  # they ended with the last batch


def test_no_more_is_asked_for_than_may_be_loaded_ahead():
    asked = []
    batches = (asked.append(number) or [(1, number)] for number in range(100))
    with closing(load_ahead(load, batches, workers=2, prefetch=3)) as ahead:
        next(ahead)
        next(ahead)
        assert len(asked) == 7


def test_what_a_worker_refuses_is_raised_here():
    batches = [[(1, 1)], [(BROKEN, 5)], [(1, 2)]]
    with closing(load_ahead(load, batches, 2)) as ahead:
        assert next(ahead).labels.tolist() == [1]
        with pytest.raises(DataError, match=r"^image 5 cannot be read$"):
            next(ahead)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR1])
def test_a_killed_worker_is_told_in_a_line(number):
    with closing(load_ahead(load, endless(), 2)) as ahead:
        next(ahead)
        os.kill(pids()[0], number)
        with pytest.raises(WorkerError, match=rf"^loading worker \d+ was ended by {number.name}") as caught:
            take(ahead)
        assert "\n" not in str(caught.value)


def test_a_worker_that_ends_by_itself_is_told_in_a_line():
    with (
        closing(load_ahead(load, endless(BUG), 1)) as ahead,
        pytest.raises(WorkerError, match=r"^loading worker \d+ ended \(exit code 3\); what it said tells why$"),
    ):
        next(ahead)


@pytest.mark.usefixtures("_impatient")
def test_a_frozen_worker_is_told_in_a_line():
    with closing(load_ahead(load, endless(), 2)) as ahead:
        next(ahead)
        os.kill(pids()[0], signal.SIGSTOP)
        with pytest.raises(WorkerError, match=r"^loading worker \d+ has been stopped \(SIGSTOP\) for 0 s"):
            take(ahead)


@pytest.mark.usefixtures("_impatient")
def test_a_slow_worker_and_one_that_goes_on_are_waited_for():
    with closing(load_ahead(load, endless(), 1)) as ahead:
        next(ahead)
        stopped = pids()[0]
        os.kill(stopped, signal.SIGSTOP)
        continued = subprocess.Popen(["sh", "-c", f"sleep 0.2; kill -CONT {stopped}"])
        take(ahead)
        assert continued.wait() == 0
    with closing(load_ahead(time_out, endless(), 1)) as ahead:
        assert next(ahead).skipped == ("slow",)


def time_out(items):
    time.sleep(1)
    return Loaded(torch.empty(0, 2, 2, 3, dtype=torch.uint8), torch.tensor([], dtype=torch.int64), ("slow",))


def test_closing_ends_workers_that_are_busy_or_stopped():
    ahead = load_ahead(load, [[(1, 1)], *([(STUCK, 1)] for _ in range(9))], 3)
    next(ahead)
    os.kill(pids()[1], signal.SIGSTOP)
    began = time.monotonic()
    ahead.close()
    assert multiprocessing.active_children() == []
    assert time.monotonic() - began < 5


def test_a_stop_request_to_the_group_is_left_to_the_run():
    with closing(load_ahead(load, endless(), 2)) as ahead:
        next(ahead)
        for number in (signal.SIGINT, signal.SIGTERM):
            for pid in pids():
                os.kill(pid, number)
        take(ahead)


def test_one_that_cannot_be_started_is_told_in_a_line(monkeypatch):
    pair, made = socket.socketpair, []

    def few():
        if len(made) == 2:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        made.append(pair())
        return made[-1]

    monkeypatch.setattr(socket, "socketpair", few)
    with pytest.raises(WorkerError, match=r"^loading worker 3 of 4 cannot be started: too many open files; lower"):
        next(load_ahead(load, endless(), 4))


OWNER = """
import multiprocessing, sys
sys.path.insert(0, sys.argv[1])
from test_workers import STUCK, endless, load
from ifsq.data.workers import load_ahead
ahead = load_ahead(load, ([(STUCK if number else 1, 1)] for number in range(99)), 2)
next(ahead)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
"""


@pytest.mark.parametrize(
    ("end", "code"), [("raise KeyError('owner')", 1), ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9)]
)
def test_workers_end_with_their_owner(end, code):
    """Also where it raises with the iterator in hand, whose workers Python would wait for at its exit."""
    folder = str(Path(__file__).parent)
    owner = subprocess.run(
        [sys.executable, "-c", OWNER + end, folder], check=False, capture_output=True, text=True, timeout=60
    )
    assert owner.returncode == code, owner.stderr
    left = [int(pid) for pid in owner.stdout.split()]
    assert len(left) == 2
    deadline = time.monotonic() + 10
    while any(is_running(pid) for pid in left):
        assert time.monotonic() < deadline, "they outlive their owner"
        time.sleep(0.05)


def is_running(pid):
    """Whether a process is there and no mere entry that nobody has asked about yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class _Left:
    """In a circle, so that only the collector ends it; says in which process that is."""

    def __init__(self, where: Path) -> None:
        self.where, self.circle = where, self

    def __del__(self) -> None:
        with self.where.open("a") as file:
            print(os.getpid(), file=file)


def _collecting(items):
    gc.collect()
    return load(items)


def test_a_worker_ends_nothing_that_its_parent_has_left_lying(tmp_path):
    gc.disable()
    try:
        _Left(tmp_path / "ended")
        with closing(load_ahead(_collecting, endless(), 2)) as ahead:
            take(ahead, 4)
            assert not gc.isenabled()
    finally:
        gc.enable()
    assert not (tmp_path / "ended").exists()
    gc.collect()
    assert (tmp_path / "ended").read_text().split() == [str(os.getpid())]
