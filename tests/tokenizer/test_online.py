"""Codes that are computed at each step are those that a cache would hold; a run on them goes on and is measured."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ifsq import pipeline
from ifsq.cli import main
from ifsq.config import InputError
from ifsq.data import DataConfig, ImageBatches, StepSampler, open_images
from ifsq.experiment import load_generator_experiment
from ifsq.generators import Generator
from ifsq.sources import codes_of
from ifsq.store.weights import weights_digest
from ifsq.tokenizer.bottleneck import QuantizerConfig
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig
from ifsq.tokenizer.online import OnlineCache

HERE = torch.device("cpu")
KINDS = {
    "fsq": QuantizerConfig(levels=(5, 7)),
    "residual": QuantizerConfig(kind="residual", levels=(3, 7), cells="equal", stages=2),
    "vq": QuantizerConfig(kind="vq", codebook_size=300),
    "ae": QuantizerConfig(kind="ae", dim=3),
}
EXPERIMENT = """
out = "whole"
tokenizer = "tokenizer"
[data]
online = true
source = "images"
size = 16
crop = "random"
flip = true
[{kind}]
depth = 1
width = 16
heads = 2
{own}
[train]
steps = 4
batch = 4
log_every = 1
save_every = 2
"""
OWN = {"ar": "mlp_multiple_of = 16", "diffusion": "patch = 2\n[sampling]\nsteps = 3"}


@pytest.fixture(autouse=True)
def images(tmp_path, monkeypatch):
    """Ten images to train on, one held out."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for number in range(11):
        path = Path("images", "ab"[number % 2], f"{number}.png")
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(rng.integers(0, 255, (24, 20, 3), np.uint8)).save(path)


def save_tokenizer(kind):
    torch.manual_seed(0)
    conv = ConvConfig(width=8, multipliers=(1, 1), blocks=1, patch=2, groups=4)
    Tokenizer(TokenizerConfig(conv, KINDS[kind])).save_pretrained("tokenizer")
    return Tokenizer.from_pretrained("tokenizer")


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_those_that_a_cache_holds(kind):
    tokenizer = save_tokenizer(kind)
    cache = pipeline.encode(Path("tokenizer"), "images", Path("codes"), 16)
    online = OnlineCache(tokenizer, DataConfig("images", 16))
    assert (online.layout, online.classes, online.splits) == (cache.layout, cache.classes, cache.splits)
    assert online.about == {**cache.about, "tokenizer": tokenizer.digest()}
    for split in ("train", "val"):
        stored, mine = cache.read(split, tokenizer.codebook()), online.read(split, tokenizer.codebook())
        assert online.names(split) == cache.names(split)
        assert torch.equal(mine.labels, stored.labels)
        rows = torch.arange(len(stored))
        with torch.autocast("cpu", torch.bfloat16):  # quantization is in float32 whatever the training's precision
            assert torch.equal(mine.batch(rows).content, stored.batch(rows).content)
        for got, expected in zip(mine.moments(), stored.moments(), strict=True):
            torch.testing.assert_close(got, expected)


def test_steps_see_the_crops_of_their_seeds_from_any_step_on_with_any_workers_and_ranks():
    tokenizer, data = save_tokenizer("fsq"), DataConfig("images", 16, crop="random", flip=True)
    codes = OnlineCache(tokenizer, data).read("train")
    source = open_images(data, "train")

    def steps(start, count, rank=0, world=1, workers=0):
        batches = codes.batches(StepSampler(10, 4, 3, rank, world), start, HERE, workers)
        return [next(batches) for _ in range(count)]

    whole = steps(0, 5)
    pictures = iter(ImageBatches(source, StepSampler(10, 4, 3)))
    for batch in whole:
        read = next(pictures)
        assert torch.equal(batch.content, tokenizer.encode(read.images).digits)
        assert torch.equal(batch.labels, read.labels)
    assert not torch.equal(
        whole[0].content, codes.batch(torch.tensor([i for i, _ in StepSampler(10, 4, 3).items(0)])).content
    )
    for again in (steps(2, 3), steps(2, 3, workers=1)):
        assert all(torch.equal(a.content, b.content) for a, b in zip(again, whole[2:], strict=True))
    halves = [steps(0, 5, rank, 2) for rank in (0, 1)]
    for parts, batch in zip(zip(*halves, strict=True), whole, strict=True):
        assert torch.equal(torch.cat([part.content for part in parts]), batch.content)


