"""Several crops of each training image in a cache: which they are, how they are drawn, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ifsq import pipeline
from ifsq.cli import main
from ifsq.codes import CodeCache, writer
from ifsq.config import InputError
from ifsq.data import DataConfig, Reading, encoded, open_images, read_image, to_float
from ifsq.data.crops import Crops
from ifsq.data.draws import Draws, mix
from ifsq.data.sampler import StepSampler
from ifsq.data.transforms import center_crop, five_crop, random_crop
from ifsq.generators import Generator
from ifsq.generators.train import GeneratorTask
from ifsq.store.weights import weights_digest
from ifsq.tokenizer.bottleneck import QuantizerConfig
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig
from ifsq.training.config import TrainConfig
from ifsq.training.distributed import World

HERE = torch.device("cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Ten images to train on, one held out."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(11):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 32, 3), np.uint8)).save(path)
    return folder


@pytest.fixture(autouse=True)
def tokenizer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(writer, "SHARD", 4)
    torch.manual_seed(0)
    conv = ConvConfig(width=8, multipliers=(1, 1), blocks=1, patch=2, groups=4)
    Tokenizer(TokenizerConfig(conv, QuantizerConfig(levels=(5, 7)))).save_pretrained("tokenizer")
    return Tokenizer.from_pretrained("tokenizer")


def encode(images, out, **options):
    return pipeline.encode(Path("tokenizer"), str(images), Path(out), 16, **options)


def pictures_of(images):
    source = open_images(DataConfig(str(images), 16), "train")
    return [read_image(images / name) for name in source.names], source.labels


@torch.no_grad()
def digits_of(tokenizer, pictures):
    return tokenizer.encode(to_float(np.stack(pictures))).digits


@pytest.mark.parametrize("ranges", [(), (1.1, 1.05)])
def test_ten_crops_are_the_middle_and_the_corners_and_their_mirror_images(ranges, images, tokenizer):
    cache = encode(images, "codes", crops=Crops("ten", ranges=ranges))
    read, (pictures, labels) = cache.read("train"), pictures_of(images)
    assert (cache.crops, len(read), len(read.content)) == (5 * max(1, len(ranges)), 10, 50 * max(1, len(ranges)))
    assert read.labels.tolist() == labels
    assert cache.names("train") == open_images(DataConfig(str(images), 16), "train").names
    rows, crops = torch.arange(10), torch.zeros(10, dtype=torch.int64)
    for turn, cover in enumerate(ranges or (1.1,)):
        wide = [center_crop(picture, int(16 * cover)) for picture in pictures]
        last = len(wide[0]) - 16
        for number, (top, left) in enumerate(
            ((round(last / 2), round(last / 2)), (0, 0), (0, last), (last, 0), (last, last))
        ):
            parts = [array[top : top + 16, left : left + 16] for array in wide]
            for mirrored in (False, True):
                batch = read.batch(rows, mirrored=torch.full((10,), mirrored), crops=crops + 5 * turn + number)
                expected = digits_of(tokenizer, [part[:, ::-1] if mirrored else part for part in parts])
                assert torch.equal(batch.content, expected)
    held_out = encode(images, "plain").read("val")  # only training images are cropped in several ways
    assert torch.equal(cache.read("val").content[:], held_out.content[:])


@pytest.mark.parametrize("workers", [0, 1])
def test_random_crops_follow_from_seed_image_and_number(workers, images, tokenizer):
    cache = encode(
        images,
        "codes",
        crops=Crops("random", 3, (1.25, 1.1), seed=7),
        flip=True,
        batch=5,
        reading=Reading(workers=workers),
    )
    read, (pictures, _) = cache.read("train"), pictures_of(images)
    for number, cover in enumerate((1.25, 1.1, 1.25)):
        parts = [
            random_crop(picture, 16, Draws(mix(7, index, number)).below, cover)
            for index, picture in enumerate(pictures)
        ]
        crops = torch.full((10,), number)
        assert torch.equal(read.batch(torch.arange(10), crops=crops).content, digits_of(tokenizer, parts))
        mirrored = read.batch(torch.arange(10), mirrored=torch.ones(10, dtype=torch.bool), crops=crops).content
        assert torch.equal(mirrored, digits_of(tokenizer, [part[:, ::-1] for part in parts]))
    other = encode(images, "other", crops=Crops("random", 3, (1.25, 1.1), seed=8), flip=True)
    assert other.digest != cache.digest
    assert not torch.equal(other.read("train").content[:], read.content[:])


def test_an_image_is_decoded_once_for_all_its_crops(images, tokenizer, monkeypatch):
    read, decoded = encoded.read_image, []
    monkeypatch.setattr(encoded, "read_image", lambda path, *rest: (decoded.append(path), read(path, *rest))[1])
    encode(images, "codes", crops=Crops("ten"), batch=3)
    assert len(decoded) == len(set(decoded)) == 11


def test_a_step_draws_among_crops_and_flips_by_its_seed(images, tokenizer):
    codes = encode(images, "codes", crops=Crops("ten")).read("train")
    task = GeneratorTask.__new__(GeneratorTask)
    task.train, task.config = codes, TrainConfig(batch=2000, seed=3)
    batch = next(task.batches(0, World(0, 1, HERE)))
    items = StepSampler(10, 2000, 3).items(0)
    content, flipped = codes.content[:].long(), codes.flipped[:].long()
    drawn = {}
    for place, (row, seed) in enumerate(items):
        key = (seed % 2 == 1, seed // 2 % 5)
        drawn[key] = drawn.get(key, 0) + 1
        assert torch.equal(batch.content[place], (flipped if key[0] else content)[row * 5 + key[1]])
    assert len(drawn) == 10
    assert 150 < min(drawn.values()) <= max(drawn.values()) < 250
    assert torch.equal(batch.labels, codes.labels[[row for row, _ in items]])


def test_broken_images_are_left_out_with_all_their_crops(images, tokenizer, tmp_path):
    shutil.copytree(images, "copy")
    source = open_images(DataConfig("copy", 16), "train")
    (Path("copy") / source.name(5)).write_bytes(b"broken")
    cache = encode("copy", "codes", crops=Crops("ten", ranges=(1.1, 1.2)), reading=Reading(broken="skip"))
    assert cache.names("train") == [source.name(index) for index in range(10) if index != 5]
    assert (len(cache.skipped), len(cache.read("train").content)) == (1, 90)


def test_bundled_images_are_cropped_by_their_own_recipe():
    data = DataConfig("bundled:photos", 16)
    source = Crops("random", 2).sources(data, 3)[0]
    plain = open_images(data, "train")
    (index, first), (_, second) = Crops("random", 2).items(0, range(7, 8))
    assert source.load(index, first)[1] == plain.load(index, 0)[1]
    assert not np.array_equal(source.load(index, first)[0], source.load(index, second)[0])
    for crops in (Crops("ten"), Crops("random", 2, (1.1,))):
        with pytest.raises(InputError, match="crops of bundled:photos: it has a recipe of its own"):
            crops.sources(data, 3)


def test_the_command_and_what_is_remembered(images, tokenizer, capsys):
    command = ["encode", "tokenizer", str(images), "codes", "--size", "16", "--crops"]
    assert main([*command, "ten", "--crop-range", "1.1", "1.05", "--batch", "7"]) == 0
    told = json.loads(Path("codes/manifest.json").read_text())
    assert told["format"] == 4
    assert told["about"]["crops"] == {"kind": "ten", "count": 10, "ranges": [1.1, 1.05], "seed": 0}
    assert told["about"]["flips"] is True
    assert main([*command, "ten", "--crop-range", "1.1", "1.05"]) == 0  # there already
    assert main([*command, "ten"]) == 2
    assert "codes: holds another code cache (crops.count 10 against 5)" in capsys.readouterr().err
    assert main(["analyze", "codes", "codes"]) == 0
    assert CodeCache.open("codes").read("train").crops == 10


BAD = {
    "none": (["--crops", "0"], "'0': expected ten, or a number of random crops"),
    "a word": (["--crops", "five"], "'five': expected ten, or a number of random crops"),
    "too many": (["--crops", "9999"], "crops 9999: expected ten, or a number of 1 to 1024"),
    "range": (["--crops", "ten", "--crop-range", "0.9"], "crop range 0.9: expected 1 to 4"),
    "no range": (["--crops", "ten", "--crop-range", "nan"], "crop range nan: expected 1 to 4"),
    "twice": (["--crops", "2", "--crop-range", "1.1", "1.1"], "crop ranges (1.1, 1.1): expected each once"),
    "range alone": (["--crop-range", "1.1"], "--crop-range and --seed are of several crops; expected --crops"),
    "seed": (["--crops", "2", "--seed", "-1"], "seed -1: expected 0 to 2**63 - 1"),
    "val alone": (["--crops", "2", "--split", "val"], "crops of val: several are taken of training images alone"),
    "batch": (["--batch", "0"], "'0': expected a number of pictures"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_options_are_one_line(what, images, tokenizer, capsys):
    options, told = BAD[what]
    try:
        code = main(["encode", "tokenizer", str(images), "codes", "--size", "16", *options])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    err = capsys.readouterr().err
    assert told in err
    assert "Traceback" not in err
    assert not Path("codes").exists()


def test_a_shard_of_fewer_crops_is_refused(images, tokenizer):
    encode(images, "codes", crops=Crops("ten"))
    path = Path("codes/manifest.json")
    table = json.loads(path.read_text())
    table["about"]["crops"] |= {"count": 10, "ranges": [1.1, 1.05]}
    path.write_text(json.dumps(table))
    with pytest.raises(
        InputError, match=r"digits is torch.uint8 \(20, 4, 4, 2\); expected torch.uint8 \(40, 4, 4, 2\)"
    ):
        CodeCache.open("codes").read("train")


def test_five_crops_of_a_rectangle():
    image = np.arange(60 * 80 * 3, dtype=np.uint32).reshape(60, 80, 3).astype(np.uint8)
    parts = [five_crop(image, (10, 20), number, 1.5) for number in range(5)]
    wide = center_crop(image, (15, 30))
    assert all(part.shape == (10, 20, 3) for part in parts)
    assert np.array_equal(parts[0], wide[2:12, 5:25])
    assert np.array_equal(
        np.concatenate([parts[1], parts[2]], 1)[:5], np.concatenate([wide[:5, :20], wide[:5, 10:]], 1)
    )
    assert np.array_equal(parts[4], wide[5:, 10:])


EXPERIMENT = """
out = "whole"
tokenizer = "tokenizer"
codes = "codes"
[ar]
depth = 1
width = 16
heads = 2
mlp_multiple_of = 16
[train]
steps = 4
batch = 4
log_every = 1
save_every = 2
"""


def test_a_run_on_crops_goes_on_to_the_bit(images):
    encode(images, "codes", crops=Crops("ten"))
    Path("run.toml").write_text(EXPERIMENT)
    assert main(["generator", "train", "run.toml"]) == 0
    for steps in ("2", "4"):
        assert main(["generator", "train", "run.toml", "--out", "run", "--train.steps", steps]) == 0
    whole, run = (weights_digest(Generator.from_pretrained(folder)) for folder in ("whole", "run"))
    assert whole == run
