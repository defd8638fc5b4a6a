"""Runs that begin with the weights of another: the same figures at step 0, what was taken, and what is refused."""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ifsq import pipeline
from ifsq.cli import main
from ifsq.config import InputError, build
from ifsq.experiment import ARExperiment, DiffusionExperiment, TokenizerExperiment
from ifsq.generators import Generator
from ifsq.store import checkpoints
from ifsq.store.run import Run
from ifsq.store.weights import tensors_digest
from ifsq.tokenizer.model import Tokenizer
from ifsq.training.config import TrainConfig
from ifsq.training.log import Silent, read_metrics

CONV = {"width": 8, "multipliers": [1, 1], "blocks": 1, "patch": 2, "groups": 4}
TRAIN = {"steps": 4, "batch": 4, "log_every": 2, "save_every": 2, "keep": 9, "optim": {"warmup": 0}}


@cache
def pictures():
    """A folder of a few pictures of two classes."""
    folder, rng = Path(tempfile.mkdtemp(prefix="ifsq-pictures-")), np.random.default_rng(0)
    atexit.register(shutil.rmtree, folder)
    for number in range(12):
        path = folder / ("val" if number % 4 == 3 else "train") / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(path)
    return folder


def tokenizer(out, quantizer=None, conv=None, **train):
    table = {
        "out": str(out),
        "data": {"source": str(pictures()), "size": 16},
        "tokenizer": {"conv": {**CONV, **(conv or {})}, "quantizer": quantizer or {"levels": [5, 5]}},
        "train": {**TRAIN, **train},
    }
    return build(TokenizerExperiment, table, "test")


class Told(Silent):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def trained(out, *given, **train):
    """The folder of a run, and what was said of its beginning."""
    told = Told()
    folder = pipeline.train_tokenizer(tokenizer(out, *given, **train), "cpu", told)
    return folder, [line for line in told.lines if line.startswith("init: ")]


def figures(run, step):
    return {
        name: value
        for row in read_metrics(run / "metrics.jsonl")
        for name, value in row.items()
        if row["step"] == step and name.startswith("val/")
    }


def tables(run, step):
    found = checkpoints.at(run / "checkpoints" / f"step_{step}")
    return {name: found.load(name) for name in ("model", "ema", "optimizer")}


def assert_same(a, b):
    for name in a:
        assert a[name].keys() == b[name].keys()
        assert all(torch.equal(value, b[name][key]) for key, value in a[name].items()), name


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("source") / "run")[0]


def test_step_0_is_the_source(tmp_path, source):
    run, said = trained(tmp_path / "run", init=str(source), seed=7)
    assert figures(source, 4)["val/psnr"] > 0
    assert figures(run, 0) == figures(source, 4) != figures(run, 4)
    digest = Tokenizer.from_pretrained(source).digest()
    assert said == [
        f"init: {source} (step 4, weights {digest[:12]}): took decoder (48), encoder (32), post_quant_conv (2),"
        " quant_conv (2)"
    ]
    record = Run.open(run).config["init"]
    assert (record["source"], record["digest"], record["step"]) == (str(source), digest, 4)
    assert record["fresh"] == record["left"] == {}


def test_raw_and_averaged_weights_begin_with_the_averaged_ones(tmp_path, source):
    """With a step too small to move anything, both are what they began with."""
    run, _ = trained(tmp_path / "run", init=str(source), steps=1, optim={"warmup": 0, "lr": 1e-30})
    averaged = tables(source, 4)["ema"]
    assert not all(torch.equal(value, tables(source, 4)["model"][key]) for key, value in averaged.items())
    for name in ("model", "ema"):
        assert_same({name: averaged}, {name: tables(run, 1)[name]})


def test_a_run_goes_on_with_the_same_bits_when_its_source_is_gone(tmp_path, source):
    shutil.copytree(source, tmp_path / "source")
    given = {"init": str(tmp_path / "source"), "freeze": ["encoder"]}
    whole, _ = trained(tmp_path / "whole", steps=6, **given)
    shutil.copytree(whole, tmp_path / "cut")
    for step in (4, 6):
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / f"step_{step}")
    before = tables(tmp_path / "source", 4)["ema"]
    shutil.rmtree(tmp_path / "source")
    cut, said = trained(tmp_path / "cut", steps=6, **given)
    assert said == []
    assert_same(tables(whole, 6), tables(cut, 6))
    assert Run.open(cut).config["init"] == Run.open(whole).config["init"]
    assert figures(cut, 0) == figures(whole, 0)
    for name in ("model", "ema"):
        for key, value in tables(cut, 6)[name].items():
            assert torch.equal(before[key], value) == key.startswith("encoder."), key


