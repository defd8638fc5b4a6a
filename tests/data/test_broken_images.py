"""What happens to images that cannot be used: refused by name, or left out and counted; never replaced."""

from pathlib import Path

import numpy as np
import pytest
import torch

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
def test_a_batch_with_nothing_left_is_refused(folder: Path, workers: int) -> None:
    source = opened(folder, "skip")
    batches = ImageBatches(source, StepSampler(10, 1, seed=1), workers=workers)
    with pytest.raises(
        DataError, match=r"none of the 1 images of a batch can be used: image .*[237].png cannot be read"
    ):
        for _ in zip(range(10), batches, strict=False):
            pass


def test_refusing_is_the_default_and_names_the_first(folder: Path) -> None:
    assert DataConfig().broken == "refuse"
    with pytest.raises(DataError, match=r"^image .*/a/2.png cannot be read: 64 x 64 pixels, expected at most 1000$"):
        list(iterate_once(opened(folder, "refuse"), 4))


def test_the_policy_is_in_the_fingerprint_only_where_it_chooses(folder: Path) -> None:
    assert opened(folder, "skip").fingerprint != opened(folder, "refuse").fingerprint
    plain = open_images(DataConfig(source=str(folder), size=16), "train")
    assert opened(folder, "refuse").fingerprint == plain.fingerprint
