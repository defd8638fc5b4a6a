"""Another bottleneck in a trained tokenizer: what is kept to the bit, what is fitted, and a run like any other."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ifsq import pipeline
from ifsq.cli import main
from ifsq.config import InputError, build, to_dict
from ifsq.experiment import Adaptation, TokenizerExperiment, adapted_experiment
from ifsq.quantizers import VQ
from ifsq.store import checkpoints
from ifsq.store.run import Run
from ifsq.tokenizer import adapt
from ifsq.tokenizer.adapt import Activations, fit_bottleneck
from ifsq.tokenizer.bottleneck import QuantizerConfig
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig
from ifsq.training.log import read_metrics

CONV = {"width": 8, "multipliers": [1, 1], "blocks": 1, "patch": 2, "groups": 4}
SOURCES = {
    "ae": {"kind": "ae", "dim": 4},
    "kl": {"kind": "kl", "dim": 4},
    "vq": {"kind": "vq", "dim": 4, "codebook_size": 64},
    "fsq": {"levels": (9,) * 4, "bound": "tanh"},
}
TARGETS = {
    "ifsq": {"levels": (17,) * 4},
    "equal cells": {"levels": (8,) * 4, "cells": "equal"},
    "fitted bound": {"levels": (17,) * 4, "bound": "quantile"},
    "clamp": {"levels": (17,) * 4, "bound": "clamp"},
    "residual": {"kind": "residual", "levels": (5,) * 4, "cells": "equal", "bound": "standardized"},
    "vq": {"kind": "vq", "dim": 4, "codebook_size": 512},
    "sphere": {"kind": "vq", "dim": 4, "codebook_size": 512, "normalize": True},
    "lfq": {"kind": "lfq", "dim": 4},
    "bsq": {"kind": "bsq", "dim": 4},
    "kl": {"kind": "kl", "dim": 4},
    "ae": {"kind": "ae", "dim": 4},
}
EXACT = ("kl", "ae")  # nothing is rounded


def model(quantizer, seed=0):
    torch.manual_seed(seed)
    conv = ConvConfig(8, (1, 1), 1, 2, 4)
    made = Tokenizer(TokenizerConfig(conv, QuantizerConfig(**quantizer)))
    with torch.no_grad():  # latents far from what a bound expects
        made.quant_conv.weight.mul_(3)
        made.quant_conv.bias.add_(2)
        if isinstance(made.quantizer, VQ):
            made.quantizer.embedding.weight.normal_(2, 3)
    return made


def seen_by(tokenizer, images):
    """What `activations` gives, of one batch."""
    with torch.no_grad():
        features = tokenizer.encoder(images)
        latents = tokenizer.quant_conv(features)
        parts = features, latents[:, : tokenizer.quantizer.dim], tokenizer.eval().quantizer(latents).codes
    return Activations(*(part.movedim(1, -1).flatten(0, 2) for part in parts))


def fitted(source, target, images):
    made = model(target, 1)
    for part in ("encoder", "decoder"):
        getattr(made, part).load_state_dict(getattr(source, part).state_dict())
    told = fit_bottleneck(source, made, seen_by(source, images))
    return made.eval(), told


@pytest.fixture(scope="module")
def images():
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(48, 3, 4, 4, generator=rng) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(16, 16), mode="bilinear")


@pytest.mark.parametrize("old", SOURCES)
@torch.no_grad()
def test_a_bottleneck_that_rounds_nothing_gives_the_latents_before_rounding(images, old):
    """Least squares find the inverse of the scaling: of AE and VAE the very pictures of before."""
    source = model(SOURCES[old])
    for new in EXACT:
        made, told = fitted(source, TARGETS[new], images)
        if old in EXACT:
            assert told.explained == pytest.approx(1, abs=1e-4)
            torch.testing.assert_close(made.reconstruct(images), source.eval().reconstruct(images), atol=1e-2, rtol=0)
        assert 0.3 < told.explained <= 1


@pytest.mark.parametrize("new", TARGETS)
@torch.no_grad()
def test_the_latents_of_every_kind_are_what_its_bound_expects(images, new):
    source = model(SOURCES["kl"])
    made, told = fitted(source, TARGETS[new], images)
    latents = made.latent(images)[:, : made.quantizer.dim].movedim(1, -1).flatten(0, 2)
    if new != "ae":
        deviation = 0.5 if new == "clamp" else 1.0
        torch.testing.assert_close(latents.mean(0), torch.zeros(4), atol=1e-3, rtol=0)
        torch.testing.assert_close(latents.std(0), torch.full((4,), deviation), atol=1e-3, rtol=1e-3)
    least = {"lfq": 0.5, "bsq": 0.5, "sphere": 0.4, "vq": 0.8}.get(new, 0.93)
    assert least < told.explained <= 1
    assert (told.bits is not None) == (made.kind == "fsq")
    # A second implementation: the best affine map of the codes, as the share of the variance that it explains.
    codes = made.encode(images).codes.movedim(1, -1).flatten(0, 2)
    old = seen_by(source, images).codes
    design = torch.cat([codes, torch.ones(len(codes), 1)], 1).double()
    left = old.double() - design @ torch.linalg.lstsq(design, old.double()).solution
    assert told.explained == pytest.approx(
        1 - float(left.square().sum() / (old - old.mean(0)).square().sum()), abs=1e-4
    )
    if isinstance(made.quantizer, VQ):
        rows = torch.nn.functional.normalize(latents, dim=-1) if new == "sphere" else latents
        assert float(torch.cdist(made.quantizer.embedding.weight, rows).amin(1).max()) < 1e-2


@torch.no_grad()
def test_fewer_dimensions_keep_the_principal_axes_and_more_lose_nothing(images):
    source = model(SOURCES["ae"])
    explained = [fitted(source, {"levels": (65,) * count}, images)[1].explained for count in range(1, 7)]
    assert explained == sorted(explained)
    latents = seen_by(source, images).latents
    spectrum = torch.linalg.eigvalsh(torch.cov(latents.T)).flip(0)
    shares = (spectrum.cumsum(0) / spectrum.sum()).tolist()
    made, told = fitted(source, {"kind": "ae", "dim": 2}, images)
    assert told.explained == pytest.approx(shares[1], abs=1e-4)
    wide, told = fitted(source, {"kind": "ae", "dim": 6}, images)
    assert told.explained == pytest.approx(1, abs=1e-4)
    assert (made.quantizer.dim, wide.quantizer.dim) == (2, 6)


@torch.no_grad()
def test_a_collapsed_latent_is_not_blown_up(images):
    source = model(SOURCES["kl"])
    source.quant_conv.weight[1] = 0
    made, told = fitted(source, TARGETS["ifsq"], images)
    assert float(made.quant_conv.weight[1].abs().max()) == 0
    assert float(made.latent(images)[:, 1].abs().max()) < 1
    assert told.explained > 0.93


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Pictures, and a trained VAE."""
    folder, rng = tmp_path_factory.mktemp("adapt"), np.random.default_rng(0)
    for number in range(16):
        path = folder / "pictures" / ("val" if number % 4 == 3 else "train") / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = Image.fromarray(rng.integers(0, 255, (3, 3, 3), np.uint8)).resize((16, 16))
        pixels.save(path)
    table = {
        "out": str(folder / "vae"),
        "data": {"source": str(folder / "pictures"), "size": 16, "flip": True},
        "tokenizer": {"conv": CONV, "quantizer": {"kind": "kl", "dim": 3}},
        "train": {"steps": 8, "batch": 4, "log_every": 2, "save_every": 4, "optim": {"warmup": 4}},
    }
    pipeline.train_tokenizer(build(TokenizerExperiment, table, "test"), "cpu")
    return folder


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(adapt, "LATENTS", 2048)
    monkeypatch.setattr(adapt, "A_LEVEL", 0)


