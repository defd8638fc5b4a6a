"""Figures beside metrics.jsonl: TensorBoard read back, the others by what they are told."""

import io
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.training.test_loop import HERE, Killed, Regression, config
from tests.training.test_observer import Eye

from ifsq.config import InputError
from ifsq.training.config import EngineConfig
from ifsq.training.log import Silent, read_metrics
from ifsq.training.loop import train
from ifsq.training.sinks import open_sinks


def test_tensorboard_shows_what_metrics_say_also_after_a_kill(tmp_path):
    def kill(step):
        if step == 17:
            raise Killed

    logged = replace(config(), engine=EngineConfig(loggers=("tensorboard",)))
    with pytest.raises(Killed):
        train(Regression(kill), logged, tmp_path, HERE, Silent(), "run")
    train(Regression(), logged, tmp_path, HERE, Silent(), "run")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "loss" in row]
    shown = [(event.step, event.value) for event in events.Scalars("loss")]
    assert [step for step, _ in shown] == [row["step"] for row in rows] == list(range(5, 41, 5))
    assert [value for _, value in shown] == pytest.approx([row["loss"] for row in rows], rel=1e-6)
    assert events.Scalars("val/zero")[-1].step == 40


class Recorder:
    """Stands for wandb and trackio, which are no dependency of the tests: both have init, log and finish."""

    def __init__(self):
        self.told = []

    def init(self, **options):
        self.told.append(options)
        return self

    def log(self, values, step):
        self.told.append((step, values))

    def finish(self):
        self.told.append("finished")

    def Image(self, path):  # noqa: N802
        return Path(path).read_bytes()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_others_are_told_the_same(tmp_path, monkeypatch, name):
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, name, recorder)
    logged = replace(config(steps=5), engine=EngineConfig(loggers=(name,)))
    train(Regression(), logged, tmp_path / "a" / "run", HERE, Silent(), "run")
    opened, (step, values), (last, held_out), end = recorder.told
    assert opened["project"] == "ifsq"
    assert opened["name"].startswith("a")
    assert opened["resume"] == "allow"
    assert not any("key" in option or "token" in option for option in opened)
    assert step == last == 5
    assert (
        values.items()
        >= {k: v for k, v in read_metrics(tmp_path / "a/run/metrics.jsonl")[0].items() if k != "step"}.items()
    )
    assert held_out.keys() == {"val/zero"}
    assert end == "finished"


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_others_are_shown_the_pictures_of_the_folder(tmp_path, monkeypatch, name):
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, name, recorder)
    looked = config(steps=4, sample_every=2, evaluate_every=4, engine=EngineConfig(loggers=(name,)))
    task = Regression()
    task.observer = Eye()
    train(task, looked, tmp_path, HERE, Silent(), "run")
    told = [row for row in recorder.told if isinstance(row, tuple)]
    assert {step: values["samples"] for step, values in told if "samples" in values} == {
        step: (tmp_path / f"samples/step_{step}.png").read_bytes() for step in (2, 4)
    }
    assert [step for step, values in told if "evaluate/zero" in values] == [4]


def test_tensorboard_shows_the_pictures_of_the_folder(tmp_path):
    looked = config(steps=4, sample_every=2, engine=EngineConfig(loggers=("tensorboard",)))
    task = Regression()
    task.observer = Eye()
    train(task, looked, tmp_path, HERE, Silent(), "run")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = {image.step: Image.open(io.BytesIO(image.encoded_image_string)) for image in events.Images("samples")}
    assert shown.keys() == {2, 4}
    for step, image in shown.items():
        with Image.open(tmp_path / f"samples/step_{step}.png") as drawn:
            assert (np.asarray(image) == np.asarray(drawn.convert("RGB"))).all()


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_one_that_is_not_installed_is_named(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=rf"loggers: {name} is not installed; expected pip install 'ifsq\[log\]'"):
        open_sinks((name,), tmp_path, 0)


def test_a_logger_is_named_once():
    with pytest.raises(ValueError, match="expected each once"):
        EngineConfig(loggers=("wandb", "wandb"))


def test_tensorboard_on_a_full_disk_is_one_line(disk, capfd):
    """Its thread meets it; the next figure says it."""
    place, before = disk(64), threading.excepthook
    (board,) = open_sinks(("tensorboard",), place, 0)

    def write():
        for step in range(10_000):
            board.write(step, {"loss": 1.0})

    with pytest.raises(InputError, match="tensorboard: cannot be written: no space left on device"):
        write()
    with pytest.raises(InputError, match="no space left on device"):
        board.close()
    assert capfd.readouterr().err == ""
    assert threading.excepthook is before
