"""Images that are no colour squares, on the whole road at toy size: rectangles through the command."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ifsq
from ifsq import pipeline
from ifsq.cli import main
from ifsq.codes import CodeCache
from ifsq.config import to_dict
from ifsq.data import DataConfig, iterate_once, open_images
from ifsq.experiment import load_tokenizer_experiment
from ifsq.metrics import ProtocolCard, ms_ssim, psnr
from ifsq.training import checkpoint
from ifsq.training.log import read_metrics

HEIGHT, WIDTH = 16, 24
TOKENIZER = """
out = "tokenizer"
[data]
source = "pictures"
size = [16, 24]
crop = "random"
[tokenizer.conv]
width = 16
multipliers = [1, 1]
blocks = 1
patch = 2
groups = 4
[tokenizer.quantizer]
levels = [5, 5, 5]
[train]
steps = 24
batch = 8
log_every = 6
save_every = 12
optim.warmup = 2
"""
GENERATOR = """
out = "{kind}"
tokenizer = "tokenizer"
codes = "codes"
{groups}
[{kind}]
depth = 2
width = 32
heads = 2
{own}
[sampling]
steps = 3
[train]
steps = 12
batch = 8
log_every = 4
save_every = 12
optim.warmup = 2
"""


def pictures(folder: Path) -> None:
    """Two classes, of pictures in many shapes: bright at the left, and bright at the top."""
    for split, count in (("train", 16), ("val", 6)):
        for number in range(count):
            rng = np.random.default_rng([number, split == "val"])
            height, width = rng.integers(20, 60, 2)
            for name, axis in (("left", 1), ("top", 0)):
                ramp = np.linspace(255, 0, (height, width)[axis]).reshape((1, -1) if axis else (-1, 1))
                pixels = (ramp * np.ones((height, width)))[..., None] * rng.uniform(0.4, 1, 3)
                path = folder / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """A folder with a tokenizer of rectangles, its codes and both generators."""
    folder = tmp_path_factory.mktemp("rectangles")
    pictures(folder / "pictures")
    (folder / "tokenizer.toml").write_text(TOKENIZER)
    (folder / "ar.toml").write_text(GENERATOR.format(kind="ar", groups="groups = [1, 2]", own="mlp_multiple_of = 16"))
    (folder / "diffusion.toml").write_text(GENERATOR.format(kind="diffusion", groups="", own="patch = 2"))
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["tokenizer", "train", "tokenizer.toml"]) == 0
        assert main(["encode", "tokenizer", "pictures", "codes", "--flip"]) == 0
        assert main(["generator", "train", "ar.toml"]) == 0
        assert main(["generator", "train", "diffusion.toml"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(autouse=True)
def _inside(road, monkeypatch):
    monkeypatch.chdir(road)
    monkeypatch.setattr(pipeline, "JUDGE_TRAINING", replace(pipeline.JUDGE_TRAINING, steps=8))


def code_of(arguments):
    """The exit code; argparse leaves by SystemExit."""
    try:
        return main(arguments)
    except SystemExit as end:
        return end.code


def size_of(picture):
    """Width and height."""
    with Image.open(picture) as image:
        return image.size


def weights_of(run):
    return checkpoint.load(checkpoint.steps_in(Path(run) / "checkpoints")[-1][1], "model")


def evaluation_of(run, name="evaluation.json"):
    return json.loads((Path(run) / name).read_text())


def test_a_tokenizer_of_rectangles_learns_and_is_held_out_on_them():
    rows = read_metrics(Path("tokenizer/metrics.jsonl"))
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]
    val = open_images(DataConfig("pictures", (HEIGHT, WIDTH)), "val")
    (batch,) = iterate_once(val, 128)
    assert batch.images.shape == (12, 3, HEIGHT, WIDTH)
    expected = psnr(batch.images, ifsq.Tokenizer.from_pretrained("tokenizer").reconstruct(batch.images)).mean()
    assert [row["val/psnr"] for row in rows if "val/psnr" in row][-1] == pytest.approx(float(expected), rel=1e-5)


def test_a_cache_of_rectangles_holds_their_grid_and_their_mirrors():
    cache = CodeCache.open("codes")
    assert cache.spec.grid == (4, 6)
    assert cache.about["data"]["size"] == [HEIGHT, WIDTH]
    tokenizer = ifsq.Tokenizer.from_pretrained("tokenizer")
    (batch,) = iterate_once(open_images(DataConfig("pictures", (HEIGHT, WIDTH)), "val"), 128)
    stored = cache.read("val")
    assert torch.equal(stored.digits.long(), tokenizer.encode(batch.images).digits)
    assert torch.equal(stored.flipped.long(), tokenizer.encode(batch.images.flip(-1)).digits)


@pytest.mark.parametrize("kind", ["ar", "diffusion"])
def test_generators_draw_and_are_measured_as_rectangles(kind):
    drawn = ifsq.Generator.from_pretrained(kind).sample(torch.tensor([0, 1]), seed=0)
    assert drawn.codes.shape == (2, 3, 4, 6)
    assert main(["sample", kind, "--labels", "0", "1", "--out", f"{kind}.png"]) == 0
    assert size_of(f"{kind}.png") == (2 * (WIDTH + 2) + 2, HEIGHT + 4)
    assert main(["generator", "eval", kind, "--samples", "12"]) == 0
    for card in evaluation_of(kind)["cards"]:
        assert card["size"] == [HEIGHT, WIDTH]
        assert ProtocolCard.from_dict(card).size == (HEIGHT, WIDTH)
    assert size_of(f"{kind}/samples/classes.png") == (6 * (WIDTH + 2) + 2, 2 * (HEIGHT + 2) + 2)
    assert size_of(f"{kind}/samples/real.png") == (3 * (WIDTH + 2) + 2, 2 * (HEIGHT + 2) + 2)


def test_a_rectangle_is_measured_and_reported(capsys):
    assert main(["tokenizer", "eval", "tokenizer"]) == 0
    assert f"{HEIGHT}x{WIDTH} px" in capsys.readouterr().out
    evaluation = evaluation_of("tokenizer")
    assert {tuple(card["size"]) for card in evaluation["cards"]} == {(HEIGHT, WIDTH)}
    assert evaluation["left_out"] == [f"MS-SSIM: {HEIGHT}x{WIDTH} pixels, needs 22"]
    assert size_of("tokenizer/samples/reconstructions.png") == (12 * (WIDTH + 2) + 2, 2 * (HEIGHT + 2) + 2)
    for kind in ("ar", "diffusion"):
        assert main(["generator", "eval", kind, "--samples", "12"]) == 0
    assert main(["report", "tokenizer", "ar", "diffusion"]) == 0
    page = Path("tokenizer/report.html").read_text()
    assert f"Images of pictures at {HEIGHT}x{WIDTH} px" in page
    assert f"height: {2 * (HEIGHT + 2)}px" in page  # of a row of samples


def test_other_rectangles_are_asked_for_by_height_and_width():
    assert main(["encode", "tokenizer", "pictures", "wide", "--size", "32x64"]) == 0
    assert CodeCache.open("wide").spec.grid == (8, 16)
    assert main(["encode", "tokenizer", "pictures", "square", "--size", "16"]) == 0
    assert main(["encode", "tokenizer", "pictures", "square", "--size", "16x16"]) == 0  # it says the same
    assert main(["tokenizer", "eval", "tokenizer", "--size", "24X32", "--no-judge"]) == 0
    (name,) = [path.name for path in Path("tokenizer").glob("evaluation_val_*.json")]
    by_name = {card["metric"]: card for card in evaluation_of("tokenizer", name)["cards"]}
    (batch,) = iterate_once(open_images(DataConfig("pictures", (24, 32)), "val"), 128)
    again = ifsq.Tokenizer.from_pretrained("tokenizer").reconstruct(batch.images)
    assert by_name["MS-SSIM of 2 scales"]["values"]["mean"] == pytest.approx(float(ms_ssim(batch.images, again).mean()))


def test_both_sides_alike_are_the_square_of_before():
    """One number or twice that: the same run, to the last bit, and the same cache."""
    train = ["tokenizer", "train", "tokenizer.toml", "--train.steps", "12"]
    for name, size in (("one", "16"), ("two", "[16, 16]")):
        assert main([*train, "--out", name, "--data.size", size]) == 0
        assert main(["encode", name, "pictures", f"{name}_codes"]) == 0
    records = [json.loads(Path(name, "config.json").read_text()) for name in ("one", "two")]
    assert records[0]["experiment"]["data"]["size"] == records[1]["experiment"]["data"]["size"] == 16
    assert records[0]["data"] == records[1]["data"]  # fingerprints
    one, two = weights_of("one"), weights_of("two")
    assert all(torch.equal(one[key], two[key]) for key in one | two)
    assert CodeCache.open("one_codes").digest == CodeCache.open("two_codes").digest
    assert main([*train, "--out", "one", "--data.size", "[16, 16]"]) == 0  # it is the run that is there


def test_a_judge_of_one_class_learns_photographs_in_the_shape_of_the_images():
    for split in ("train", "val"):
        shutil.copytree(f"pictures/{split}/left", f"single/{split}")
    assert main(["tokenizer", "eval", "tokenizer", "--data", "single", "--size", "16x32"]) == 0
    photos = open_images(DataConfig("bundled:photos", (16, 32)), "train")
    assert Path(f"judge_{photos.fingerprint[:8]}/config.json").is_file()


TRAIN = ("tokenizer", "train", "tokenizer.toml", "--out", "new", "--data.size")
ENCODE = ("encode", "tokenizer", "pictures", "new", "--size")
WRONG = {
    (*TRAIN, "[16, 18]"): "data.size=16x18: expected a multiple of the tokenizer's factor 4",
    (*TRAIN, "[16, 24, 3]"): "data.size: input should be a valid integer or tuple should have at most 2 items",
    (*TRAIN, "[16, 4]"): "size=[16, 4]: expected 8 to 4096 pixels",
    (*TRAIN, "[64, 8]", "--loss.lpips", "1"): "data.size=64x8: expected at least 16 pixels for the judges of the loss",
    (*ENCODE, "16x30"): "size 16x30: expected a multiple of the tokenizer's factor 4",
    (*ENCODE, "16x24x3"): "'16x24x3': expected pixels a side as 256, or height and width as 256x384",
    (*ENCODE, "wide"): "'wide': expected pixels a side as 256",
    ("encode", "tokenizer", "pictures", "codes", "--size", "24x16", "--flip"): "data.size [16, 24] against [24, 16]",
    ("tokenizer", "eval", "tokenizer", "--size", "16x-4"): "size -4: expected at least 1",
    ("tokenizer", "eval", "tokenizer", "--size", "64x12", "--lpips"): "images of 64x12 pixels: expected at least 16",
    ("generator", "train", "diffusion.toml", "--out", "new", "--diffusion.patch", "4"): "divisor of the code grid 4x6",
}


@pytest.mark.parametrize("arguments", WRONG, ids=lambda arguments: " ".join(arguments[-3:]))
def test_a_wrong_shape_is_one_line(arguments, capsys):
    assert code_of(arguments) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1, told
    assert WRONG[arguments] in told
    assert not Path("new").exists()


def test_a_rectangle_in_a_file_is_two_numbers():
    experiment = load_tokenizer_experiment(Path("tokenizer.toml"))
    assert experiment.data.size == experiment.data.sides == (HEIGHT, WIDTH)
    assert to_dict(experiment.data)["size"] == [HEIGHT, WIDTH]
    assert to_dict(DataConfig("pictures", 16))["size"] == 16