def tables(run, step):
    found = checkpoints.at(run / "checkpoints" / f"step_{step}")
    return {name: found.load(name) for name in ("model", "ema", "optimizer")}


def test_the_run_is_the_sources_own_with_another_bottleneck(place):
    made = adapted_experiment(Adaptation(str(place / "vae")))
    own = Run.open(place / "vae").experiment(TokenizerExperiment)
    assert made.out == str(place / "vae-ifsq")
    assert (made.data, made.loss, made.tokenizer.conv) == (own.data, own.loss, own.tokenizer.conv)
    assert made.tokenizer.quantizer == QuantizerConfig(levels=(17,) * 3)
    expected = replace(
        own.train, steps=2, init=str(place / "vae"), init_parts=("encoder", "decoder"), freeze=("encoder",),
        optim=replace(own.train.optim, warmup=0),
    )  # fmt: skip
    assert made.train == expected
    asked = Adaptation(
        str(place / "vae"), "tanh", bits=(2, 3), steps=100, train_encoder=True, out="there", size=32, data="elsewhere"
    )
    made = adapted_experiment(asked, ["--train.batch", "2", "--tokenizer.quantizer.groups", "[1, 1]"])
    assert made.tokenizer.quantizer == QuantizerConfig(levels=(5, 9), bound="tanh", groups=(1, 1))
    assert (made.train.steps, made.train.freeze, made.train.batch, made.out) == (100, (), 2, "there")
    assert (made.data.source, made.data.size, made.data.flip) == ("elsewhere", 32, True)
    assert adapted_experiment(Adaptation(str(place / "vae"), "fsq")).tokenizer.quantizer.bound == "tanh"
    assert adapted_experiment(Adaptation(str(place / "vae"), "vq")).tokenizer.quantizer.dim == 3


