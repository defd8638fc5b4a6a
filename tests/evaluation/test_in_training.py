"""What is looked at while models train, against `eval` of the same weights and samples drawn apart; refusals."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ifsq.cli import main
from ifsq.codes.cache import CodeCache
from ifsq.config import InputError
from ifsq.data import open_images, sample_order, to_uint8
from ifsq.data.images import DataConfig
from ifsq.data.sampler import iterate_once
from ifsq.evaluation import in_training
from ifsq.evaluation.labels import labels_like
from ifsq.generators import Generator
from ifsq.metrics.distribution import frechet_distance
from ifsq.metrics.kernel import kernel_distance
from ifsq.pretrained.features import load_features
from ifsq.store.run import Run
from ifsq.tokenizer.model import Tokenizer
from ifsq.training.config import TrainConfig
from ifsq.training.distributed import World
from ifsq.training.log import read_metrics

HERE = World(0, 1, torch.device("cpu"))
LOOK = ["--train.sample_every", "1", "--train.evaluate_every", "1", "--train.evaluate_images", "20"]
DIFFUSION = """
tokenizer = "tok"
codes = "codes"
out = "diffusion"
[diffusion]
patch = 1
depth = 1
width = 16
heads = 2
[sampling]
steps = 2
[train]
steps = 2
batch = 4
log_every = 1
"""


@pytest.fixture(scope="module")
def more(road):
    """A folder of held-out images that are not all alike."""
    (road / "more").mkdir()
    for number in range(20):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(road / "more" / f"{number}.png")


@pytest.fixture(autouse=True)
def _inside(road, more, monkeypatch):
    monkeypatch.chdir(road)
    monkeypatch.setenv("IFSQ_CACHE", str(road / "cache"))
    monkeypatch.setattr(in_training, "features_at_hand", lambda size, world: load_features("pixels"))


def figures(run, step):
    rows = [row for row in read_metrics(Path(run, "metrics.jsonl")) if row["step"] == step]
    return {name: value for row in rows for name, value in row.items()}


def features(images):
    return load_features("pixels")(torch.from_numpy(images).movedim(-1, 1))["192"]


def real(source, split):
    images = open_images(DataConfig(source, 16), split)
    return torch.cat([batch.images for batch in iterate_once(images, 64)])


def _kept(count, n):
    """Which of n images, in the order of measurement, have their features compared pair by pair."""
    return torch.from_numpy(np.sort(sample_order(1, 0, n)[:count]))


def size_of(picture):
    with Image.open(picture) as image:
        return image.size


def test_figures_of_a_tokenizer_are_those_of_eval(tmp_path):
    out, unseen = str(tmp_path / "tok"), str(tmp_path / "unseen")
    command = ["tokenizer", "train", "tok.toml", "--data.val_source", "more", "--out"]
    assert main([*command, unseen]) == 0
    assert main([*command, out, *LOOK]) == 0
    assert main(["tokenizer", "eval", out, "--no-judge"]) == 0
    tables = [Run.open(run).weights().load() for run in (unseen, out)]
    assert tables[0].keys() == tables[1].keys()
    assert all(torch.equal(value, tables[1][name]) for name, value in tables[0].items())

    seen, cards = figures(out, 2), json.loads(Path(out, "evaluation.json").read_text())["cards"]
    measured = {card["metric"]: card["values"] for card in cards}
    assert seen["evaluate/psnr"] == pytest.approx(measured["PSNR, dB"]["mean"], rel=1e-9)
    assert seen["evaluate/ssim"] == pytest.approx(measured["SSIM"]["mean"], rel=1e-9)
    assert seen["evaluate/level_entropy"] == pytest.approx(measured["level entropy / log2 L"]["mean"], rel=1e-9)
    assert seen["evaluate/dead_levels"] == measured["dead levels"]["sum"]
    assert seen["evaluate/index_use"] == measured["index use"]["share"] / measured["index use"]["at most"]
    originals, model = real("more", "all"), Tokenizer.from_pretrained(out)
    assert seen["evaluate/images"] == len(originals)
    with torch.no_grad():
        again = to_uint8(model.decode(model.encode(originals).codes))
    distance = frechet_distance(features(again), features(to_uint8(originals)))
    assert seen["evaluate/rfd_pixels"] == pytest.approx(distance, rel=1e-9)
    assert seen["evaluate/seconds"] > 0
    assert seen["sample/seconds"] > 0
    sheets = sorted(Path(out, "samples").glob("step_*"))
    assert [sheet.name for sheet in sheets] == ["step_1.png", "step_2.png"]
    evaluated = Path(out, "samples", "reconstructions.png")
    assert size_of(sheets[0]) == size_of(evaluated)
    assert sheets[1].read_bytes() == evaluated.read_bytes()


@pytest.mark.parametrize("kind", ["ar", "diffusion"])
def test_figures_of_a_generator_are_those_of_its_samples(tmp_path, kind):
    (tmp_path / "diffusion.toml").write_text(DIFFUSION)
    file = {"ar": "ar.toml", "diffusion": str(tmp_path / "diffusion.toml")}[kind]
    out = str(tmp_path / kind)
    assert main(["generator", "train", file, "--out", out, *LOOK]) == 0
    seen = figures(out, 2)
    if kind == "ar":  # which the road has trained without a look
        unseen, looked = (Run.open(run).weights().load() for run in ("ar", out))
        assert all(torch.equal(value, looked[name]) for name, value in unseen.items())
    assert seen["evaluate/loss"] == pytest.approx(seen["val/loss"], rel=1e-9)
    assert seen["evaluate/images"] == 20

    model, tokenizer = Generator.from_pretrained(out), Tokenizer.from_pretrained("tok")
    labels = labels_like(CodeCache.open("codes").read("train").labels, 20)
    with torch.no_grad():
        drawn = to_uint8(tokenizer.decode_sampled(model.sample(labels, model.sampling(), seed=0)))
    drawn, trained_on = features(drawn), features(to_uint8(real("pictures", "train")))
    assert seen["evaluate/fd_pixels"] == pytest.approx(frechet_distance(drawn, trained_on), rel=1e-9)
    few = trained_on[torch.from_numpy(sample_order(0, 0, len(trained_on)).copy())][_kept(20, len(trained_on))]
    assert seen["evaluate/kd_pixels"] == pytest.approx(kernel_distance(drawn, few, draws=0).value, rel=1e-6)
    classes, each = 2, 6
    for step in (1, 2):
        assert size_of(Path(out, "samples", f"step_{step}.png")) == (each * 18 + 2, classes * 18 + 2)
    with Image.open(Path(out, "samples", "step_2.png")) as sheet:
        first = np.asarray(sheet)[2:18, 2:18]
    (shown,) = to_uint8(tokenizer.decode_sampled(model.sample(torch.tensor([0]), model.sampling(), seed=0)))
    assert np.abs(first.astype(int) - shown).max() <= 1  # another batch rounds otherwise


def test_the_distance_is_to_ten_training_images_a_sample_at_most_the_same_ones_always():
    images = open_images(DataConfig("more", 16), "all")
    few, again = (in_training.SomeImages(images, "more", DataConfig("more", 16), 0, 8) for _ in range(2))
    assert len(set(few.chosen(len(few)))) == 8
    assert few.chosen(len(few)) == again.chosen(len(again))
    assert few.fingerprint == again.fingerprint != images.fingerprint
    every = in_training.SomeImages(images, "more", DataConfig("more", 16), 0, 20)
    assert sorted(every.chosen(len(every))) == list(range(20))
    assert every.fingerprint == images.fingerprint


def test_one_held_out_image_has_no_distance(tmp_path):
    out = str(tmp_path / "tok")
    assert main(["tokenizer", "train", "tok.toml", "--out", out, "--train.evaluate_every", "2"]) == 0
    assert figures(out, 2)["evaluate/psnr"] == figures(out, 2)["val/psnr"]
    assert "evaluate/rfd_pixels" not in figures(out, 2)


def test_only_what_is_asked_for_is_looked_at(tmp_path):
    out = str(tmp_path / "ar")
    assert main(["generator", "train", "ar.toml", "--out", out, "--train.evaluate_every", "2"]) == 0
    assert not Path(out, "samples").exists()
    # It may change when the run goes on; nothing is left to train, and nothing is drawn.
    assert main(["generator", "train", "ar.toml", "--out", out, "--train.sample_every", "1"]) == 0
    assert "evaluate/loss" not in figures(out, 1)
    longer = ["--train.sample_every", "1", "--train.steps", "3"]
    assert main(["generator", "train", "ar.toml", "--out", out, *longer]) == 0
    assert [path.name for path in Path(out, "samples").iterdir()] == ["step_3.png"]
    assert "evaluate/loss" not in figures(out, 3)


@pytest.mark.parametrize("option", ["sample_every", "evaluate_every"])
def test_samples_need_a_tokenizer(tmp_path, capsys, option):
    file = tmp_path / "ar.toml"
    file.write_text(Path("ar.toml").read_text().replace('tokenizer = "tok"', ""))
    assert main(["generator", "train", str(file), "--out", str(tmp_path / "ar"), f"--train.{option}", "5"]) == 2
    assert f"train.{option}=5 without a tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "ar").exists()


def test_a_cache_that_names_no_images_gives_no_distance(monkeypatch):
    cache = CodeCache.open("codes")
    monkeypatch.setattr(cache, "about", {**cache.about, "data": None})
    with pytest.raises(InputError, match=r"codes: does not say of which images .*evaluate_every=0"):
        in_training._training_images(cache, 3, TrainConfig())


def test_images_that_have_changed_are_refused_before_anything_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(in_training, "open_images", lambda data, split, channels: open_images(data, "val"))
    out = str(tmp_path / "ar")
    assert main(["generator", "train", "ar.toml", "--out", out, "--train.evaluate_every", "1"]) == 2
    assert "pictures: has changed since codes was written" in capsys.readouterr().err
    assert not Path(out).exists()


def test_a_model_that_diverged_is_refused_in_a_line():
    model = Tokenizer.from_pretrained("tok")
    torch.nn.init.constant_(next(model.encoder.parameters()), float("nan"))
    observer = in_training.TokenizerObserver(
        open_images(DataConfig("pictures", 16), "val"), 20, load_features("pixels")
    )
    for look in (observer.picture, observer.figures):
        with pytest.raises(InputError, match=r"in training: .*lower train\.optim\.lr"):
            look(model, HERE)


def test_the_network_is_the_one_that_is_installed(monkeypatch):
    monkeypatch.undo()
    assert in_training.features_at_hand((32, 48), HERE).name == "efficientnet-lite0@128"
    assert in_training.features_at_hand((256, 256), HERE).name == "efficientnet-lite0"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert in_training.features_at_hand((32, 48), HERE).name == "pixels"


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["replicate", "shard"])
def test_two_processes_see_what_one_sees(tmp_path, root, sharding):
    """Replicated they train the same bits as two parts in one process; sharded sums round otherwise."""
    environment = os.environ | {"PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"}
    looks = [*LOOK, "--train.evaluate_images", "200"]
    started = {
        "one": [sys.executable, "-m", "ifsq"],
        "two": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "ifsq"],
    }
    layout = {"one": ["--train.engine.accumulate", "2"], "two": ["--train.engine.sharding", sharding]}
    for kind, file in (("tokenizer", "tok.toml"), ("generator", "ar.toml")):
        outs = {}
        for name, command in started.items():
            outs[name] = tmp_path / f"{kind}_{name}"
            options = ["--out", str(outs[name]), *looks, *layout[name], "--device", "cpu"]
            subprocess.run([*command, kind, "train", file, *options], env=environment, check=True)
        seen = [
            {name: value for name, value in figures(outs[name], 2).items() if name.startswith("evaluate/")}
            for name in ("one", "two")
        ]
        for one in seen:
            del one["evaluate/seconds"]
        assert seen[1] == pytest.approx(seen[0], rel=1e-9 if sharding == "replicate" else 1e-2)
        for step in (1, 2):
            one, two = ((outs[name] / f"samples/step_{step}.png").read_bytes() for name in ("one", "two"))
            assert one == two or sharding == "shard"
