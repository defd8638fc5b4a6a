"""Images that are no colour squares, through the command on the whole road at toy size: rectangles, and luminance."""

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
from ifsq.cli import main
from ifsq.codes import CodeCache
from ifsq.config import to_dict
from ifsq.data import DataConfig, iterate_once, open_images, to_float, to_uint8
from ifsq.evaluation import judge
from ifsq.experiment import load_tokenizer_experiment
from ifsq.metrics import ProtocolCard, ms_ssim, psnr
from ifsq.store.checkpoints import at, steps_in
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import TokenizerConfig
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
[train]
steps = 12
batch = 8
log_every = 4
save_every = 12
optim.warmup = 2
engine.recompute = true
"""
TRUNK = """
mlp_multiple_of = 16
kv_heads = 1
qk_norm = true
class_tokens = 2
adaln = true
drop_path = 0.1
token_dropout = 0.1
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
    (folder / "ar.toml").write_text(GENERATOR.format(kind="ar", groups="groups = [1, 2]", own=TRUNK))
    (folder / "diffusion.toml").write_text(
        GENERATOR.format(kind="diffusion", groups="", own="patch = 2\n[sampling]\nsteps = 3")
    )
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
    monkeypatch.setattr(judge, "JUDGE_TRAINING", replace(judge.JUDGE_TRAINING, steps=8))


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
    return at(steps_in(Path(run) / "checkpoints")[-1][1]).load("model")


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
    assert torch.equal(stored.content[:].long(), tokenizer.encode(batch.images).digits)
    assert torch.equal(stored.flipped[:].long(), tokenizer.encode(batch.images.flip(-1)).digits)


@pytest.mark.parametrize("kind", ["ar", "diffusion"])
def test_generators_draw_and_are_measured_as_rectangles(kind):
    drawn = ifsq.Generator.from_pretrained(kind).sample(torch.tensor([0, 1]), seed=0)
    assert drawn.codes.shape == (2, 3, 4, 6)
    assert main(["sample", kind, "--labels", "0", "1", "--out", f"{kind}.png"]) == 0
    assert size_of(f"{kind}.png") == (2 * (WIDTH + 2) + 2, HEIGHT + 4)
    assert main(["generator", "eval", kind, "--samples", "12", "--features"]) == 0
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
        assert main(["generator", "eval", kind, "--samples", "12", "--features"]) == 0
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
    (
        *TRAIN,
        "[64, 8]",
        "--loss.lpips",
        "1",
    ): "data.size=64x8: expected at least 16 pixels for the networks of the loss",
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


GREY = ("--tokenizer.conv.in_channels", "1", "--out", "grey")
ADVERSARIAL = ("--loss.adversarial.start", "18", "--loss.adversarial.layers", "1", "--loss.adversarial.width", "8")


@pytest.fixture(scope="module")
def grey(road):
    """Beside the rectangles: a tokenizer of one channel against a discriminator, its codes and both generators."""
    before = Path.cwd()
    os.chdir(road)
    try:
        assert main(["tokenizer", "train", "tokenizer.toml", *GREY, *ADVERSARIAL]) == 0
        assert main(["encode", "grey", "pictures", "grey_codes"]) == 0
        for kind in ("ar", "diffusion"):
            options = ["--out", f"grey_{kind}", "--tokenizer", "grey", "--codes", "grey_codes"]
            assert main(["generator", "train", f"{kind}.toml", *options]) == 0
    finally:
        os.chdir(before)


def mode_of(picture):
    with Image.open(picture) as image:
        return image.mode


@pytest.mark.usefixtures("grey")
def test_a_tokenizer_of_luminance_learns_and_its_codes_are_of_luminance():
    rows = [row for row in read_metrics(Path("grey/metrics.jsonl")) if "loss" in row]
    assert rows[-1]["l1"] < rows[0]["l1"]
    assert rows[-1]["adversarial"] != 0
    tokenizer = ifsq.Tokenizer.from_pretrained("grey")
    assert tokenizer.channels == 1
    source = open_images(DataConfig("pictures", (HEIGHT, WIDTH)), "val", channels=1)
    (batch,) = iterate_once(source, 128)
    assert batch.images.shape == (12, 1, HEIGHT, WIDTH)
    cache = CodeCache.open("grey_codes")
    assert torch.equal(cache.read("val").content[:].long(), tokenizer.encode(batch.images).digits)
    assert cache.about["fingerprints"]["val"] == source.fingerprint
    assert cache.about["fingerprints"]["val"] != CodeCache.open("codes").about["fingerprints"]["val"]