def test_adapt_eval_encode_and_export_from_the_command(place, tmp_path, capsys, quick_judge):
    out = tmp_path / "run"
    assert main(["adapt", str(place / "vae"), "--levels", "9", "9", "9", "--steps", "4", "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert f"init: {place / 'vae'} (step 8, weights " in said
    assert "adapted: kl of 3 dimensions to fsq of 3; its levels carry " in said
    source, run = Tokenizer.from_pretrained(place / "vae"), Run.open(out)
    held = tables(out, 4)
    for name in ("model", "ema"):
        for key, value in source.state_dict().items():
            if key.startswith(("encoder.", "decoder.")):
                assert torch.equal(held[name][key], value) == key.startswith("encoder."), key
    trained = [key for key in held["model"] if not key.startswith("encoder.")]
    assert {key.partition(".")[0] for key in held["optimizer"]} == {str(i) for i in range(len(trained))}
    assert [row["step"] for row in read_metrics(out / "metrics.jsonl") if "val/psnr" in row] == [0, 4]
    record = run.config["init"]
    assert (record["digest"], record["fitted"]) == (source.digest(), {"post_quant_conv": 2, "quant_conv": 2})
    assert main(["tokenizer", "eval", str(out)]) == 0
    assert main(["encode", str(out), str(place / "pictures"), str(tmp_path / "codes")]) == 0
    assert main(["export", "pretrained", str(out), "--out", str(tmp_path / "model")]) == 0
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"Adapted from kl of 3 dimensions, `{place / 'vae'}`, SHA-256 `{source.digest()}`." in card


def test_a_run_goes_on_with_the_same_bits_when_its_source_is_gone(place, tmp_path):
    shutil.copytree(place / "vae", tmp_path / "vae")
    asked = Adaptation(str(tmp_path / "vae"), "standardized", steps=6, out=str(tmp_path / "whole"))
    options = ["--train.save_every", "2", "--train.keep", "9"]
    whole = pipeline.adapt(asked, options, "cpu")
    shutil.copytree(whole, tmp_path / "cut")
    for step in (4, 6):
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / f"step_{step}")
    shutil.rmtree(tmp_path / "vae")
    cut = pipeline.adapt(replace(asked, steps=0, out=str(tmp_path / "cut")), (), "cpu")
    for name, table in tables(whole, 6).items():
        again = tables(cut, 6)[name]
        assert table.keys() == again.keys()
        assert all(torch.equal(again[key], value) for key, value in table.items()), name
    with pytest.raises(InputError, match=r"holds another run \(experiment\.tokenizer\.quantizer\.levels"):
        pipeline.adapt(replace(asked, levels=(5,) * 3), (), "cpu")
    with pytest.raises(InputError, match=r"holds another run \(experiment\.train\.init"):
        pipeline.adapt(replace(asked, source="another"), (), "cpu")


def test_a_saved_model_needs_images(place, tmp_path):
    Tokenizer.from_pretrained(place / "vae").save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=r"model: is not a training run and has no images of its own; give --data and"):
        adapted_experiment(Adaptation(str(tmp_path / "model"), data="pictures"))
    asked = Adaptation(str(tmp_path / "model"), data=str(place / "pictures"), size=16, steps=1)
    run = pipeline.adapt(asked, ("--train.batch", "4"), "cpu")
    assert run == tmp_path / "model-ifsq"
    assert to_dict(Run.open(run).experiment(TokenizerExperiment).tokenizer.conv)["width"] == 8


REFUSED = {
    "--to sfq": "--to sfq: expected one of tanh, ifsq, gaussian, clamp, standardized",
    "--levels 5 5 --bits 2 2": "--levels and --bits: expected one of them",
    "--to vq --levels 5": "--to vq: has no levels; expected --tokenizer.quantizer.KEY options of its own",
    "--bits 0 4": "--bits 0 4: expected 1 to 16 for each dimension",
    "--steps -3": "--steps -3: expected at least 1",
    "--levels 8 8": "paper cells with bound='ifsq' need odd levels; use cells='equal' or 'symmetric'",
    "--size 18": "data.size=18: expected a multiple of the tokenizer's factor 4",
    "--data nowhere": "nowhere: expected a folder of images",
    "--train.init_parts '[\"encoder\"]'": "--train.init_parts: adapt takes encoder and decoder; expected it left out",
    "--train.freeze '[\"encode\"]'": "train.freeze: the model has no part 'encode'; expected one of encoder",
}


@pytest.mark.parametrize("given", REFUSED)
def test_what_cannot_be_done_is_refused_in_a_line_and_nothing_is_written(place, tmp_path, capsys, given):
    words = [word.strip("'") for word in given.split()]
    assert main(["adapt", str(place / "vae"), "--out", str(tmp_path / "run"), *words]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert REFUSED[given] in told[-1]
    assert not (tmp_path / "run").exists()


def test_what_is_no_tokenizer_is_refused(place, tmp_path, capsys):
    shutil.copytree(place / "vae", tmp_path / "ar")
    config = json.loads((tmp_path / "ar" / "config.json").read_text())
    (tmp_path / "ar" / "config.json").write_text(json.dumps({**config, "kind": "ar"}))
    for source, message in (("nowhere", "nowhere: no such folder"), (str(tmp_path / "ar"), "kind 'ar', and its")):
        assert main(["adapt", source, "--out", str(tmp_path / "run")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
