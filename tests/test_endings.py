"""How the command ends when something goes wrong while it works: one line, the right exit code, soon, nobody left."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.ports import free_port

EXPERIMENT = """
out = "run"
[data]
source = "bundled:shapes"
size = 16
[tokenizer.conv]
width = 8
multipliers = [1, 1]
blocks = 1
patch = 2
groups = 4
[tokenizer.quantizer]
levels = [5, 5]
[train]
steps = 100000
batch = 8
log_every = 10
save_every = 40
optim.warmup = 2
engine.workers = 2
"""
TRAIN = ["tokenizer", "train", "run.toml", "--device", "cpu", "--out"]
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "ifsq")
SOON = 30  # seconds; without what these tests are about it would be for ever


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("endings")
    (folder / "run.toml").write_text(EXPERIMENT)
    return folder


def start(folder, *words, how=("-m", "ifsq"), environment=None, **more):
    """The command, in a process group of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    return subprocess.Popen(
        [sys.executable, *how, *words], cwd=folder, env=environment, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more,
    )  # fmt: skip


def wait_for(what, process):
    deadline = time.monotonic() + 120
    while not what():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "it did nothing in time"
        time.sleep(0.01)


def rows(run: Path):
    log = run / "metrics.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def children(process):
    return list(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))


def end_of(process):
    """Its exit code and what it said last; it and all its children are gone."""
    try:
        said = process.communicate(timeout=SOON)[1]
    finally:
        left = subprocess.run(["pgrep", "-g", str(process.pid)], check=False, capture_output=True, text=True).stdout
        if left:
            os.killpg(process.pid, signal.SIGKILL)
    assert left == ""
    assert "Traceback" not in said
    return process.returncode, said.splitlines()[-1]


def test_a_killed_worker_ends_training(folder):
    process = start(folder, *TRAIN, "killed")
    wait_for(lambda: rows(folder / "killed") > 0, process)
    os.kill(children(process)[0], signal.SIGKILL)
    code, said = end_of(process)
    assert code == 2
    assert said.startswith("ifsq: loading worker ")


def test_a_full_disk_ends_training(folder):
    """Where the system refuses to write: a limit on the size of files, which needs no disk of its own."""
    limit = (20_000, 20_000)
    process = start(folder, *TRAIN, "full", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    code, said = end_of(process)
    assert code == 2
    assert said.startswith("ifsq: full/checkpoints/step_40: cannot be written: ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_request_to_the_whole_group_saves(folder, number):
    process = start(folder, *TRAIN, number.name)
    wait_for(lambda: rows(folder / number.name) > 0, process)
    os.killpg(process.pid, number)
    code, said = end_of(process)
    assert code == 130
    assert said.startswith("ifsq: stopped at step ")
    assert list((folder / number.name / "checkpoints").glob("step_*"))


@pytest.mark.parametrize("work", [["encode", "RUN", "bundled:photos", "codes"], ["tokenizer", "eval", "RUN"]])
def test_a_killed_worker_ends_other_work(folder, work):
    run = folder / "short"
    if not run.exists():
        assert end_of(start(folder, *TRAIN, run.name, "--train.steps", "1"))[0] == 0
    process = start(folder, *(run.name if word == "RUN" else word for word in work), "--device", "cpu")
    wait_for(lambda: children(process), process)
    os.kill(children(process)[0], signal.SIGKILL)
    code, said = end_of(process)
    assert code == 2
    assert said.startswith("ifsq: loading worker ")
    assert not (folder / "codes").exists()


def test_a_killed_process_ends_the_other_although_its_workers_outlive_it(folder):
    port = free_port()
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        start(folder, *TRAIN, "pair", environment={**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    wait_for(lambda: rows(folder / "pair") > 0, processes[0])
    os.kill(processes[1].pid, signal.SIGKILL)
    assert end_of(processes[0]) == (2, "ifsq: another process of this run has ended; see its message above")
    assert processes[1].wait() == -signal.SIGKILL
    processes[1].communicate()


def test_processes_that_their_torchrun_tells_to_stop_too_save(folder):
    """As Ctrl-C in a terminal: each is told twice, and by the other one."""
    torchrun = start(folder, *TRAIN, "group", how=TORCHRUN)
    wait_for(lambda: rows(folder / "group") > 0, torchrun)
    os.killpg(torchrun.pid, signal.SIGINT)
    said = torchrun.communicate(timeout=SOON)[1].splitlines()
    assert len([line for line in said if line.startswith("ifsq: stopped at step ")]) == 1, said
    assert list((folder / "group" / "checkpoints").glob("step_*"))


def test_processes_of_a_killed_torchrun_stop(folder):
    torchrun = start(folder, *TRAIN, "orphans", how=TORCHRUN)
    wait_for(lambda: rows(folder / "orphans") > 0, torchrun)
    left = children(torchrun)
    os.kill(torchrun.pid, signal.SIGKILL)
    said = torchrun.communicate(timeout=SOON)[1]  # which ends when nobody can write there any more
    assert len(left) == 2
    assert said.splitlines()[-1].startswith("ifsq: stopped at step ")


def test_two_runs_in_one_folder_and_one_that_is_moved(folder):
    """The second is refused, the first goes on; and it ends where its folder has another name."""
    run = folder / "busy"
    first = start(folder, *TRAIN, run.name)
    wait_for(lambda: rows(run) > 0, first)
    code, said = end_of(start(folder, *TRAIN, run.name))
    assert code == 2
    assert said.startswith(f"ifsq: busy: process {first.pid} on ")
    before = rows(run)
    wait_for(lambda: rows(run) > before, first)
    run.rename(folder / "moved")
    code, said = end_of(first)
    assert code == 2
    assert "was moved or removed while the run trained there" in said or "cannot be written: no such file" in said
    assert not run.exists()
    steps = [json.loads(line)["step"] for line in (folder / "moved/metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
