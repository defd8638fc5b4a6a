"""One process at a time, also after a kill, a fork, a move and where there are no locks."""

import errno
import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from ifsq.config import InputError
from ifsq.store.files import LOCK, is_free
from ifsq.store.lock import BusyError, lock

HOLD = """
import sys, time
from pathlib import Path
from ifsq.store.lock import lock
with lock(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(60)
"""


def silent(line):
    raise AssertionError(line)


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of ``tmp_path``."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / LOCK], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_is_refused_in_a_line_that_names_the_first(holder, tmp_path):
    with (
        pytest.raises(
            BusyError, match=rf"^{tmp_path}: process {holder.pid} on .* is at work there; wait until"
        ) as told,
        lock(tmp_path / LOCK, silent),
    ):
        pass
    assert isinstance(told.value, InputError)
    assert "\n" not in str(told.value)
    assert holder.poll() is None


def test_a_killed_holder_holds_nothing(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock(tmp_path / LOCK, silent):
        pass
    assert list(tmp_path.iterdir()) == []


def test_one_that_waits_says_for_whom_and_comes_next(holder, tmp_path):
    told = []

    def tell(line):
        told.append(line)
        holder.kill()

    with lock(tmp_path / LOCK, tell, wait=True):
        assert told == [f"{tmp_path}: waits for process {holder.pid} on {os.uname().nodename}, which is at work there"]


def test_the_same_process_is_a_second_too(tmp_path):
    with lock(tmp_path / LOCK, silent):
        assert is_free(tmp_path)
        with pytest.raises(BusyError, match=f"process {os.getpid()} "), lock(tmp_path / LOCK, silent):
            pass
        with pytest.raises(BusyError), lock(tmp_path / LOCK, silent):  # nor did the first attempt give it back
            pass
    with lock(tmp_path / LOCK, silent):
        pass


def test_a_child_that_outlives_its_parent_does_not_hold_the_lock(tmp_path):
    with lock(tmp_path / LOCK, silent):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        with pytest.raises(BusyError), lock(tmp_path / LOCK, silent):  # it took nothing away either
            pass
    with lock(tmp_path / LOCK, silent):
        assert child.is_alive()
        child.kill()
        child.join()


def test_what_lies_where_a_moved_folder_was_is_left_alone(tmp_path):
    first, moved = tmp_path / "first", tmp_path / "moved"
    first.mkdir()
    with lock(first / LOCK, silent):
        first.rename(moved)
        first.mkdir()
        (first / LOCK).write_text("somebody's")
    assert (first / LOCK).read_text() == "somebody's"


def test_a_file_that_its_holder_removed_in_the_meantime_is_not_the_lock(tmp_path, monkeypatch):
    file, flock, removed = tmp_path / LOCK, fcntl.flock, []

    def late(handle, how):
        if not removed:
            file.unlink()
            removed.append(handle)
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with lock(file, silent):
        assert file.exists()
        with pytest.raises(BusyError), lock(file, silent):
            pass


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def refuse(handle, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    told = []
    with lock(tmp_path / LOCK, told.append):
        assert told == [
            f"{tmp_path}: its file system has no locks (No locks available); start nothing else there meanwhile"
        ]


def test_other_errors_name_the_file(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"gone/\.lock"), lock(tmp_path / "gone" / LOCK, silent):
        pass

    def refuse(handle, how):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="Input/output error") as caught, lock(tmp_path / LOCK, silent):
        pass
    assert caught.value.filename == str(tmp_path / LOCK)
