"""The runner, on stages that only count: each once, whatever is killed; a failure costs what needs it, nothing else."""

import json
import os
import signal
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ifsq.bench.grid import command, runner
from ifsq.bench.grid.config import Grid, Resources
from ifsq.bench.grid.plan import Plan
from ifsq.bench.grid.runner import FAILURES, own_folder, perform, run_stages
from ifsq.bench.grid.stages import Stage, is_complete, marker_of
from ifsq.config import InputError, Interrupted
from ifsq.training.log import Silent
from ifsq.training.stopping import stop_requests


@dataclass(frozen=True)
class Count:
    """Writes a line each time that it runs; then waits, fails or is stopped, as the grid's file ``orders`` says."""

    name: str

    def run(self, folder, device, reporter):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "runs").open("a") as file:
            file.write(f"{self.name}\n")
        orders = json.loads((folder.parent.parent / "orders").read_text())
        match orders.get(self.name):
            case "refuse":
                raise InputError(f"{self.name}: no such thing\nand more")
            case "bug":
                raise ZeroDivisionError("division by zero")
            case "stop":
                raise Interrupted(3)
            case "wait":
                time.sleep(60)
            case "train":  # which looks at a request to stop between steps
                with stop_requests() as request:
                    (folder / "process").write_text(str(os.getpid()))
                    request.wait(60)
                    raise Interrupted(3)
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)


def stage(name, *needs):
    return Stage(
        "codes", {"name": name}, {one.name: one.name for one in needs}, Count(name), tuple(o.name for o in needs)
    )


A = stage("a")
B = stage("b", A)
C = stage("c", A)
D = stage("d", B)
E = stage("e", C)
F = stage("f")
ALL = (A, B, C, D, E, F)
LETTER = {one.name: one.config["name"] for one in ALL}


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "orders").write_text("{}")
    users = {one.name: [LETTER[one.name]] for one in ALL}
    return Plan(Grid({}, "tokenizer.toml"), tmp_path, stages={one.name: one for one in ALL}, users=users)


def order(plan, **orders):
    (plan.out / "orders").write_text(json.dumps(orders))


def runs(plan):
    """How often each stage ran."""
    found = {}
    for one in ALL:
        file = one.folder(plan.out) / "runs"
        found[LETTER[one.name]] = len(file.read_text().splitlines()) if file.exists() else 0
    return found


def letters(names):
    return "".join(LETTER[name] for name in names)


def failures(plan):
    return [json.loads(line) for line in (plan.out / FAILURES).read_text().splitlines()]


def test_each_stage_is_done_once(plan):
    told = []
    outcome = run_stages(plan, "cpu", Silent(), then=told.append)
    assert (letters(outcome.done), outcome.failed, outcome.skipped) == ("abcdef", {}, {})
    assert told == outcome.done
    assert set(runs(plan).values()) == {1}
    about = json.loads(marker_of(plan.out, B.name).read_text())
    assert (about["stage"], about["config"], about["inputs"], about["cells"]) == (B.name, B.config, B.inputs, ["b"])
    again = run_stages(plan, "cpu", Silent())
    assert (letters(again.found), again.done) == ("abcdef", [])
    assert set(runs(plan).values()) == {1}
    assert not (plan.out / FAILURES).exists()


def test_it_says_how_long_the_rest_takes(plan, monkeypatch):
    """By the stages of a kind that are done: six of ten minutes each, one after another."""
    said, clock = [], iter(range(0, 10**6, 600))
    watcher = Silent()
    watcher.say = said.append
    monkeypatch.setattr(runner, "time", SimpleNamespace(**vars(time) | {"monotonic": lambda: next(clock)}))
    run_stages(plan, "cpu", watcher)
    left = [line.partition("  about ")[2] for line in said if " of 6 " in line]
    assert left == ["", *(f"{minutes} min left" for minutes in (50, 40, 30, 20, 10))]


def test_a_stage_whose_folder_is_gone_is_done_again(plan):
    run_stages(plan, "cpu", Silent())
    (B.folder(plan.out) / "runs").unlink()
    B.folder(plan.out).rmdir()
    assert letters(run_stages(plan, "cpu", Silent()).done) == "b"


