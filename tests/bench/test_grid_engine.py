"""A grid on Snakemake: the workflow as it is written; slow, where it is installed: two workers, one of them killed."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from toy_grid import SMALL, write_toy_grid

from ifsq.bench.grid.engine import check_engine, write_workflow
from ifsq.bench.grid.plan import plan_grid
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
