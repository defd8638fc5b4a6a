"""Budgets in minutes: steps are timed once, kept in the folder of the grid, and the plan follows from them."""

import json
from dataclasses import replace
from itertools import count

import pytest
import torch
from toy_grid import SMALL, write_toy_grid

from ifsq.bench.grid import command, timing
from ifsq.bench.grid.command import bench, plan_all, show_plan
from ifsq.bench.grid.plan import plan_grid
from ifsq.bench.grid.timing import PAIRS, TIMES, WARM_UP, seconds_a_step
from ifsq.config import InputError
from ifsq.training.distributed import World
from ifsq.training.log import Silent

MINUTES = ["--budget", "{tokenizer = {minutes = 0.01}, generator = {minutes = 0.02}}"]
ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("timing")
    write_toy_grid(folder)
    text = (folder / "grid.toml").read_text()
    (folder / "grid.toml").write_text(
        text.partition("[budget]")[0] + "[evaluation]" + text.partition("[evaluation]")[2]
    )
    return folder


class Clock:
    """Every step takes as long as it is told to, one after another."""

    def __init__(self, seconds):
        self.seconds, self.now = iter(seconds), 100.0

    def __call__(self):
        self.now += next(self.seconds)
        return self.now


def test_a_step_takes_the_median_of_pairs_after_warm_up(place):
    """A pair that something held up counts nothing, and a step of every kind of training is really done."""
    plan = plan_grid(place / "grid.toml", place / "out", [*SMALL, *MINUTES])
    found = {training.kind: training for training in plan.untimed.values()}
    assert set(found) == {"tokenizer", "ar", "diffusion"}
    seconds = [*[50.0] * WARM_UP, *[1.0, 3.0] * (PAIRS - 2), *[70.0] * 4]
    for training in found.values():
        assert seconds_a_step(training, ALONE, Clock(seconds)) == 2.0
    assert seconds_a_step(found["ar"], ALONE) > 0
    latents = plan_grid(place / "grid.toml", place / "out", [*SMALL, *MINUTES, "--axes.tokenizer", '["ae"]'])
    (diffusion,) = (training for training in latents.untimed.values() if training.kind == "diffusion")
    assert seconds_a_step(diffusion, ALONE, Clock(count(1))) > 0


def test_steps_follow_from_the_times_of_the_folder(place, tmp_path, monkeypatch):
    """Timed once, whatever the seed; a rerun, --only and more cells take the same."""
    timed = []

    def seconds(training, world):
        timed.append(training.told)
        return {"tokenizer": 0.1, "ar": 0.3, "diffusion": 0.2}[training.kind]

    monkeypatch.setattr(timing, "seconds_a_step", seconds)
    monkeypatch.setattr(command, "_run_here", lambda *_: None)
    file, out = place / "grid.toml", tmp_path / "out"
    given = [*SMALL, *MINUTES, "--seeds.training", "[0, 1]"]
    lines, rows = show_plan(file, out, given)
    assert any(line.startswith("3 trainings with a budget in minutes are not timed yet") for line in lines)
    assert {row[0] for row in rows} == {"tokenizer", "tokenizer-eval", "codes", "ar", "diffusion", "generator-eval"}
    with pytest.raises(InputError, match=r"out: has no times\.json for the budgets in minutes"):
        plan_all(file, out, given)
    assert not out.exists()
    bench(file, out, given, "cpu", Silent(), jobs=2)
    bench(file, out, given, "cpu", Silent())
    assert timed == ["tokenizer ifsq bits 2", "ifsq bits 2 ar", "ifsq bits 2 diffusion"]
    plan = plan_all(file, out, given)
    steps = {stage.kind: stage.steps for stage in plan.stages.values() if stage.steps is not None}
    assert steps == {"tokenizer": 6, "ar": 4, "diffusion": 6}
    as_long = plan_grid(file, out, [*SMALL, "--settings", "[{tokenizer = {train = {steps = 6}}}]"])
    assert {name for name, stage in as_long.stages.items() if stage.kind == "tokenizer"} < plan.stages.keys()
    said = "\n".join(show_plan(file, out, given)[0])
    assert f"budgets in minutes: steps by {out / TIMES}, timed on cpu with " in said
    kept = json.loads((out / TIMES).read_text())
    (out / TIMES).write_text(json.dumps({key: {**one, "seconds": -1.0} for key, one in kept.items()}))
    with pytest.raises(InputError, match=r"times\.json: seconds=-1\.0: expected a positive number"):
        plan_grid(file, out, given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--budget.tokenizer.images", "9"], "budget.tokenizer: images and minutes: expected one of them"),
        (["--budget.tokenizer.minutes", "0"], "minutes=0.0: expected a number above 0"),
        (["--resources.ar.processes", "2"], "budget in minutes of ar: steps are timed in one process"),
    ],
)
def test_what_is_wrong_with_minutes_is_said(place, given, message):
    with pytest.raises(InputError) as caught:
        plan_grid(place / "grid.toml", place / "out", [*SMALL, *MINUTES, *given])
    assert message in str(caught.value)


def test_trainings_that_differ_in_length_and_seed_alone_are_timed_once(place):
    plan = plan_grid(place / "grid.toml", place / "out", [*SMALL, *MINUTES])
    training = next(one for one in plan.untimed.values() if one.kind == "ar")
    train = training.experiment.train
    for change, same in (({"seed": 5, "steps": 77}, True), ({"batch": 8}, False), ({"precision": "bf16"}, False)):
        other = replace(training, experiment=replace(training.experiment, train=replace(train, **change)))
        assert (other.key == training.key) is same
    compiled = replace(train, engine=replace(train.engine, compile=True))
    assert replace(training, experiment=replace(training.experiment, train=compiled)).key != training.key
