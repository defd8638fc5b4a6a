"""Runs killed at random moments end with the bits of the run that nobody touched. Minutes: ``make slow``.

A toy tokenizer with a discriminator, a calibrated bound and a checkpoint every other step, so that kills hit saves too.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ifsq.store import checkpoints
from ifsq.training.log import read_metrics

STEPS = 120
EXPERIMENT = f"""
out = "run"
[data]
source = "bundled:shapes"
size = 16
flip = true
[tokenizer.conv]
width = 16
multipliers = [1, 1]
blocks = 1
patch = 2
groups = 4
[tokenizer.quantizer]
levels = [5, 5, 5]
bound = "quantile"
cells = "equal"
[loss.adversarial]
start = 10
layers = 2
width = 8
lecam = 0.1
[train]
steps = {STEPS}
batch = 8
log_every = 1
save_every = 2
optim.warmup = 2
"""
ONE = [sys.executable, "-m", "ifsq"]
TWO = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "ifsq"]
TABLES = ("model", "ema", "optimizer", "opponent", "opponent_optimizer")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    (folder / "run.toml").write_text(EXPERIMENT)
    return folder


def start(how, folder, out, *more):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [*how, "tokenizer", "train", "run.toml", "--out", out, "--device", "cpu", *more]
    with (folder / f"{out}.txt").open("a") as told:
        return subprocess.Popen(command, cwd=folder, env=environment, stderr=told, start_new_session=True)


def kill(process):
    """SIGKILL to it and to all that came of it: torchrun gives its processes sessions of their own."""
    family = [process.pid]
    for pid in family:
        children = Path(f"/proc/{pid}/task/{pid}/children")
        family += map(int, children.read_text().split()) if children.exists() else []
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def finish(process):
    assert process.wait(timeout=600) == 0, "what it said lies beside its folder"


def end_of(run: Path):
    step, path = checkpoints.steps_in(run / "checkpoints")[-1]
    assert step == STEPS
    return {name: checkpoints.at(path).load(name) for name in TABLES}


def assert_same_bits(a, b):
    for name in TABLES:
        assert a[name].keys() == b[name].keys()
        assert all(torch.equal(value, b[name][key]) for key, value in a[name].items()), name


def lines(run: Path):
    return len(read_metrics(run / "metrics.jsonl"))


@pytest.mark.parametrize(("name", "how"), [("one", ONE), ("two", TWO)])
def test_killed_at_twenty_random_moments(folder, name, how, capsys):
    """Kills come while the run moves, after a few steps and a part of a second; some catch a half-written save."""
    finish(start(how, folder, f"{name}_whole"))
    moment, run = random.Random(0), folder / f"{name}_killed"
    half_written, at = 0, []
    for _ in range(20):
        process, before = start(how, folder, run.name), lines(run)
        wanted = max(1, before - 1) + moment.randrange(1, 5)  # a resume may drop a line and write it again
        deadline = time.monotonic() + 120
        while lines(run) < min(wanted, STEPS) and process.poll() is None:
            assert time.monotonic() < deadline, "the process did nothing in time"
            time.sleep(0.002)
        time.sleep(moment.random() * 0.1)
        kill(process)
        half_written += bool(list((run / "checkpoints").glob(".partial*")))
        at.append(lines(run))
    assert max(at) < STEPS, "it ended before it had been killed twenty times"
    finish(start(how, folder, run.name))
    with capsys.disabled():
        print(f"\n{name}: killed at steps {at}, {half_written} of 20 with a half-written checkpoint", flush=True)
    assert_same_bits(end_of(folder / f"{name}_whole"), end_of(run))


def test_two_processes_then_one_with_the_same_sample_order(folder):
    """Cut in two parts, one process sees the same images, draws the same noise and sums the same gradients.

    So the bits are equal where nothing is a running statistic, which two processes average and one lets run on.
    """
    plain = ("--tokenizer.quantizer.bound", "ifsq", "--loss.adversarial.start", "100000")
    finish(start(TWO, folder, "both", *plain))
    process = start(TWO, folder, "fewer", *plain)
    while lines(folder / "fewer") < 40:
        assert process.poll() is None
        time.sleep(0.01)
    kill(process)
    finish(start(ONE, folder, "fewer", *plain, "--train.engine.accumulate", "2"))
    assert_same_bits(end_of(folder / "both"), end_of(folder / "fewer"))
