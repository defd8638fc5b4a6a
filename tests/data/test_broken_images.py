"""What happens to images that cannot be used: refused by name, or left out and counted; never replaced."""

import itertools
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from ifsq.cli import main
from ifsq.data import (
    DataConfig,
    DataError,
    ImageBatches,
    ImageSource,
    StepSampler,
    iterate_once,
    open_images,
    write_png,
)

BAD = (2, 3, 7)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten grey images, each as bright as its number; `BAD` ones are damaged or huge."""
    for k in range(10):
        write_png(np.full((16, 16, 3), 20 * k, dtype=np.uint8), tmp_path / f"train/a/{k}.png")
    write_png(np.zeros((64, 64, 3), dtype=np.uint8), tmp_path / "train/a/2.png")
    (tmp_path / "train/a/3.png").write_bytes(b"broken")
    (tmp_path / "train/a/7.png").write_bytes(b"")
    write_png(np.zeros((16, 16, 3), dtype=np.uint8), tmp_path / "val/a/0.png")
    return tmp_path


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)


def opened(folder: Path, broken: str) -> ImageSource:
    return open_images(DataConfig(source=str(folder), size=16, broken=broken, max_pixels=1000), "train")


def shades(images: torch.Tensor) -> list[int]:
    return [round(float(image) * 127.5 + 127.5) // 20 for image in images.mean(dim=(1, 2, 3))]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_names_every_skipped_image_once(folder: Path, workers: int) -> None:
    batches = list(iterate_once(opened(folder, "skip"), 2, workers=workers))
    assert [shades(batch.images) for batch in batches] == [[0, 1], [], [4, 5], [6], [8, 9]]
    assert [len(batch.labels) for batch in batches] == [2, 0, 2, 1, 2]
    assert [batch.indices for batch in batches] == [(0, 1), (), (4, 5), (6,), (8, 9)]
    named = [opened(folder, "skip").name(index) for batch in batches for index in batch.indices]
    assert named == [f"a/{k}.png" for k in range(10) if k not in BAD]
    skipped = [line for batch in batches for line in batch.skipped]
    assert [line.split(" cannot")[0] for line in skipped] == [f"image {folder}/train/a/{k}.png" for k in BAD]
    assert skipped[0].endswith("64 x 64 pixels, expected at most 1000")


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_training_leaves_out_what_is_broken_whoever_reads(folder: Path, world: int, workers: int) -> None:
    source, whole = opened(folder, "skip"), StepSampler(10, 10, seed=1)
    parts = [
        next(iter(ImageBatches(source, StepSampler(10, 10, 1, rank, world), workers=workers))) for rank in range(world)
    ]
    drawn = [index for index, _ in whole.items(0)]
    assert [shade for part in parts for shade in shades(part.images)] == [k for k in drawn if k not in BAD]
    named = [line.split(".png")[0][-1] for part in parts for line in part.skipped]
    assert named == [str(k) for k in drawn if k in BAD]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("parts", [1, 2])
def test_another_image_stands_in_where_nothing_is_left(folder: Path, workers: int, parts: int) -> None:
    """Parts of one image: that of a broken one is the next in the folder that can be read, and counts nothing."""
    sampler = StepSampler(10, parts, seed=1, parts=parts)
    with closing(iter(ImageBatches(opened(folder, "skip"), sampler, workers=workers))) as batches:
        read = list(itertools.islice(batches, 10))
    drawn = [index for step in range(10 // parts) for index, _ in sampler.items(step)]
    assert sorted(drawn) == list(range(10))
    instead = {2: 4, 3: 4, 7: 8}
    assert [shades(batch.images) for batch in read] == [[instead.get(index, index)] for index in drawn]
    assert [batch.indices for batch in read] == [(instead.get(index, index),) for index in drawn]
    assert [batch.left for batch in read] == [int(index not in BAD) for index in drawn]
    named = [line.split(".png")[0][-1] for batch in read for line in batch.skipped]
    assert named == [str(index) for index in drawn if index in BAD]


def test_one_that_cannot_be_read_with_all_around_it_is_refused(folder: Path) -> None:
    for file in (folder / "train/a").iterdir():
        file.write_bytes(b"broken")
    with pytest.raises(DataError, match=r"^images around it cannot be used either: image .*png cannot be read: "):
        next(iter(ImageBatches(opened(folder, "skip"), StepSampler(10, 2, seed=1))))


def test_refusing_is_the_default_and_names_the_first(folder: Path) -> None:
    assert DataConfig().broken == "refuse"
    with pytest.raises(DataError, match=r"^image .*/a/2.png cannot be read: 64 x 64 pixels, expected at most 1000$"):
        list(iterate_once(opened(folder, "refuse"), 4))


def test_the_policy_is_in_the_fingerprint_only_where_it_chooses(folder: Path) -> None:
    assert opened(folder, "skip").fingerprint != opened(folder, "refuse").fingerprint
    plain = open_images(DataConfig(source=str(folder), size=16), "train")
    assert opened(folder, "refuse").fingerprint == plain.fingerprint


TRAINING = """
out = "{folder}/run"
[data]
source = "{folder}"
size = 16
broken = "skip"
max_pixels = 1000
[tokenizer.conv]
width = 8
multipliers = [1]
blocks = 1
patch = 4
groups = 4
[tokenizer.quantizer]
levels = [5, 5]
bound = "quantile"
[loss.adversarial]
start = 2
layers = 1
width = 4
[train]
steps = 10
batch = 2
engine.accumulate = 2
optim.warmup = 0
"""


def test_training_goes_on_where_a_part_of_a_step_is_one_broken_image(folder: Path) -> None:
    (folder / "run.toml").write_text(TRAINING.format(folder=folder))
    assert main(["tokenizer", "train", str(folder / "run.toml"), "--device", "cpu"]) == 0
    named = [line.partition("image ")[2] for line in (folder / "run/skipped.txt").read_text().splitlines()]
    assert len(named) == 2 * len(BAD)  # two epochs
    assert len(set(named)) == len(BAD)