def test_a_run_without_a_checkpoint_begins_again_with_what_the_source_is_now(tmp_path, source):
    run, _ = trained(tmp_path / "run", init=str(source))
    shutil.rmtree(run / "checkpoints")
    again, said = trained(tmp_path / "run", init=str(source))
    assert len(said) == 1
    assert sum(row["step"] == 0 for row in read_metrics(again / "metrics.jsonl")) == 1


def test_named_parts_are_taken_and_the_rest_is_listed(tmp_path, source):
    run, said = trained(tmp_path / "run", {"levels": [9, 9, 9]}, init=str(source), init_parts=["encoder", "decoder.up"])
    digest = Tokenizer.from_pretrained(source).digest()
    assert said == [
        f"init: {source} (step 4, weights {digest[:12]}): took decoder (34), encoder (32)",
        "init: starts fresh: decoder (14), post_quant_conv (2), quant_conv (2)",
        "init: left in the source: decoder (14), post_quant_conv (2), quant_conv (2)",
    ]
    torch.manual_seed(0)
    fresh = Tokenizer(tokenizer(tmp_path, {"levels": [9, 9, 9]}).tokenizer).state_dict()
    record = Run.open(run).config["init"]
    assert record["taken"] == {"decoder": 34, "encoder": 32}
    again, _ = trained(
        tmp_path / "still", {"levels": [9, 9, 9]}, init=str(source), init_parts=["encoder", "decoder.up"], steps=1,
        optim={"warmup": 0, "lr": 1e-30},
    )  # fmt: skip
    averaged, begun = tables(source, 4)["ema"], tables(again, 1)["model"]
    for key, value in begun.items():
        expected = averaged if key.startswith(("encoder.", "decoder.up.")) else fresh
        assert torch.allclose(value, expected[key], rtol=0, atol=1e-20), key


def test_options_that_are_no_tensors_may_differ_and_are_told(tmp_path, source):
    _, said = trained(tmp_path / "run", {"levels": [9, 9], "bound": "tanh"}, init=str(source))
    assert said[1:] == [
        "init: the source has another config.quantizer.bound 'ifsq' against 'tanh'",
        "init: the source has another config.quantizer.levels [5, 5] against [9, 9]",
    ]


