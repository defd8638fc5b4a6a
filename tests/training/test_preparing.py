"""What is settled before a training starts: the precision, which then is the run's own."""

from dataclasses import dataclass, replace

import pytest
import torch

from ifsq import pipeline
from ifsq.bench.shipped import experiment_file
from ifsq.config import InputError
from ifsq.experiment import load_tokenizer_experiment
from ifsq.store.run import Run
from ifsq.training import preparing
from ifsq.training.config import TrainConfig
from ifsq.training.distributed import World
from ifsq.training.log import Silent
from ifsq.training.preparing import prepared
from ifsq.training.utilization import Utilization


@dataclass(frozen=True)
class Trained:
    train: TrainConfig


class Two(World):
    """Two processes, the other of which does not compute in bfloat16."""

    def gather(self, value):
        return [value, False]


@pytest.mark.parametrize(
    ("asked", "computes", "taken", "words"),
    [
        ("auto", True, "bf16", None),
        ("auto", False, "fp32", "does not compute in bfloat16"),
        ("bf16", True, "bf16", None),
        ("bf16", False, "bf16", "fp32 may be several times as fast"),
        ("fp32", True, "fp32", None),
        ("fp16", False, "fp16", None),
    ],
)
def test_auto_is_what_the_processor_computes_in(asked, computes, taken, words, monkeypatch):
    monkeypatch.setattr(preparing, "computes_bfloat16", lambda kind: computes)
    world = World(0, 1, torch.device("cpu"))
    found, said = prepared(Trained(TrainConfig(precision=asked)), world)
    assert found == Trained(TrainConfig(precision=taken))
    assert [words in line for line in said] == [True] * (words is not None)
    assert prepared(found, world)[0] == found


def test_all_processes_take_the_precision_that_each_computes_in(monkeypatch):
    monkeypatch.setattr(preparing, "computes_bfloat16", lambda kind: True)
    found, _ = prepared(Trained(TrainConfig(precision="auto")), Two(0, 2, torch.device("cpu")))
    assert found.train.precision == "fp32"


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def test_a_run_keeps_the_precision_that_auto_was(tmp_path, monkeypatch):
    """Its config says which; where auto is another one it is refused and not gone on with in other numbers."""
    over = ["--train.steps", "2", "--train.batch", "2", "--out", str(tmp_path / "run")]
    over += ["--tokenizer.conv.width", "8", "--tokenizer.conv.groups", "4"]
    experiment = load_tokenizer_experiment(experiment_file("demo/tokenizer.toml"), over)
    assert experiment.train.precision == "auto"
    monkeypatch.setattr(preparing, "computes_bfloat16", lambda kind: False)
    taken: list[str] = []
    of = Utilization.of
    monkeypatch.setattr(
        Utilization, "of", lambda work, precision, *rest: taken.append(precision) or of(work, precision, *rest)
    )
    heard = Heard()
    pipeline.train_tokenizer(experiment, "cpu", heard)
    assert Run.open(tmp_path / "run").config["experiment"]["train"]["precision"] == "fp32"
    assert taken == ["fp32"]
    assert any(line.startswith("precision: fp32") for line in heard.lines)
    monkeypatch.setattr(preparing, "computes_bfloat16", lambda kind: True)
    with pytest.raises(InputError, match="precision"):
        pipeline.train_tokenizer(replace(experiment, train=replace(experiment.train, steps=4)), "cpu")