@pytest.mark.usefixtures("grey")
def test_luminance_is_measured_as_grey_rgb_by_networks_of_colours(weights_files):
    networks = ["--lpips", str(weights_files["lpips_vgg"]), "--fid", str(weights_files["inception"])]
    assert main(["tokenizer", "eval", "grey", *networks]) == 0
    by_name = {card["metric"].partition("(")[0]: card for card in evaluation_of("grey")["cards"]}
    assert {"PSNR, dB", "SSIM", "LPIPS", "rFD"} <= by_name.keys()
    assert all(card["reference"] == "pictures val, luminance" for card in by_name.values())
    assert mode_of("grey/samples/reconstructions.png") == "L"
    (batch,) = iterate_once(open_images(DataConfig("pictures", (HEIGHT, WIDTH)), "val", channels=1), 128)
    again = ifsq.Tokenizer.from_pretrained("grey").reconstruct(batch.images)
    found = by_name["PSNR, dB"]["values"]["mean"]
    assert found == pytest.approx(float(psnr(batch.images, again).mean()))
    assert found == pytest.approx(float(psnr(*(x.repeat(1, 3, 1, 1) for x in (batch.images, again))).mean()))


@pytest.mark.usefixtures("grey")
@pytest.mark.parametrize("kind", ["ar", "diffusion"])
def test_generators_of_luminance_draw_grey_pictures(kind):
    assert main(["sample", f"grey_{kind}", "--labels", "0", "1", "--out", "drawn.png"]) == 0
    assert (mode_of("drawn.png"), size_of("drawn.png")) == ("L", (2 * (WIDTH + 2) + 2, HEIGHT + 4))
    assert main(["generator", "eval", f"grey_{kind}", "--samples", "12", "--features"]) == 0
    assert evaluation_of(f"grey_{kind}")["cards"][0]["reference"] == "pictures train, luminance"
    assert {mode_of(path) for path in Path(f"grey_{kind}/samples").iterdir()} == {"L"}
    assert main(["tokenizer", "eval", "grey"]) == 0
    assert main(["report", "grey", f"grey_{kind}"]) == 0


@pytest.mark.usefixtures("grey")
def test_luminance_is_reconstructed_in_grey(tmp_path):
    assert main(["reconstruct", "grey", "pictures/val/left/0.png", "--alone", "--out", str(tmp_path)]) == 0
    with Image.open("pictures/val/left/0.png") as picture, Image.open(tmp_path / "0.png") as again:
        assert again.mode == "L"
        luminance = np.asarray(picture.convert("L").crop((0, 0, *again.size)))
        tokenizer = ifsq.Tokenizer.from_pretrained("grey")
        expected = to_uint8(tokenizer.reconstruct(to_float(luminance[None, ..., None])))
        np.testing.assert_array_equal(np.asarray(again), expected[0, ..., 0])


def test_other_channels_are_for_programs_alone(capsys):
    train = ["tokenizer", "train", "tokenizer.toml", "--out", "new", "--tokenizer.conv.in_channels"]
    assert code_of([*train, "4"]) == 2
    assert "in_channels=4: expected 1 (luminance) or 3 (RGB), as pictures have" in capsys.readouterr().err
    ifsq.Tokenizer(TokenizerConfig(ConvConfig(8, (1, 1), 1, 2, 4, in_channels=5))).save_pretrained("five")
    for arguments in (
        ["encode", "five", "pictures", "new", "--size", "16"],
        ["tokenizer", "eval", "five", "--data", "pictures", "--size", "16"],
        ["reconstruct", "five", "pictures/val/left/0.png", "--out", "new"],
    ):
        assert code_of(arguments) == 2
        told = capsys.readouterr().err
        assert "in_channels=5" in told
        assert told.count("\n") == 1
    assert not Path("new").exists()


def test_a_run_of_before_goes_on(tmp_path):
    """Options that came later have their defaults in an older run's config."""
    shutil.copytree("tokenizer", tmp_path / "tokenizer")
    config = tmp_path / "tokenizer/config.json"
    table = json.loads(config.read_text())
    del table["experiment"]["tokenizer"]["conv"]["in_channels"]
    config.write_text(json.dumps(table))
    train = ["tokenizer", "train", "tokenizer.toml", "--out", str(tmp_path / "tokenizer")]
    before = weights_of(tmp_path / "tokenizer")
    assert main(train) == 0
    after = weights_of(tmp_path / "tokenizer")
    assert all(torch.equal(before[key], after[key]) for key in before | after)
    assert config.read_text() == json.dumps(table)
    assert code_of([*train, "--tokenizer.conv.in_channels", "1"]) == 2
    assert ifsq.Tokenizer.from_pretrained(tmp_path / "tokenizer").channels == 3


def test_a_rectangle_in_a_file_is_two_numbers():
    experiment = load_tokenizer_experiment(Path("tokenizer.toml"))
    assert experiment.data.size == experiment.data.sides == (HEIGHT, WIDTH)
    assert to_dict(experiment.data)["size"] == [HEIGHT, WIDTH]
    assert to_dict(DataConfig("pictures", 16))["size"] == 16