def test_a_saved_model_serves_and_the_card_of_what_came_of_it_names_it(tmp_path, source):
    model = Tokenizer.from_pretrained(source)
    model.save_pretrained(tmp_path / "model")
    run, said = trained(tmp_path / "run", init=str(tmp_path / "model"))
    assert said[0].startswith(f"init: {tmp_path / 'model'} (weights {model.digest()[:12]}): took ")
    assert figures(run, 0) == figures(source, 4)
    assert main(["export", "pretrained", str(run), "--out", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"Began with weights of `{tmp_path / 'model'}`, SHA-256 `{model.digest()}`." in card


REFUSED = {
    "another width": (
        {"conv": {"width": 16}},
        r"tensor 'decoder\.conv_in\.bias' has shape \(8,\), expected \(16,\): another architecture"
        r" \(config\.conv\.width 8 against 16\); name what to take in train\.init_parts$",
    ),
    "more blocks": (
        {"conv": {"blocks": 2}},
        r"tensor 'decoder\.mid_block\.1\.conv1\.bias' is missing: another architecture \(config\.conv\.blocks 1",
    ),
    "a part that is not there": ({"init_parts": ["encode"]}, r"train\.init_parts: the model has no part 'encode';"),
    "a part of another shape": (
        {"quantizer": {"levels": [5, 5, 5]}, "init_parts": ["quant_conv"]},
        r"tensor 'quant_conv\.bias' has shape \(2,\), expected \(3,\)$",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path, source, name):
    given, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        trained(tmp_path / "run", init=str(source), **given)
    assert not (tmp_path / "run").exists()


def test_a_source_that_is_no_such_model_is_refused_and_nothing_is_written(tmp_path, source):
    (tmp_path / "empty").mkdir()
    shutil.copytree(source, tmp_path / "generator")
    config = json.loads((tmp_path / "generator" / "config.json").read_text())
    (tmp_path / "generator" / "config.json").write_text(json.dumps({**config, "kind": "ar"}))
    for given, message in (
        ("nowhere", r"nowhere: no such folder"),
        (str(tmp_path / "empty"), r"holds no config\.json"),
        (str(tmp_path / "generator"), r"kind 'ar', and its weights are of kind 'tokenizer'"),
    ):
        with pytest.raises(InputError, match=message):
            trained(tmp_path / "run", init=given)
    with pytest.raises(InputError, match=r"init_parts=\['encoder'\] without init: expected where they are taken from"):
        tokenizer(tmp_path / "run", init_parts=["encoder"])
    assert not (tmp_path / "run").exists()


def test_what_is_not_finite_is_not_taken_for_another_architecture(tmp_path, source):
    model = Tokenizer.from_pretrained(source)
    with torch.no_grad():
        model.decoder.conv_in.bias[0] = torch.nan
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=r"tensor 'decoder\.conv_in\.bias' holds values that are not finite"):
        trained(tmp_path / "run", init=str(tmp_path / "model"))


def test_another_source_is_another_run(tmp_path, source):
    run, _ = trained(tmp_path / "run", init=str(source))
    with pytest.raises(InputError, match=r"holds another run \(experiment\.train\.init '.*' against ''\)"):
        trained(run)


GENERATORS = {
    "ar": (ARExperiment, {"ar": {"width": 16, "depth": 1, "heads": 2}}, "layers"),
    "diffusion": (DiffusionExperiment, {"diffusion": {"width": 16, "depth": 1, "heads": 2, "patch": 1}}, "dit.blocks"),
}


@pytest.fixture(scope="module")
def vq(tmp_path_factory):
    """Two VQ tokenizers of one architecture, trained for one step and for two, and their codes."""
    folder = tmp_path_factory.mktemp("vq")
    for number in (0, 1):
        run, _ = trained(folder / f"run{number}", {"kind": "vq", "dim": 3, "codebook_size": 16}, steps=number + 1)
        pipeline.encode(run, str(pictures()), folder / f"codes{number}", device="cpu")
    return folder


@pytest.mark.parametrize("kind", GENERATORS)
def test_generators_begin_with_a_source_too_and_keep_the_codebook_of_their_own_tokenizer(tmp_path, vq, kind):
    cls, section, frozen = GENERATORS[kind]

    def run(out, number, **train):
        table = {"out": str(tmp_path / out), "tokenizer": str(vq / f"run{number}"), "codes": str(vq / f"codes{number}")}
        return pipeline.train_generator(build(cls, {**table, **section, "train": {**TRAIN, **train}}, "test"), "cpu")

    first = run("first", 0)
    same = run("same", 0, init=str(first), seed=5)
    assert figures(same, 0) == figures(first, 4)
    other = run("other", 1, init=str(first), freeze=[frozen])
    held = Generator.from_pretrained(other).state_dict()
    for key, value in Generator.from_pretrained(first).state_dict().items():
        if key.startswith(frozen):
            assert torch.equal(held[key], value)
    if kind == "diffusion":
        own = Tokenizer.from_pretrained(vq / "run1").codebook()
        assert torch.equal(held["codebook"], own)
        assert not torch.equal(own, Tokenizer.from_pretrained(vq / "run0").codebook())
        record = Run.open(other).config["init"]
        assert record["fresh"] == record["left"] == {"codebook": 1}
        assert "codebook" not in record["taken"]
    assert Run.open(other).config["init"]["digest"] == tensors_digest(Run.open(first).weights().load())


def test_a_generator_is_no_start_of_a_tokenizer(tmp_path, vq):
    table = {"out": str(tmp_path / "ar"), "tokenizer": str(vq / "run0"), "codes": str(vq / "codes0")}
    experiment = build(ARExperiment, {**table, **GENERATORS["ar"][1], "train": {**TRAIN, "steps": 1}}, "test")
    pipeline.train_generator(experiment, "cpu")
    with pytest.raises(InputError, match=r"train\.init=.*: holds a ar model; expected a tokenizer"):
        trained(tmp_path / "run", init=str(tmp_path / "ar"))
    assert TrainConfig().init == ""
