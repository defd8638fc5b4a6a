"""A grid on Snakemake: the workflow as it is written; slow, where it is installed: two workers, one of them killed."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from toy_grid import SMALL, write_toy_grid

from ifsq.bench.grid.engine import check_engine, run_on_engine, write_workflow
from ifsq.bench.grid.plan import plan_grid
from ifsq.bench.grid.runner import StagesError
from ifsq.bench.measurement import MEASUREMENTS, read_measurements
from ifsq.config import InputError

HERE = importlib.util.find_spec("snakemake") is not None


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    write_toy_grid(folder)
    return folder


def test_each_stage_is_a_rule_with_its_resources(place):
    resources = ["--resources.ar", "{processes = 2, gpus = 1, memory_mb = 500, minutes = 3}"]
    plan = plan_grid(place / "grid.toml", place / "a {b} c", [*SMALL, *resources])
    text = write_workflow(plan, "cpu").read_text()
    rules = dict(re.findall(r"^rule (\w+):\n((?:    .*\n)+)", text, flags=re.MULTILINE))
    assert set(rules) == {"all", *(name.replace("-", "_") for name in plan.stages)}
    for name, stage in plan.stages.items():
        rule = rules[name.replace("-", "_")]
        assert re.findall(r"ancient\('[^']*/([\w-]+)\.json'\)", rule) == list(stage.needs)
        assert re.search(r"output: '[^']*/([\w-]+)\.json'", rule)[1] == name
        assert f"--only {name} --device cpu" in rule
        assert "a {{b}} c" in rule  # Snakemake formats commands
        wanted = "threads: 2\n    resources: mem_mb=500, runtime=3, gpu=1" if stage.kind == "ar" else "threads: 1"
        assert wanted in rule


def test_an_engine_that_is_not_there_is_refused(monkeypatch):
    with pytest.raises(InputError, match="--engine make: expected snakemake"):
        check_engine("make")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--engine snakemake: is not installed; expected pip install ifsq\[engine\]"):
        check_engine("snakemake")


STANDS_IN = """import pathlib, signal, sys, time
def stop(*_):
    time.sleep(1.5)
    pathlib.Path("told").write_text("cancelled")
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
pathlib.Path("began").write_text("")
{does}
"""


@pytest.fixture
def stand_in(tmp_path):
    """``stand_in(does)``: the environment of a command whose engine is a module that does this."""

    def make(does):
        folder = tmp_path / "packages/snakemake"
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        (folder / "__main__.py").write_text(STANDS_IN.format(does=does))
        return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder.parent), *sys.path])}

    return make


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_reaches_the_engine_which_is_waited_for(place, tmp_path, stand_in, number):
    """It cancels its jobs; until it is gone the folder is held, and no second one begins."""
    line = [sys.executable, "-m", "ifsq", "bench", "grid.toml", "--out", str(tmp_path / "out"), *SMALL]
    run = subprocess.Popen([*line, "--engine", "snakemake"], cwd=place, env=stand_in("time.sleep(100)"))
    while not (place / "began").exists():
        assert run.poll() is None
        time.sleep(0.05)
    (place / "began").unlink()
    run.send_signal(number)
    assert run.wait(60) == 130
    assert (place / "told").read_text() == "cancelled"
    (place / "told").unlink()


def test_what_an_earlier_attempt_said_is_no_reason(place, tmp_path, monkeypatch):
    plan = plan_grid(place / "grid.toml", tmp_path / "out", SMALL)
    (tmp_path / "out/logs").mkdir(parents=True)
    first = next(iter(plan.stages))
    (tmp_path / f"out/logs/{first}.log").write_text("ifsq: as it was yesterday\n")
    monkeypatch.setattr("ifsq.bench.grid.engine.check_engine", lambda name: None)
    monkeypatch.setattr("ifsq.bench.grid.engine.code_of", lambda command, stop, alone: 2)
    with pytest.raises(StagesError, match="1 stages failed and 8 that need them were skipped"):
        run_on_engine(plan, "snakemake", "cpu", 1, [])
    (row,) = map(json.loads, (tmp_path / "out/failures.jsonl").read_text().splitlines())
    assert row["error"] == "did not begin: snakemake ended with exit code 2"

    def says(command, stop, alone):
        with (tmp_path / f"out/logs/{first}.log").open("a") as log:
            log.write("ifsq: no such thing\n")
        return 1

    monkeypatch.setattr("ifsq.bench.grid.engine.code_of", says)
    with pytest.raises(StagesError):
        run_on_engine(plan, "snakemake", "cpu", 1, [])
    assert json.loads((tmp_path / "out/failures.jsonl").read_text())["error"] == "no such thing"


@pytest.mark.slow
@pytest.mark.skipif(not HERE, reason="snakemake is not installed; expected pip install ifsq[engine]")
def test_two_workers_do_each_stage_once_and_one_that_dies_costs_its_stage(place):
    """The judge is found trained by neither: both runs train their own, the same."""

    def start(out, *more):
        line = ["bench", "grid.toml", "--out", out, "--device", "cpu", *SMALL, *more]
        return subprocess.Popen([sys.executable, "-m", "ifsq", *line], cwd=place)

    assert start("plain").wait() == 0
    run = start("engine", "--engine", "snakemake", "--jobs", "2")
    stages = place / "engine/stages"
    while not (held := holders(stages)):
        assert run.poll() is None
        time.sleep(0.01)
    os.kill(held[0], signal.SIGKILL)  # it trains the judge, or waits for it
    assert run.wait() == 0
    for log in (place / "engine/logs").iterdir():
        said = log.read_text()
        assert said.count(f"{log.stem}: done") == 1, said
    assert figures(place / "engine") == figures(place / "plain")


def holders(stages):
    """Processes that measure a generator."""
    found = []
    for file in stages.glob("generator-eval-*.lock"):
        with suppress(FileNotFoundError):  # it has just ended
            found += file.read_text().split()[1:2]
    return [int(number) for number in found]


def figures(out):
    return [(one.cell, one.seed, one.sampling_seed, one.step, one.flops, one.metric, one.value, one.figure, one.stage)
            for one in read_measurements(out / MEASUREMENTS)]  # fmt: skip
