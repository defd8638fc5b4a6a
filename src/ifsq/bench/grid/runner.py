"""Runs the stages of a plan, one after another or several at once, on this machine.

A stage that is complete is not done again, one that was interrupted goes on as its run does. What a stage raises is its
own failure: what needs it is skipped and named, the rest goes on.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from ifsq.bench.grid.plan import Plan
from ifsq.bench.grid.stages import STAGES, Stage, is_complete, marker_of
from ifsq.bench.grid.timing import cores_of
from ifsq.config import InputError, Interrupted, Remark
from ifsq.metrics.card import code_version
from ifsq.store.files import append_text, first_line, is_free, make_folder, write_text
from ifsq.store.lock import lock
from ifsq.training.log import Reporter, Silent
from ifsq.training.stopping import stop_requests

FAILURES = "failures.jsonl"
MOST_JOBS = 64
START = "spawn"
"""How workers begin: a fork of a process whose threads have computed may never end."""
LOOK_EVERY = 1.0  # seconds between looks of a worker at who started it
STOPS = frozenset({signal.SIGINT, signal.SIGTERM})
_WORKING = threading.Lock()
"""Held by a worker while it does a stage."""


@dataclass
class Outcome:
    """What became of the stages, by name.

    found    were complete before
    done     were done now
    failed   with what was raised
    skipped  with the failed stages that they need
    """

    found: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, list[str]] = field(default_factory=dict)


class StagesError(InputError):
    """Stages of a grid failed; the others are done."""

    def __init__(self, out: Path, failed: int, skipped: int) -> None:
        super().__init__(
            f"{failed} stages failed and {skipped} that need them were skipped, see {out / FAILURES}; the same command"
            " tries again"
        )


def perform(stage: Stage, plan: Plan, device: str, reporter: Reporter) -> bool:
    """Do one stage, unless it is complete, and mark it as such at the end; whether there was anything to do.

    Raises whatever the stage does.
    """
    make_folder(plan.out / STAGES)
    with lock(plan.out / STAGES / f"{stage.name}.lock", reporter.say, wait=True):
        if is_complete(plan.out, stage.name):
            return False
        started = time.perf_counter()
        processes = plan.grid.resource(stage.kind).processes
        if processes > 1:
            _under_torchrun(stage, plan, device, processes)
        else:
            stage.work.run(stage.folder(plan.out), device, reporter)
        mark(stage, plan, time.perf_counter() - started)
    return True


def mark(stage: Stage, plan: Plan, seconds: float) -> None:
    """Say that a stage is complete. Raises InputError.

    seconds  that its last attempt took
    """
    about = {
        "stage": stage.name,
        "config": stage.config,
        "inputs": stage.inputs,
        "cells": plan.users.get(stage.name, []),
        "steps": stage.steps,
        "flops": stage.flops,
        "seconds": round(seconds, 3),
        "code_version": code_version(),
    }
    write_text(marker_of(plan.out, stage.name), json.dumps(about, indent=1) + "\n")


def run_stages(
    plan: Plan,
    device: str,
    reporter: Reporter,
    jobs: int = 1,
    then: Callable[[str], None] | None = None,
    failed: Mapping[str, str] | None = None,
) -> Outcome:
    """Do what is left of a plan; failures are lines of ``failures.jsonl`` in its folder.

    jobs    processes that do stages at the same time, each with its share of the cores; 1: this process does
    then    is told the name of each stage that is done now
    failed  stages that are not tried again, and why: those of an earlier round of the same command

    Raises Interrupted or KeyboardInterrupt where the grid is asked to stop, once every stage has saved itself.
    """
    check_jobs(jobs)
    if not failed:
        (plan.out / FAILURES).unlink(missing_ok=True)
    workers: list[_Worker] = [_Worker(jobs) for _ in range(jobs)] if jobs > 1 else [_Here(reporter)]
    try:
        with _terminated_as_interrupted() if jobs > 1 else nullcontext():
            return _Schedule(plan, device, reporter, then or (lambda name: None), failed or {}).run(workers)
    finally:
        for worker in workers:
            worker.close()


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """A SIGTERM is a KeyboardInterrupt: batch systems take this process's end for that of workers that still save."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Schedule:
    def __init__(
        self, plan: Plan, device: str, reporter: Reporter, then: Callable[[str], None], failed: Mapping[str, str]
    ) -> None:
        self.plan, self.device, self.reporter, self.then = plan, device, reporter, then
        self.outcome, self.started = Outcome(failed=dict(failed)), 0
        self.began: dict[str, float] = {}  # of the stages that run, on the clock
        self.took: dict[str, list[float]] = {}  # seconds of those that are done, by kind
        self.waiting = []
        for name in plan.stages:
            if is_complete(plan.out, name):
                self.outcome.found.append(name)
            elif name not in failed:
                self.waiting.append(name)
        self.total = len(self.waiting)

    def run(self, workers: Sequence["_Worker"]) -> Outcome:
        running: dict[Future[bool], tuple[_Worker, str]] = {}
        try:
            while self.waiting or running:
                for worker in workers:
                    name = self._next()
                    if name is not None and all(worker is not busy for busy, _ in running.values()):
                        running[self._begin(worker, name, len(workers))] = worker, name
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    worker, name = running.pop(future)
                    self._end(worker, name, future.exception())
        except (Interrupted, KeyboardInterrupt):
            for worker in workers:
                worker.stop()
            wait(running)
            raise
        return self.outcome

    def _next(self) -> str | None:
        """The first stage that can begin; those that cannot any more are skipped."""
        over = {*self.outcome.found, *self.outcome.done}
        for name in list(self.waiting):
            needs = self.plan.stages[name].needs
            lost = [one for one in needs if one in self.outcome.failed or one in self.outcome.skipped]
            if lost:
                self.waiting.remove(name)
                self.outcome.skipped[name] = lost
                self.reporter.say(f"{name}: skipped, it needs {', '.join(lost)}")
            elif all(one in over for one in needs):
                return name
        return None

    def _begin(self, worker: "_Worker", name: str, workers: int) -> "Future[bool]":
        self.waiting.remove(name)
        self.began[name] = time.monotonic()
        self.started += 1
        whose = self.plan.users.get(name, [])
        cells = whose[0] if len(whose) == 1 else f"{len(whose)} cells" if whose else ""
        self.reporter.say(f"{self.started} of {self.total}  {name}  {cells}{self._left(workers)}")
        return worker.submit(self.plan.stages[name], self.plan, self.device)

    def _left(self, workers: int) -> str:
        """How long what runs and waits will take, if it takes as long as what is done of its kind, or of any kind."""
        done = [seconds for of_kind in self.took.values() for seconds in of_kind]
        if not done:
            return ""
        kinds = [self.plan.stages[name].kind for name in (*self.began, *self.waiting)]
        expected = sum(statistics.mean(self.took.get(kind, done)) for kind in kinds)
        return f"  about {max(1, round(expected / workers / 60))} min left"

    def _end(self, worker: "_Worker", name: str, error: BaseException | None) -> None:
        seconds = time.monotonic() - self.began.pop(name)
        if isinstance(error, (Interrupted, KeyboardInterrupt)):
            raise error
        if error is None:
            self.took.setdefault(self.plan.stages[name].kind, []).append(seconds)
            self.outcome.done.append(name)
            self.then(name)
            return
        told = first_line(error)
        if isinstance(error, BrokenProcessPool):
            told = "its process ended, as one does that is killed or finds no memory"
            worker.renew()
        self.outcome.failed[name] = told
        self.reporter.say(f"{name}: failed: {told}")
        row: dict[str, Any] = {"stage": name, "cells": self.plan.users.get(name, []), "error": told}
        if not isinstance(error, (InputError, OSError)):  # what nobody foresaw
            row["traceback"] = "".join(traceback.format_exception(error))
        append_text(self.plan.out / FAILURES, json.dumps(row) + "\n")