@pytest.fixture
def quick(monkeypatch):
    """Workers are forks, which need not load torch again."""
    monkeypatch.setattr(runner, "START", "fork")


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failure_costs_what_needs_it(plan, jobs, quick):
    order(plan, b="refuse", c="bug")
    outcome = run_stages(plan, "cpu", Silent(), jobs)
    assert sorted(letters(outcome.done)) == ["a", "f"]
    assert {LETTER[name]: told for name, told in outcome.failed.items()} == {
        "b": "b: no such thing and more",
        "c": "division by zero",
    }
    assert {LETTER[name]: letters(needs) for name, needs in outcome.skipped.items()} == {"d": "b", "e": "c"}
    told = {LETTER[row["stage"]]: row for row in failures(plan)}
    assert told["b"] == {"stage": B.name, "cells": ["b"], "error": "b: no such thing and more"}
    assert "ZeroDivisionError" in told["c"]["traceback"]
    order(plan)
    again = run_stages(plan, "cpu", Silent(), jobs)
    assert sorted(letters(again.done)) == ["b", "c", "d", "e"]
    assert runs(plan) == {"a": 1, "b": 2, "c": 2, "d": 1, "e": 1, "f": 1}
    assert not (plan.out / FAILURES).exists()


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_worker_that_is_killed_costs_its_stage(plan, start, monkeypatch):
    monkeypatch.setattr(runner, "START", start)
    order(plan, c="die")
    outcome = run_stages(plan, "cpu", Silent(), 2)
    assert sorted(letters(outcome.done)) == ["a", "b", "d", "f"]
    assert "its process ended" in outcome.failed[C.name]
    order(plan)
    assert sorted(letters(run_stages(plan, "cpu", Silent(), 2).done)) == ["c", "e"]
    assert runs(plan) == {"a": 1, "b": 1, "c": 2, "d": 1, "e": 1, "f": 1}


def test_a_worker_that_dies_between_two_stages_costs_none(plan, quick):
    worker = runner._Worker(2)
    assert worker.submit(A, plan, "cpu").result()
    os.kill(worker.process.result(), signal.SIGKILL)
    while not _is_lost(worker):
        time.sleep(0.01)
    assert worker.submit(F, plan, "cpu").result()
    worker.close()
    assert (runs(plan)["a"], runs(plan)["f"]) == (1, 1)


def _is_lost(worker):
    try:
        worker.pool.submit(os.getpid)
    except BrokenProcessPool:
        return True
    return False


def test_a_worker_that_only_begins_is_asked_to_stop_by_its_own_number(plan, quick, monkeypatch):
    """Process 0 would be the whole group: the shell's script too."""
    begin, asked = runner._begin_work, []

    def slowly(*arguments):
        time.sleep(0.2)
        begin(*arguments)

    monkeypatch.setattr(runner, "_begin_work", slowly)
    worker = runner._Worker(2)
    doing = worker.submit(A, plan, "cpu")
    with monkeypatch.context() as patch:
        patch.setattr(runner.os, "kill", lambda process, number: asked.append(process))
        worker.stop()
    assert doing.result()
    assert asked == [worker.process.result()]
    assert asked[0] not in (0, os.getpid())
    worker.close()


def test_a_folder_left_before_its_first_stage_is_a_grids(plan, tmp_path, monkeypatch):
    """The workers take seconds to begin."""

    def killed(*_):
        raise KeyboardInterrupt

    new = replace(plan, out=tmp_path / "new")
    monkeypatch.setattr(command, "plan_grid", lambda *_, **__: new)
    monkeypatch.setattr(command, "run_stages", killed)
    with pytest.raises(KeyboardInterrupt):
        command.bench(Path("grid.toml"), new.out, (), "cpu", Silent(), jobs=2)
    assert (new.out / "grid.json").is_file()
    own_folder(new.out)


@pytest.mark.parametrize("at", ["a", "c", "f"])
def test_killed_at_any_moment_it_loses_the_stage_in_progress(plan, at):
    order(plan, **{at: "wait"})
    child = os.fork()
    if child == 0:  # only counts, waits and is killed
        run_stages(plan, "cpu", Silent())
        os._exit(1)
    while not runs(plan)[at]:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    order(plan)
    outcome = run_stages(plan, "cpu", Silent())
    assert letters(outcome.found + outcome.done) == "abcdef"
    assert runs(plan) == {letter: 1 + (letter == at) for letter in "abcdef"}


