"""Parts of a model that stay as they are: to the bit, without optimizer state, through kills, on two processes too."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from ifsq import pipeline
from ifsq.config import InputError, build
from ifsq.experiment import TokenizerExperiment
from ifsq.store import checkpoints
from ifsq.store.run import Run
from ifsq.tokenizer.model import Tokenizer
from ifsq.training.claim import Claim
from ifsq.training.config import TrainConfig
from ifsq.training.distributed import World
from ifsq.training.log import Silent, read_metrics
from ifsq.training.loop import Task, fit, train
from ifsq.training.parts import check_parts, freeze, under

HERE = World(0, 1, torch.device("cpu"))
CONFIG = TrainConfig(steps=12, batch=4, log_every=3, save_every=4, ema=0.9, freeze=("low",))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.high = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x):
        return self.high(self.low(x)) * self.scale


class Fitting(Task):
    def __init__(self, stop_at=None):
        torch.manual_seed(0)
        self.model, self.stop_at = Net(), stop_at

    def batches(self, start, world):
        step = start
        while True:
            if step == self.stop_at:
                raise KeyboardInterrupt
            yield torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
            step += 1

    def loss(self, model, batch, rng, step):
        return {"loss": model(batch).square().mean()}

    def validate(self, model, world):
        return {}

    def describe(self):
        return {"kind": "fitting"}


def newest(folder):
    found = checkpoints.at(checkpoints.steps_in(folder / "checkpoints")[-1][1])
    return {name: found.load(name) for name in ("model", "ema", "optimizer")}


def assert_still(before, after, part):
    """The tensors of a part are those of before, and some other tensor is not."""
    held = under(before, part)
    assert held
    assert all(torch.equal(before[key], after[key]) for key in held)
    assert any(not torch.equal(before[key], after[key]) for key in before.keys() - set(held))


def test_a_frozen_part_keeps_its_bits_and_has_no_optimizer_state(tmp_path):
    task = Fitting()
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    train(task, CONFIG, tmp_path, HERE, Silent(), "fit")
    after = newest(tmp_path)
    for name in ("model", "ema"):
        assert_still(before, after[name], "low")
        assert not torch.equal(before["high.1.running_mean"], after[name]["high.1.running_mean"])
    trained = ["high.0.weight", "high.0.bias", "high.1.weight", "high.1.bias", "scale"]
    assert {key.partition(".")[0] for key in after["optimizer"]} == {str(i) for i in range(len(trained))}


def test_a_single_tensor_can_be_frozen_and_the_rest_of_its_module_trains(tmp_path):
    task = Fitting()
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    train(task, replace(CONFIG, freeze=("high.0.weight", "scale")), tmp_path, HERE, Silent(), "fit")
    after = newest(tmp_path)["model"]
    assert_still(before, after, "high.0.weight")
    assert_still(before, after, "scale")
    assert not torch.equal(before["high.0.bias"], after["high.0.bias"])


def test_a_killed_run_with_frozen_parts_ends_with_the_same_bits(tmp_path):
    train(Fitting(), CONFIG, tmp_path / "whole", HERE, Silent(), "fit")
    with pytest.raises(KeyboardInterrupt):
        train(Fitting(stop_at=7), CONFIG, tmp_path / "cut", HERE, Silent(), "fit")
    train(Fitting(), CONFIG, tmp_path / "cut", HERE, Silent(), "fit")
    whole, cut = newest(tmp_path / "whole"), newest(tmp_path / "cut")
    for name, table in whole.items():
        assert table.keys() == cut[name].keys()
        assert all(torch.equal(cut[name][key], value) for key, value in table.items())


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("lo",), r"train\.freeze: the model has no part 'lo'; expected one of low, high, scale$"),
        (("low.7",), r"train\.freeze: the model has no part 'low\.7'; expected one of low\.0, low\.1, low\.2$"),
        (("low.0.gain",), r"no part 'low\.0\.gain'; expected one of low\.0\.weight, low\.0\.bias$"),
        (("",), r"no part ''; expected one of low, high, scale"),
        (
            ("low.1.running_mean",),
            r"train\.freeze: 'low\.1\.running_mean' is no parameter; expected the module that it",
        ),
        (("low", "low"), r"train\.freeze=\['low', 'low'\]: expected each part once"),
        (("low", "high", "scale"), r"train\.freeze=.*: leaves no parameter to train; expected fewer parts"),
    ],
)
def test_what_cannot_be_frozen_is_refused_before_anything_is_written(tmp_path, parts, message):
    @dataclass(frozen=True)
    class Experiment:
        train: TrainConfig

    config = replace(CONFIG, freeze=parts)
    with pytest.raises(InputError, match=message):
        fit(Fitting(), config, Claim(tmp_path / "run", "judge", Experiment(config), "x"), HERE, Silent())
    assert not (tmp_path / "run").exists()


def test_a_tied_tensor_is_frozen_under_either_name():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    freeze(model, ("b",))
    assert [p.requires_grad for p in (model["a"].weight, model["a"].bias, model["b"].bias)] == [False, True, False]


def test_a_part_ends_at_a_dot():
    assert under(["up.1.w", "up.10.w", "up.1"], "up.1") == ["up.1.w", "up.1"]
    check_parts(Net(), ("low.0", "low.1.running_mean"), "x")


QUANTIZERS = {
    "running bound": {"levels": [5, 5], "bound": "quantile", "cells": "equal"},
    "codebook by averages": {"kind": "vq", "dim": 2, "codebook_size": 16, "ema": True, "revive_after": 2},
}


def tokenizer_run(folder, quantizer, **train):
    table = {
        "out": str(folder),
        "data": {"source": "bundled:shapes", "size": 32},
        "tokenizer": {
            "conv": {"width": 8, "multipliers": [1, 1], "blocks": 1, "patch": 2, "groups": 4, "dropout": 0.1},
            "quantizer": quantizer,
        },
        "loss": {"adversarial": {"start": 1, "layers": 2, "width": 4}},
        "train": {"steps": 3, "batch": 4, "log_every": 1, "save_every": 1, "keep": 9, "optim": {"warmup": 0}, **train},
    }
    return pipeline.train_tokenizer(build(TokenizerExperiment, table, "test"), "cpu")


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_frozen_bottleneck_moves_no_statistic_and_no_codebook(tmp_path, name):
    run = tokenizer_run(tmp_path / "run", QUANTIZERS[name], freeze=["quantizer", "decoder.norm_out"])
    states = dict(checkpoints.steps_in(run / "checkpoints"))
    before, after = (checkpoints.at(states[step]).load("model") for step in (1, 3))
    assert_still(before, after, "quantizer")
    assert_still(before, after, "decoder.norm_out")


def test_a_frozen_decoder_still_balances_the_adversarial_loss(tmp_path):
    """Its last weights get no gradient, and the ratio of the two losses' gradients there is known all the same."""
    run = tokenizer_run(tmp_path / "run", {"levels": [5, 5]}, freeze=["decoder"])
    states = dict(checkpoints.steps_in(run / "checkpoints"))
    before, after = (checkpoints.at(states[step]).load("model") for step in (1, 3))
    assert_still(before, after, "decoder")
    weights = [row["adversarial_weight"] for row in read_metrics(run / "metrics.jsonl") if "adversarial_weight" in row]
    assert len(weights) == 2
    assert all(weight > 0 for weight in weights)
    assert Tokenizer.from_pretrained(run).digest()


def test_another_freeze_is_another_run(tmp_path):
    tokenizer_run(tmp_path / "run", {"levels": [5, 5]}, freeze=["encoder"])
    with pytest.raises(InputError, match=r"holds another run \(experiment\.train\.freeze \['encoder'\] against \[\]\)"):
        tokenizer_run(tmp_path / "run", {"levels": [5, 5]})
    assert Run.open(tmp_path / "run").table("train")["freeze"] == ["encoder"]
