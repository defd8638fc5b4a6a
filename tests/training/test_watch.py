"""Processes of a run that die, freeze, refuse or never come: what becomes of the others, in seconds and in a line."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from tests.ports import free_port
from torch import nn

from ifsq.config import InputError
from ifsq.training import watch
from ifsq.training.checkpoint import Writer
from ifsq.training.distributed import LostProcessError, join
from ifsq.training.parallel import replicate

LIMIT = 60  # seconds; what is right takes two


@pytest.fixture
def _impatient(monkeypatch):
    monkeypatch.setenv(watch.PATIENCE, "3")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(watch, "EVERY", 0.25)
    monkeypatch.setattr(watch, "SETTLED", 2.0)


def _process(rank, size, port, folder, act):
    sys.stderr = (folder / f"{rank}.txt").open("w")
    os.dup2(sys.stderr.fileno(), 2)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    code = 0
    try:
        with join("cpu") as here:
            act(here)
    except InputError as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        code = 2
    except RuntimeError as error:
        os.write(2, f"own {error}\n".encode())
        code = 1
    os._exit(code)


def run(folder, act, size=2, ranks=None, during=lambda processes: None):
    """Exit codes of the processes and what each said; those that are still there at the end of the first are killed."""
    port = free_port()
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_process, args=(rank, size, port, folder, act))
        for rank in (range(size) if ranks is None else ranks)
    ]
    for process in processes:
        process.start()
    during(processes)
    deadline = time.monotonic() + LIMIT
    while any(process.is_alive() and not is_stopped(process) for process in processes):
        assert time.monotonic() < deadline, "they hang"
        time.sleep(0.01)
    for process in processes:
        process.kill()
        process.join()
    said = [file.read_text() for file in sorted(folder.glob("*.txt"))]
    return [process.exitcode for process in processes], said


def is_stopped(process):
    with open(f"/proc/{process.pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "T"


def wait_in_barrier(here):
    here.barrier()


def wait_in_gather(here):
    here.gather("something")


def wait_in_backward(here):
    loss = replicate(nn.Linear(3, 1), here)(torch.ones(2, 3)).sum()
    here.barrier()
    if here.rank == 1:
        kill_myself()
    loss.backward()


def kill_myself():
    os.kill(os.getpid(), signal.SIGKILL)


def stop_myself():
    os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.parametrize(
    ("dying", "wait"),
    [(0, wait_in_barrier), (1, wait_in_barrier), (0, wait_in_gather), (1, wait_in_gather), (1, wait_in_backward)],
)
def test_the_death_of_another_is_a_line(tmp_path, dying, wait):
    """The first, with whom the store lies, and another one, wherever this one waits for it."""

    def act(here):
        here.barrier()
        if here.rank == dying and wait is not wait_in_backward:
            kill_myself()
        wait(here)

    codes, said = run(tmp_path, act)
    assert codes[dying] == -signal.SIGKILL
    assert codes[1 - dying] == 2
    assert said[1 - dying] == f"LostProcessError: {watch.ENDED}\n"


def test_what_one_of_three_refuses_ends_all(tmp_path):
    def act(here):
        if here.rank == 2:
            raise InputError("image x cannot be read")
        here.barrier()

    codes, said = run(tmp_path, act, size=3)
    assert codes == [2, 2, 2]
    assert said == [f"LostProcessError: {watch.ENDED}\n"] * 2 + ["InputError: image x cannot be read\n"]


def test_an_error_while_all_are_there_is_raised_as_it_is(tmp_path):
    def act(here):
        if here.first:
            raise RuntimeError("of its own")
        here.barrier()

    codes, said = run(tmp_path, act)
    assert codes == [1, 2]
    assert said[0] == "own of its own\n"


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_frozen_process_ends_the_others_in_a_line_that_names_it(tmp_path, stopped):
    def act(here):
        here.barrier()
        if here.rank == stopped:
            stop_myself()
        here.barrier()

    codes, said = run(tmp_path, act, size=3)
    others = [rank for rank in range(3) if rank != stopped]
    assert [codes[rank] for rank in others] == [2, 2]
    for rank in others:
        name = "ifsq" if rank == 0 else f"ifsq (process {rank})"
        assert said[rank].splitlines()[-1] == (
            f"{name}: process {stopped} of this run has not answered for 3 s: it is stopped, or its host is gone"
        )


@pytest.mark.usefixtures("_impatient")
def test_one_that_works_alone_is_waited_for(tmp_path):
    def act(here):
        if here.first:
            time.sleep(5)
        assert here.gather(here.rank) == [0, 1]

    assert run(tmp_path, act) == ([0, 0], ["", ""])


@pytest.mark.usefixtures("_impatient")
def test_processes_that_are_all_stopped_for_a_while_go_on(tmp_path):
    def act(here):
        here.barrier()
        (tmp_path / "begun").touch()
        time.sleep(1)
        here.barrier()

    def stop_both(processes):
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for process in processes:
                os.kill(process.pid, number)
            time.sleep(4.5 if number == signal.SIGSTOP else 0)

    assert run(tmp_path, act, during=stop_both) == ([0, 0], ["", ""])


class Meeting(dist.Work):
    """One whose waits end as they are told to; over from the second wait on."""

    def __init__(self, *ends):
        super().__init__()
        self.ends = list(ends)
        self.waits = 0

    def is_completed(self):
        return self.waits > 0

    def wait(self, timeout):
        self.waits += 1
        if error := self.ends.pop(0):
            raise error


@pytest.mark.parametrize(("second", "over", "lost"), [(None, True, []), (RuntimeError("closed"), False, [watch.ENDED])])
def test_a_meeting_that_ends_just_after_it_was_waited_for_counts(second, over, lost):
    """As where all processes were stopped: the wait is over at once, and a moment later everybody is there."""
    said = []
    here = SimpleNamespace(_left=threading.Event(), patience=3.0, _lose=lambda what, wait: said.append(what))
    assert watch.Watch._is_over(here, Meeting(RuntimeError("timed out"), second)) is over
    assert said == lost


@pytest.mark.parametrize("there", [0, 1])
@pytest.mark.usefixtures("_impatient")
def test_one_that_never_comes_is_waited_for_as_long_as_a_frozen_one(tmp_path, there):
    codes, said = run(tmp_path, wait_in_barrier, ranks=[there])
    assert codes == [2]
    assert said == ["LostProcessError: the 2 processes of this run: not all have come within 3 s\n"]


def test_a_checkpoint_does_not_wait_for_the_part_of_a_dead_process(tmp_path):
    def act(here):
        writer = Writer(tmp_path / "checkpoints", here, keep=1)
        here.barrier()
        if here.rank == 1:
            writer._write = lambda *_: kill_myself()
        writer.save(1, {"model": {"a": torch.ones(3), "b": torch.ones(3)}}, {})
        try:
            writer.wait()
        finally:
            writer.close()

    codes, said = run(tmp_path, act)
    assert codes == [2, -signal.SIGKILL]
    assert said[0] == f"LostProcessError: {watch.ENDED}\n"
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("text", ["soon", "0", "-3", "nan", "inf", ""])
def test_patience_is_a_number_of_seconds(monkeypatch, text):
    monkeypatch.setenv(watch.PATIENCE, text)
    with pytest.raises(InputError, match=f"IFSQ_PATIENCE='{text}': expected seconds, 1 to 1000000"):
        watch.patience()
    assert issubclass(LostProcessError, InputError)
