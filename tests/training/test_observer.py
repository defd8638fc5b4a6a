"""Looking at a model in training: what is written, that nothing of the training changes, and clear ends."""

import time

import numpy as np
import pytest
import torch
from PIL import Image
from tests.training.test_loop import HERE, Killed, Regression, assert_same, config, kill_at, weights

from ifsq.config import InputError
from ifsq.store import checkpoints
from ifsq.training.config import TrainConfig
from ifsq.training.log import Silent, read_metrics
from ifsq.training.loop import train


class Eye:
    """Sees one weight as a grey; it draws random numbers, as careless onlookers do, and takes its time."""

    def __init__(self, seconds=0.0, refuse_at=()):
        self.seconds, self.refuse_at, self.looks = seconds, refuse_at, 0

    def picture(self, model, world):
        assert not model.training
        torch.rand(3)
        np.random.rand()
        time.sleep(self.seconds)
        return np.full((2, 3, 1), int(255 * _first_weight(model)), np.uint8)

    def figures(self, model, world):
        self.looks += 1
        if self.looks in self.refuse_at:
            raise InputError("images: none of 8 could be read")
        time.sleep(self.seconds)
        with torch.no_grad():
            return {"zero": float(model(torch.zeros(1, 4)))}


def _first_weight(model):
    return float(next(model.parameters()).detach().flatten()[0].abs()) % 1


def looked_at(folder, eye=None, on_step=lambda step: None, **changes):
    task = Regression(on_step)
    task.observer = eye
    train(task, config(**changes), folder, HERE, Silent(), "run")


def pictures(folder):
    return {int(path.stem[5:]): path.read_bytes() for path in (folder / "samples").glob("step_*.png")}


def figures(folder):
    rows = read_metrics(folder / "metrics.jsonl")
    return {row["step"]: row["evaluate/zero"] for row in rows if "evaluate/zero" in row}


def test_a_run_that_is_looked_at_ends_with_the_bits_of_one_that_is_not(tmp_path):
    looked_at(tmp_path / "unseen")
    looked_at(tmp_path / "seen", Eye(), sample_every=7, evaluate_every=15)
    assert_same(weights(tmp_path / "unseen")[1], weights(tmp_path / "seen")[1])
    assert sorted(pictures(tmp_path / "seen")) == [7, 14, 21, 28, 35, 40]
    assert sorted(figures(tmp_path / "seen")) == [15, 30, 40]
    assert not (tmp_path / "unseen" / "samples").exists()


def test_it_sees_the_averaged_weights_of_the_step(tmp_path):
    looked_at(tmp_path, Eye(), sample_every=10, evaluate_every=10, keep=9)
    for step, path in checkpoints.steps_in(tmp_path / "checkpoints"):
        model = Regression().model.eval()
        model.load_state_dict(checkpoints.at(path).load("ema"))
        assert figures(tmp_path)[step] == Eye().figures(model, HERE)["zero"]
        with Image.open(tmp_path / f"samples/step_{step}.png") as drawn:
            assert (np.asarray(drawn) == Eye().picture(model, HERE)[..., 0]).all()


def test_a_run_that_begins_with_the_weights_of_another_is_looked_at_from_its_start(tmp_path):
    looked_at(tmp_path / "fresh", Eye(), sample_every=20, evaluate_every=20)
    looked_at(tmp_path / "warm", Eye(), sample_every=20, evaluate_every=20, init="elsewhere")
    assert sorted(figures(tmp_path / "fresh")) == sorted(pictures(tmp_path / "fresh")) == [20, 40]
    assert sorted(figures(tmp_path / "warm")) == sorted(pictures(tmp_path / "warm")) == [0, 20, 40]


@pytest.mark.parametrize("moments", [[9], [14, 29]])
def test_a_killed_run_has_the_pictures_and_figures_of_the_unbroken_one(tmp_path, moments):
    looked_at(tmp_path / "whole", Eye(), sample_every=7, evaluate_every=4)
    for moment in moments:
        with pytest.raises(Killed):
            looked_at(tmp_path / "cut", Eye(), kill_at(moment), sample_every=7, evaluate_every=4)
    looked_at(tmp_path / "cut", Eye(), sample_every=7, evaluate_every=4)
    assert pictures(tmp_path / "cut") == pictures(tmp_path / "whole")
    assert figures(tmp_path / "cut") == figures(tmp_path / "whole")


def test_pictures_of_steps_that_are_trained_again_go(tmp_path):
    with pytest.raises(Killed):
        looked_at(tmp_path, Eye(), kill_at(19), sample_every=3)
    (tmp_path / "samples" / "step_by_step.png").write_bytes(b"somebody's own")
    looked_at(tmp_path, Eye(), sample_every=20)
    (tmp_path / "samples" / "step_by_step.png").unlink()
    assert sorted(pictures(tmp_path)) == [3, 6, 9, 20, 40]


def test_the_clock_of_the_training_stands_still(tmp_path, monkeypatch):
    real, slept = time.perf_counter, []
    monkeypatch.setattr(time, "perf_counter", lambda: real() + sum(slept))
    monkeypatch.setattr(time, "sleep", slept.append)
    looked_at(tmp_path, Eye(seconds=1000), steps=10, sample_every=5, evaluate_every=5)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    trained = [row for row in rows if "loss" in row]
    assert trained[-1]["seconds"] < 1000
    assert all(row["steps_per_second"] > 5 / 1000 for row in trained)
    for name in ("sample/seconds", "evaluate/seconds"):
        assert [row[name] for row in rows if name in row] == pytest.approx([1000, 1000], rel=0.1)


def test_whoever_watches_is_told_what_was_seen_and_what_it_took(tmp_path):
    told = {}

    class Watcher(Silent):
        def advance(self, done, facts):
            told[done] = set(facts)

    task = Regression()
    task.observer = Eye()
    train(task, config(steps=6, log_every=5, sample_every=3, evaluate_every=3), tmp_path, HERE, Watcher(), "run")
    looked = {"evaluate/zero", "evaluate/seconds", "sample/seconds"}
    assert told[3] == looked
    assert told[4] == set()
    assert looked | {"loss"} < told[6]


def test_the_steps_are_not_lost_for_what_cannot_be_measured(tmp_path):
    with pytest.raises(InputError, match="none of 8 could be read"):
        looked_at(tmp_path, Eye(refuse_at=(2,)), evaluate_every=8, save_every=40)
    assert weights(tmp_path)[0] == 16
    looked_at(tmp_path, Eye(), evaluate_every=8, save_every=40)
    assert sorted(figures(tmp_path)) == [8, 24, 32, 40]


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ({"sample_every": -1}, "sample_every=-1: expected at least 0"),
        ({"evaluate_every": -2}, "evaluate_every=-2: expected at least 0"),
        ({"evaluate_images": 1}, "evaluate_images=1: expected at least 2"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(option, told):
    with pytest.raises(ValueError, match=told):
        TrainConfig(**option)