@pytest.mark.parametrize(("kind", "codes"), [("ar", "fsq"), ("diffusion", "vq")])
@pytest.mark.usefixtures("quick_judge")
def test_a_run_goes_on_to_the_bit_and_is_sampled_and_measured(kind, codes, capsys):
    save_tokenizer(codes)
    Path("run.toml").write_text(EXPERIMENT.format(kind=kind, own=OWN[kind]))
    assert main(["generator", "train", "run.toml"]) == 0
    assert main(["generator", "train", "run.toml", "--out", "run", "--train.steps", "2"]) == 0
    half = weights_digest(Generator.from_pretrained("run"))
    assert main(["generator", "train", "run.toml", "--out", "run", "--train.engine.workers", "1"]) == 0
    of_both = {weights_digest(Generator.from_pretrained(folder)) for folder in ("run", "whole")}
    assert len(of_both) == 1
    assert half not in of_both
    assert "codes: 10 images in 2 classes to train on, 1 held out" in capsys.readouterr().err
    assert main(["sample", "run", "--labels", "0", "1", "--out", "grid.png"]) == 0
    assert main(["generator", "eval", "run", "--samples", "4"]) == 0
    assert main(["generator", "train", "run.toml", "--out", "run", "--data.crop", "five"]) == 2
    assert "run: holds another run (experiment.data.crop 'random' against 'five'" in capsys.readouterr().err
    Image.new("RGB", (20, 20)).save("images/a/new.png")
    assert main(["generator", "eval", "run", "--samples", "4"]) == 2
    assert "images: has changed since run was trained on it; train in another folder" in capsys.readouterr().err


def test_images_are_encoded_on_the_device_from_the_first_on():
    """Before the first step too: a diffusion generator looks at thousands of them."""
    save_tokenizer("fsq")
    Path("run.toml").write_text(EXPERIMENT.format(kind="diffusion", own=OWN["diffusion"]))
    cache, tokenizer = codes_of(load_generator_experiment(Path("run.toml")), torch.device("meta"))
    assert cache.tokenizer is tokenizer
    assert {value.device.type for value in tokenizer.state_dict().values()} == {"meta"}


BAD = {
    "both": (["--codes", "codes"], "codes='codes' beside data.online=true: expected one of the two"),
    "said": (["--data.online", "false"], "data.online=false: expected true, or codes of a cache in place of [data]"),
    "tokenizer": (["--tokenizer", ""], "data.online=true: expected the tokenizer that the images go through"),
    "size": (["--data.size", "18"], "size 18: expected a multiple of the tokenizer's factor 4"),
    "broken": (["--data.broken", "skip"], "data.broken='skip' with data.online: expected 'refuse', or a cache"),
    "source": (["--data.source", "gone"], "gone"),
    "crop": (["--data.crop", "odd"], "crop='odd': expected one of center, random, five, resized"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_options_are_one_line(what, capsys):
    options, told = BAD[what]
    save_tokenizer("fsq")
    Path("run.toml").write_text(EXPERIMENT.format(kind="ar", own=OWN["ar"]))
    assert main(["generator", "train", "run.toml", *options]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert "Traceback" not in err
    assert not Path("whole").exists()


def test_neither_codes_nor_images_is_one_line(capsys):
    text = EXPERIMENT.format(kind="ar", own=OWN["ar"])
    Path("run.toml").write_text(text[: text.index("[data]")] + text[text.index("[ar]") :])
    assert main(["generator", "train", "run.toml"]) == 2
    assert "codes='': expected the folder of a code cache, or [data] with online=true" in capsys.readouterr().err


def test_a_split_that_is_not_there_is_named():
    with pytest.raises(InputError, match="images: has no split 'test'; expected one of train, val"):
        OnlineCache(save_tokenizer("fsq"), DataConfig("images", 16)).read("test")


def test_latents_that_a_cache_could_not_hold_are_refused():
    tokenizer = save_tokenizer("ae")
    torch.nn.init.constant_(tokenizer.quant_conv.bias, 1e5)
    cache = OnlineCache(tokenizer, DataConfig("images", 16))
    with pytest.raises(InputError, match=r"latents up to 1e\+05: expected values that float16 holds"):
        cache.read("train").batch(torch.tensor([0]), HERE)