def test_workers_end_with_who_started_them(plan, monkeypatch):
    """One that trains saves itself first; nobody would send it another stage."""
    monkeypatch.setattr(runner, "START", "fork")
    monkeypatch.setattr(runner, "LOOK_EVERY", 0.05)
    order(plan, a="train")
    child = os.fork()
    if child == 0:
        run_stages(plan, "cpu", Silent(), 2)
        os._exit(1)
    file, until = A.folder(plan.out) / "process", time.monotonic() + 30
    while not (file.exists() and file.read_text()):
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    worker = int(file.read_text())
    while _runs(worker) and time.monotonic() < until:
        time.sleep(0.02)
    assert not _runs(worker)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_stop_the_grid_waits_for_what_its_workers_train(plan, monkeypatch, number):
    """A batch system sends SIGTERM, and takes the end of the first process for the end of all."""
    monkeypatch.setattr(runner, "START", "fork")
    order(plan, a="train")
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs this in the background may ignore it
        try:
            run_stages(plan, "cpu", Silent(), 2)
        except KeyboardInterrupt:
            os._exit(130)
        os._exit(1)
    file = A.folder(plan.out) / "process"
    while not (file.exists() and file.read_text()):
        time.sleep(0.01)
    os.kill(child, number)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    assert not _runs(int(file.read_text()))
    assert not is_complete(plan.out, A.name)


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_stage_that_is_asked_to_stop_stops_the_grid(plan):
    order(plan, b="stop")
    with pytest.raises(Interrupted):
        run_stages(plan, "cpu", Silent())
    assert runs(plan) == {"a": 1, "b": 1, "c": 0, "d": 0, "e": 0, "f": 0}
    assert not is_complete(plan.out, B.name)
    assert not (plan.out / FAILURES).exists()


STANDS_IN_FOR_TORCHRUN = """#!/bin/sh
trap 'echo told >> "{out}/told"; exit {code}' TERM
echo "$@" > "{out}/started"
test {waits} = 0 && exit {code}
while :; do sleep 0.05; done
"""


@pytest.fixture
def torchrun(plan, monkeypatch):
    """``torchrun(code, waits)``: what stages of two processes are started with, and the code with which it ends."""

    def make(code, waits=False):
        file = plan.out / "python"
        file.write_text(STANDS_IN_FOR_TORCHRUN.format(out=plan.out, code=code, waits=int(waits)))
        file.chmod(0o755)
        monkeypatch.setattr(runner.sys, "executable", str(file))
        return replace(plan, grid=Grid({}, "tokenizer.toml", resources={"codes": Resources(processes=2)}))

    return make


def test_a_stage_of_two_processes_is_started_by_torchrun(torchrun):
    plan = torchrun(0)
    assert perform(A, plan, "cpu", Silent())
    assert marker_of(plan.out, A.name).is_file()
    said = (plan.out / "started").read_text()
    assert said.startswith("-m torch.distributed.run --standalone --nproc-per-node 2 -m ifsq ")
    assert said.endswith(f" --only {A.name} --device cpu\n")


def test_processes_that_fail_fail_their_stage(torchrun):
    plan = torchrun(3)
    with pytest.raises(InputError, match=f"{A.name}: its 2 processes ended with exit code 3; what they said is above"):
        perform(A, plan, "cpu", Silent())
    assert not is_complete(plan.out, A.name)


@pytest.mark.parametrize("code", [0, 143])
def test_a_request_to_stop_reaches_the_processes(code, torchrun):
    """They may end well or not: the stage is not complete, whoever asked."""
    plan = torchrun(code, waits=True)

    def ask():
        while not (plan.out / "started").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    with pytest.raises(KeyboardInterrupt):
        perform(A, plan, "cpu", Silent())
    asking.join()
    assert (plan.out / "told").read_text() == "told\n"
    assert not is_complete(plan.out, A.name)


def test_two_processes_do_not_do_the_same_stage(plan):
    children = []
    for _ in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            for one in ALL:
                perform(one, plan, "cpu", Silent())
            os._exit(0)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert set(runs(plan).values()) == {1}


def test_an_address_follows_from_what_decides_the_result():
    assert stage("a") == A
    assert stage("a").name == A.name
    others = [stage("b"), stage("a", F), replace(A, kind="features"), replace(A, inputs={"images": "x"})]
    assert len({A.name, *(one.name for one in others)}) == 5
    assert replace(A, work=Count("z"), needs=("x",), flops=1.0, steps=3).name == A.name


def test_what_is_no_grid_of_ours_is_refused(plan, tmp_path):
    own_folder(plan.out / "new")
    with pytest.raises(InputError, match="orders: is a file; expected a folder"):
        own_folder(plan.out / "orders")
    with pytest.raises(InputError, match="is not empty and holds no grid"):
        own_folder(plan.out)
    with pytest.raises(InputError, match="--jobs 0: expected 1 to 64"):
        run_stages(plan, "cpu", Silent(), 0)
    with pytest.raises(InputError, match="--only x: no such stage; --plan lists them"):
        plan.only("x")
    assert letters(plan.only(E.name).stages) == "ace"