class _Worker:
    """A process that does one stage after another."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.pool: Executor | None = None
        self.process: Future[int] = Future()

    def submit(self, stage: Stage, plan: Plan, device: str) -> "Future[bool]":
        try:
            return self._begun().submit(_perform_silently, stage, plan, device)
        except BrokenProcessPool:  # it died between two stages, which costs none
            self.renew()
            return self._begun().submit(_perform_silently, stage, plan, device)

    def _begun(self) -> Executor:
        if self.pool is None:
            pool = ProcessPoolExecutor(1, get_context(START), _begin_work, (self.jobs, os.getpid()))
            before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # also of the process that begins
            try:
                self.pool, self.process = pool, pool.submit(os.getpid)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self.pool

    def renew(self) -> None:
        """After its process has died."""
        self.close()
        self.pool = None

    def stop(self) -> None:
        """Ask for an end: training saves itself first. One that has only begun is waited for, one that died is not."""
        if self.pool is not None:
            with suppress(BrokenProcessPool, ProcessLookupError):
                os.kill(self.process.result(), signal.SIGTERM)

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown()


class _Here(_Worker):
    """This process."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(1)
        self.reporter = reporter

    def submit(self, stage: Stage, plan: Plan, device: str) -> "Future[bool]":
        future: Future[bool] = Future()
        try:
            future.set_result(perform(stage, plan, device, self.reporter))
        except Interrupted:
            raise
        except Exception as error:  # noqa: BLE001 - of whatever kind, it is this stage's failure and is reported
            future.set_exception(error)
        return future


def _perform_silently(stage: Stage, plan: Plan, device: str) -> bool:
    with _WORKING:
        return perform(stage, plan, device, Silent())


def _begin_work(jobs: int, parent: int) -> None:
    """In a worker: its share of the cores; its end when who started it is gone."""
    torch.set_num_threads(cores_of(jobs))
    warnings.simplefilter("ignore", Remark)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal tells all: the first process then tells this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)  # as what it starts itself should be told

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_EVERY)
        os.kill(os.getpid(), signal.SIGTERM)
        with _WORKING:  # a training saves itself first, and would then wait for a stage that nobody sends
            os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _under_torchrun(stage: Stage, plan: Plan, device: str, processes: int) -> None:
    """Do a stage's work in several processes. Raises InputError where they end otherwise than well.

    A request to stop is handed on to torchrun, which tells its processes; then this one waits until they have saved.
    """
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    work = ["-m", "ifsq", *plan.command, "--only", stage.name, "--device", device]
    code = code_of([*launch, *work], lambda torchrun: torchrun.send_signal(signal.SIGTERM))
    if code in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    if code:
        raise InputError(
            f"{stage.name}: its {processes} processes ended with exit code {code}; what they said is above"
        )


def code_of(command: Sequence[str], stop: Callable[["subprocess.Popen[bytes]"], None], *, alone: bool = False) -> int:
    """How a command ended. Raises KeyboardInterrupt once it has, where this process was asked to stop meanwhile.

    stop   tells it to
    alone  in a group of its own, which no terminal tells
    """
    with stop_requests() as asked, subprocess.Popen(command, start_new_session=alone) as started:
        while started.poll() is None:
            if asked.wait(LOOK_EVERY):
                stop(started)
                started.wait()
    if asked.is_set():
        raise KeyboardInterrupt
    return started.returncode


def check_jobs(jobs: int) -> None:
    """Raise InputError for a number of processes that no machine should start."""
    if not 1 <= jobs <= MOST_JOBS:
        raise InputError(f"--jobs {jobs}: expected 1 to {MOST_JOBS}")


def own_folder(out: Path) -> None:
    """Raise InputError unless a folder is free or one of a grid."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; expected a folder for the grid")
    if not (out / STAGES).is_dir() and not is_free(out):
        raise InputError(f"{out}: is not empty and holds no grid; choose another folder")
